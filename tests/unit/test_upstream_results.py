"""Files and usage are found in every shape that an answer may have, and in nonsense nothing breaks."""

from decimal import Decimal
from typing import Any

import pytest

from app.upstream.results import find_artifacts, find_usage, link_expiry, link_extension, replace_links

URL = "https://h.example/{}.png?Expires=1795400000&Signature=a%2Fb%3D"

SHAPES: dict[str, dict[str, Any]] = {
    "choices": {"choices": [{"message": {"content": [{"text": "x"}, {"image": URL.format(1)}]}}]},
    "several choices": {
        "choices": [
            {"message": {"content": [{"image": URL.format(1)}, {"image": URL.format(2)}]}},
            {"message": {"content": [{"image": URL.format(3)}]}},
        ]
    },
    "results": {"results": [{"url": URL.format(1)}, {"code": "DataInspectionFailed"}, {"url": URL.format(2)}]},
    "a result": {"result": {"png_url": URL.format(1), "svg_url": URL.format(2)}},
    "a video": {"video_url": URL.format(1)},
    "plain": {"image_url": URL.format(1), "output_image_url": URL.format(2)},
    "lists": {"render_urls": [URL.format(1), URL.format(2)], "bg_urls": [URL.format(3)]},
}

NONSENSE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "null": {"choices": None, "results": None, "video_url": None},
    "numbers": {"choices": 7, "results": 7, "image_url": 7, "render_urls": 7},
    "texts": {"choices": "x", "results": "x", "render_urls": "https://h.example/1.png"},
    "wrong inside": {"choices": [None, 7, {"message": 7}, {"message": {"content": [7, None, {"image": 7}]}}]},
    "no links": {"results": [{"url": "ftp://h/1.png"}, {"url": ""}, {"url": "javascript:alert(1)"}, {"url": "/1.png"}]},
}


@pytest.mark.parametrize("output", SHAPES.values(), ids=SHAPES.keys())
def test_every_file_of_an_answer_is_found_in_order(output: dict[str, Any]) -> None:
    urls = [artifact.url for artifact in find_artifacts(output)]
    assert urls == [URL.format(number) for number in range(1, len(urls) + 1)]
    assert urls


@pytest.mark.parametrize("output", SHAPES.values(), ids=SHAPES.keys())
def test_where_a_file_was_found_its_link_can_be_replaced(output: dict[str, Any]) -> None:
    found = find_artifacts(output)
    replace_links(output, {artifact.json_path: f"ours-{artifact.json_path}" for artifact in found})
    assert "h.example" not in str(output)
    assert all(f"ours-{artifact.json_path}" in str(output) for artifact in found)


@pytest.mark.parametrize("output", NONSENSE.values(), ids=NONSENSE.keys())
def test_in_nonsense_no_file_is_found(output: dict[str, Any]) -> None:
    assert find_artifacts(output) == []


def test_each_place_is_found_once() -> None:
    for output in SHAPES.values():
        paths = [artifact.json_path for artifact in find_artifacts(output)]
        assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("output", [*SHAPES.values(), *NONSENSE.values(), None, [], "x"])
@pytest.mark.parametrize("usage", [None, {}, [], "x", {"image_count": None}, {"image_count": 1.0}, {"image_count": []}])
def test_without_a_count_the_files_are_counted_and_flagged(output: Any, usage: Any) -> None:
    (line,) = find_usage({"output": output, "usage": usage})
    made = len(find_artifacts(output)) if isinstance(output, dict) else 0
    assert (line.unit, line.quantity) == ("image", Decimal(made))
    assert line.flag in ("counted_artifacts", "unknown_usage")


def test_a_count_of_nothing_is_a_count() -> None:
    (line,) = find_usage({"output": {}, "usage": {"image_count": 0}})
    assert (line.quantity, line.flag) == (Decimal(0), None)


@pytest.mark.parametrize(
    ("url", "expiry"),
    [
        (URL.format(1), 1795400000),
        ("https://h/1.png?Expires=0", 0),
        ("https://h/1.png?expires=1795400000", None),
        ("https://h/1.png?Expires=", None),
        ("https://h/1.png?Expires=-5", None),
        ("https://h/1.png?Expires=1e9", None),
        ("https://h/1.png?Expires=999999999999", None),
        ("https://h/1.png?Expires=\u0661", None),
        ("http://[broken", None),
        ("https://h/\ud83d.png?Expires=7", 7),
        ("", None),
    ],
)
def test_a_links_end_is_read_or_not_there(url: str, expiry: int | None) -> None:
    assert link_expiry(url) == expiry


@pytest.mark.parametrize(
    ("url", "extension"),
    [
        ("https://h/a/1.png?x=.jpg", "png"),
        ("https://h/1.JPEG", "jpeg"),
        ("https://h/1", "bin"),
        ("https://h/1.p/n", "bin"),
        ("https://h/1.toolong", "bin"),
        ("http://[broken/1.png", "bin"),
    ],
)
def test_a_links_extension_is_plain_or_bin(url: str, extension: str) -> None:
    assert link_extension(url) == extension
