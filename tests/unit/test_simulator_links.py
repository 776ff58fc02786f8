"""Signed links: good byte for byte, for GET, until they expire."""

import pytest

from app.simulator.links import LinkRefusedError, check, make_link, sign

MADE_AT = 1_795_312_800.0
EXPIRES = 1_795_399_200


def link(index: int = 0) -> tuple[str, str]:
    return make_link(
        "cn-beijing", "0385dc79-5ff8-4d82-bcb6-000000000000", file=f"{index}.png", made_at=MADE_AT, expires=EXPIRES
    )


def test_a_link_opens_its_file_until_the_second_it_expires() -> None:
    path, query = link()
    check(path, query.encode(), method="GET", now=EXPIRES - 0.001)
    with pytest.raises(LinkRefusedError) as refusal:
        check(path, query.encode(), method="GET", now=EXPIRES)
    assert refusal.value.code == "AccessDenied"


def test_a_link_is_made_the_same_way_every_time() -> None:
    assert link() == link()
    assert link(0) != link(1)


def test_the_path_names_region_and_the_upstreams_day() -> None:
    path, _ = link()
    assert path.startswith("/files/cn-beijing/1d/ab/20261122/")
    assert path.endswith(".png")


@pytest.mark.parametrize("index", range(20))
def test_every_signature_needs_escaping(index: int) -> None:
    _, query = link(index)
    assert "%2F" in query
    assert query.endswith("%3D")


@pytest.mark.parametrize(
    "change",
    [
        lambda query: query.replace("%2F", "/"),
        lambda query: query.replace("%2F", "%2f"),
        lambda query: query.replace("%3D", "="),
        lambda query: query.replace(str(EXPIRES), str(EXPIRES + 1)),
        lambda query: "&".join(reversed(query.split("&"))),
        lambda query: query + "&x=1",
        lambda query: "",
    ],
)
def test_a_changed_query_opens_nothing(change) -> None:
    path, query = link()
    with pytest.raises(LinkRefusedError) as refusal:
        check(path, change(query).encode(), method="GET", now=MADE_AT)
    assert refusal.value.code == "SignatureDoesNotMatch"


def test_a_link_opens_neither_another_file_nor_for_head() -> None:
    path, query = link()
    for other_path, method in ((link(1)[0], "GET"), (path, "HEAD")):
        with pytest.raises(LinkRefusedError):
            check(other_path, query.encode(), method=method, now=MADE_AT)


def test_the_signature_covers_the_method() -> None:
    assert sign("/files/x.png", EXPIRES) != sign("/files/x.png", EXPIRES, method="HEAD")
