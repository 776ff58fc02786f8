"""GET /assets/{id}/{name}: whoever holds a good link reads that one file, and nothing else."""

import hashlib
import shutil
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from app.delivery.deliver import deliver_due
from app.delivery.links import LinkedAsset, gateway_link
from app.lib.ids import new_id
from app.models.assets import AssetState
from app.tasks.chores import chore_due
from app.tasks.poll import poll_due
from tests.api.parts import choices, receipt, scripted_upstream, state, without_database
from tests.world import World

PAGE = b"<!DOCTYPE html><script>alert(1)</script>"


async def made(world: World, team: str = "alpha", n: int = 1) -> list[str]:
    """Make a task, let it end, and return its links."""
    task_id = await world.create(team=team, n=n)
    assert await world.finish(task_id, team) == "SUCCEEDED"
    return await world.links(task_id, team)


async def made_but_not_copied(world: World) -> str:
    """Make a task whose grace ended before its file was copied; return the link."""
    task_id = await world.create()
    world.sim.advance(1.1)
    await poll_due(world.res, watches=world.watches)
    world.sim.advance(121)
    await chore_due(world.res)
    (link,) = await world.links(task_id)
    return link


def altered(link: str, path: str = "", **changes: str | None) -> str:
    """Return a link with another path, or with other or without some query parameters."""
    parts = urlsplit(link)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()} | changes
    kept = {name: value for name, value in query.items() if value is not None}
    return parts._replace(path=path or parts.path, query=urlencode(kept)).geturl()


def pictures(world: World) -> list[str]:
    return [picture.sha256 for task in world.sim.truth.tasks for picture in task.pictures]


def sha256(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return hashlib.sha256(answer.content).hexdigest()


def expect_problem(answer: httpx.Response, status: int) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    assert answer.json()["status"] == status
    assert answer.headers["cache-control"] == "no-store"


# --- good links ----------------------------------------------------------------------------------------------------


async def test_a_link_opens_the_stored_file_without_any_key(world: World) -> None:
    links = await made(world, n=2)
    assert [sha256(await world.http.get(link)) for link in links] == pictures(world)


async def test_a_file_is_served_as_what_it_is_and_can_do_nothing_else(world: World) -> None:
    (link,) = await made(world)
    answer = await world.http.get(link)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["cache-control"].startswith("private")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'


async def test_a_reader_who_has_the_file_is_told_so(world: World) -> None:
    (link,) = await made(world)
    etag = (await world.http.get(link)).headers["etag"]
    again = await world.http.get(link, headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)


async def test_asking_for_the_head_alone_tells_the_same_without_the_bytes(world: World) -> None:
    (link,) = await made(world)
    head, whole = await world.http.head(link), await world.http.get(link)
    assert (head.status_code, head.content) == (200, b"")
    mine = {"x-request-id"}
    names = head.headers.keys() - mine
    assert names == whole.headers.keys() - mine
    assert all(head.headers[name] == whole.headers[name] for name in names)


async def test_whoever_asks_for_parts_gets_the_whole(world: World) -> None:
    (link,) = await made(world)
    for wanted in ("bytes=0-9", "bytes=-1", "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000))):
        answer = await world.http.get(link, headers={"Range": wanted})
        assert "content-range" not in answer.headers
        assert [sha256(answer)] == pictures(world)


async def test_the_name_in_a_link_is_for_people(world: World) -> None:
    (link,) = await made(world)
    asset_path = urlsplit(link).path.rsplit("/", 1)[0]
    answer = await world.http.get(altered(link, path=f"{asset_path}/boat.exe"))
    assert (sha256(answer), answer.headers["content-type"]) == (pictures(world)[0], "image/png")


async def test_links_lead_to_the_public_address_whatever_host_the_request_names(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    spoofed = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    answer = await world.http.get(f"/api/v1/tasks/{task_id}", headers=world.headers(**spoofed))
    assert "http://gateway/assets/" in answer.text
    assert "evil" not in answer.text


# --- before and without a destination ------------------------------------------------------------------------------


async def test_a_file_that_is_not_stored_yet_streams_from_the_upstream(world: World) -> None:
    link = await made_but_not_copied(world)
    answer = await world.http.get(link)
    assert [sha256(answer)] == pictures(world)
    assert answer.headers["content-type"] == "image/png"
    assert "etag" not in answer.headers


async def test_the_same_link_reads_the_teams_own_copy_once_that_is_stored(world: World) -> None:
    link = await made_but_not_copied(world)
    await deliver_due(world.res)
    world.sim.truth.journal.clear()
    assert [sha256(await world.http.get(link))] == pictures(world)
    assert world.sim.truth.journal.read(operation="file") == []


async def test_without_a_destination_a_file_streams_while_the_upstreams_link_lives(world: World) -> None:
    (link,) = await made(world, "gamma")
    assert [sha256(await world.http.get(link))] == pictures(world)


async def test_without_a_destination_a_file_is_gone_with_the_upstreams_link(world: World) -> None:
    (link,) = await made(world, "gamma")
    await world.advance(86_401)
    expect_problem(await world.http.get(link), 410)


async def test_a_stored_file_outlives_the_upstreams_link(world: World) -> None:
    (link,) = await made(world)
    await world.advance(86_401)
    assert sha256(await world.http.get(link))


# --- bad links -----------------------------------------------------------------------------------------------------


async def test_nothing_in_a_link_can_be_changed(world: World) -> None:
    first, second = await made(world, n=2)
    expires = int(parse_qs(urlsplit(first).query)["expires"][0])
    bad = [
        altered(first, expires=str(expires + 3600)),
        altered(first, expires=f"{expires}.0"),
        altered(first, expires="\u0661"),
        altered(first, expires="9" * 40),
        altered(first, expires=None),
        altered(first, signature="A" * 43),
        altered(first, signature="caf\u00e9"),
        altered(first, signature=None),
        altered(first, key="00000000"),
        altered(first, key=None),
        altered(first, path=urlsplit(second).path),
        altered(first, path=f"/assets/{new_id()}/1.png"),
        urlsplit(first)._replace(query="").geturl(),
    ]
    answers = [await world.http.get(link) for link in bad]
    for answer in answers:
        expect_problem(answer, 403)
    bodies = [answer.json() | {"instance": ""} for answer in answers]
    assert all(body == bodies[0] for body in bodies)  # nobody learns which ids exist


async def test_an_expired_link_is_gone_and_the_next_read_brings_a_new_one(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    (old,) = await world.links(task_id)
    await world.advance(7 * 86_400 + 3_601)
    expect_problem(await world.http.get(old), 410)
    (new,) = await world.links(task_id)
    assert sha256(await world.http.get(new))


async def test_a_link_lives_to_its_last_second(world: World) -> None:
    (link,) = await made(world)
    expires = int(parse_qs(urlsplit(link).query)["expires"][0])
    world.sim.advance(expires - world.sim.truth.clock.now() - 0.5)
    assert (await world.http.get(link)).status_code == 200
    world.sim.advance(0.5)
    assert (await world.http.get(link)).status_code == 410


async def test_a_path_without_an_id_leads_nowhere(world: World) -> None:
    for path in ("/assets/x/1.png", "/assets/1/1.png", f"/assets/{new_id()}", f"/assets/{new_id()}/a/b"):
        expect_problem(await world.http.get(path), 404)


async def test_a_signed_link_to_an_asset_that_was_removed_leads_nowhere(world: World) -> None:
    asset = LinkedAsset(
        id=new_id(),
        team_id=new_id(),
        position=0,
        state=AssetState.WAITING,
        place_id=None,
        object_key=None,
        content_type=None,
        source="https://host/1.png",
    )
    expect_problem(await world.http.get(gateway_link(world.res, asset)), 404)


async def test_a_file_can_only_be_read(world: World) -> None:
    (link,) = await made(world)
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await world.http.request(method, link)
        expect_problem(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}


# --- trouble behind a good link ------------------------------------------------------------------------------------


async def test_a_file_that_was_removed_from_the_teams_storage_is_gone(world: World) -> None:
    (link,) = await made(world)
    shutil.rmtree(world.folder / "alpha")
    expect_problem(await world.http.get(link), 410)


async def test_a_storage_that_cannot_be_read_is_a_503_to_try_again(world: World) -> None:
    (link,) = await made(world)
    shutil.rmtree(world.folder / "alpha")
    (world.folder / "alpha").write_text("not a folder")
    answer = await world.http.get(link)
    expect_problem(answer, 503)
    assert answer.headers["retry-after"]
    assert str(world.folder) not in answer.text


async def test_an_upstream_in_trouble_is_a_503_to_try_again(world: World) -> None:
    (link,) = await made(world, "gamma")
    world.sim.fail_next("file", "5xx")
    answer = await world.http.get(link)
    expect_problem(answer, 503)
    assert answer.headers["x-should-retry"] == "true"
    assert world.sim.file_host not in answer.text


async def test_a_page_in_place_of_an_image_is_never_passed_on(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        upstream.look = state("SUCCEEDED", choices=choices(upstream.link()), usage={"image_count": 1})
        (link,) = await made(world, "gamma")
        for upstream.file in ((200, PAGE), (200, b"GIF89a" + PAGE), (200, b"PK\x03\x04" + PAGE), (302, b"")):
            answer = await world.http.get(link)
            assert answer.status_code in (410, 503)
            assert PAGE not in answer.content


async def test_a_read_while_the_database_is_away_is_a_503(world: World) -> None:
    (link,) = await made(world)
    async with without_database(world) as (_, teams, _):
        answer = await teams.get(link)
    expect_problem(answer, 503)
    assert answer.headers["retry-after"] == "2"


async def test_what_could_carry_a_script_is_kept_and_not_opened(world: World) -> None:
    order = {"model": "wordart-semantic", "input": {"text": "boat", "prompt": "waves"}, "parameters": {"n": 1}}
    url, headers = "/api/v1/services/aigc/wordart/semantic", world.headers(**{"X-DashScope-Async": "enable"})
    created = (await world.http.post(url, json=order, headers=headers)).json()["output"]["task_id"]
    assert await world.finish(created) == "SUCCEEDED"
    (result,) = (await world.read(created))["output"]["results"]
    drawn, traced = [await world.http.get(result[name]) for name in ("png_url", "svg_url")]
    assert [sha256(drawn), sha256(traced)] == pictures(world)
    assert traced.headers["content-type"] == "image/svg+xml"
    assert traced.headers["content-disposition"] == "attachment"
    assert "content-disposition" not in drawn.headers
