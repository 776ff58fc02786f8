"""Files and usage are found in every shape that an answer may have, and in nonsense nothing breaks."""

from copy import deepcopy
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
    "a word": {"results": [{"png_url": URL.format(1), "svg_url": URL.format(2)}, {"png_url": URL.format(3)}]},
    "a video of images": {"results": {"video_url": URL.format(1)}},
    "transcripts": {
        "results": [
            {"file_url": "https://in.example/a.wav", "transcription_url": URL.format(1), "subtask_status": "SUCCEEDED"},
            {"file_url": "https://in.example/b.wav", "subtask_status": "FAILED", "code": "InvalidFile.DownloadFailed"},
        ]
    },
    "a transcript": {"result": {"transcription_url": URL.format(1)}},
    "a mask": {"output_image_url": URL.format(1), "output_vis_image_url": URL.format(2)},
    "shoes": {"result_url": URL.format(1)},
    "parts of clothes": {"parsing_img_url": [URL.format(1), None], "crop_img_url": [None, URL.format(2)], "bbox": []},
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
    output = deepcopy(output)
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


# --- usage ---------------------------------------------------------------------------------------------------------

IMAGE = {"choices": [{"message": {"content": [{"type": "image", "image": URL.format(1)}]}}]}
VIDEO = {"video_url": URL.format(1)}
TRANSCRIPTS = SHAPES["transcripts"]


def lines(output: Any, usage: Any) -> list[tuple[str, str, str, str | None]]:
    found = find_usage({"output": output, "usage": usage})
    return [(line.unit, str(line.quantity), line.tier, line.flag) for line in found]


@pytest.mark.parametrize(
    ("output", "usage", "expected"),
    [
        (
            IMAGE,
            {"image_count": 1, "size": "1376*768", "input_tokens": 0, "output_tokens": 0},
            [("image", "1", "", None)],
        ),
        (IMAGE, {"image_count": 1, "width": 1024, "height": 1536}, [("image", "1", "", None)]),
        (IMAGE, {"image_count": 1, "SR": "2K", "size": "2048*2048"}, [("image", "1", "2K", None)]),
        (
            IMAGE,
            {
                "input_image_count": 2,
                "input_image_type": "qima_input_1k",
                "output_image_count": 1,
                "output_image_type": "qima_output_1k",
                "output_width": 1024,
            },
            [("image", "1", "qima_output_1k", None), ("input_image", "2", "qima_input_1k", None)],
        ),
        (IMAGE, {"input_image_count": 0, "output_image_count": 1}, [("image", "1", "", None)]),
        (IMAGE, {"image_count": None, "output_image_count": 1}, [("image", "1", "", None)]),
        ({"image_url": URL.format(1)}, {"image_count": 1}, [("image", "1", "", None)]),
        (SHAPES["a mask"], {"image_count": 1}, [("image", "1", "", None)]),
        (SHAPES["a word"], {"image_count": 2}, [("image", "2", "", None)]),
        (SHAPES["lists"], {"image_count": 2}, [("image", "2", "", None)]),
        (SHAPES["parts of clothes"], {"image_count": 1}, [("image", "1", "", None)]),
        ({"check_pass": False}, {"image_count": 1}, [("image", "1", "", None)]),
        (
            VIDEO,
            {"video_duration": 5, "video_ratio": "standard", "video_count": 1},
            [("video_second", "5", "standard", None)],
        ),
        (
            {"results": {"video_url": URL.format(1)}},
            {"video_duration": 13.93, "video_ratio": "1:1"},
            [("video_second", "13.93", "1:1", None)],
        ),
        (
            VIDEO,
            {
                "duration": 10,
                "input_video_duration": 5,
                "output_video_duration": 5,
                "SR": 720,
                "size": "1280*720",
                "video_count": 1,
                "fps": 24,
                "ratio": "16:9",
            },
            [("video_second", "10", "720", None)],
        ),
        (VIDEO, {"duration": 5.5}, [("video_second", "5.5", "", None)]),
        (TRANSCRIPTS, {"duration": 6}, [("audio_second", "6", "", None)]),
        (SHAPES["a transcript"], {"duration": 6.25}, [("audio_second", "6.25", "", None)]),
        ({"results": [{"subtask_status": "FAILED"}]}, {"duration": 0}, [("audio_second", "0", "", None)]),
        ({}, {"image_count": 0}, [("image", "0", "", None)]),
    ],
)
def test_every_family_is_counted_in_its_unit(output: Any, usage: Any, expected: list[Any]) -> None:
    assert lines(output, usage) == expected


@pytest.mark.parametrize(
    ("output", "usage"),
    [
        (IMAGE, {"image_count": 2}),
        (IMAGE, {"image_count": 0}),
        ({}, {"image_count": 1}),
        ({**IMAGE, "task_metrics": {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}}, {"image_count": 1}),
        ({}, {"video_duration": 5, "video_ratio": "standard"}),
        (VIDEO, {"duration": 0, "SR": 720}),
        ({**VIDEO, "task_metrics": {"SUCCEEDED": 2}}, {"duration": 5, "SR": 720}),
        ({"results": [{"subtask_status": "FAILED"}]}, {"duration": 7}),
        ({**TRANSCRIPTS, "task_metrics": {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}}, {"duration": 7}),
    ],
)
def test_what_is_billed_is_what_was_said_and_a_count_that_disagrees_is_flagged(output: Any, usage: Any) -> None:
    ((_, quantity, _, flag),) = lines(output, usage)
    said = next(usage[key] for key in ("image_count", "video_duration", "duration") if key in usage)
    assert (quantity, flag) == (str(said), "counts_disagree")


@pytest.mark.parametrize("metrics", [{"TOTAL": 2, "SUCCEEDED": 1, "FAILED": 1}, {}, None, "x", {"SUCCEEDED": None}])
def test_a_partial_success_is_no_disagreement(metrics: Any) -> None:
    output = {"results": [{"url": URL.format(1)}, {"code": "DataInspectionFailed"}], "task_metrics": metrics}
    assert lines(output, {"image_count": 1}) == [("image", "1", "", None)]


NO_QUANTITIES = [-1, -0.5, True, "1", [], {}, float("nan"), float("inf"), -float("inf"), 10**30, 1e300]


@pytest.mark.parametrize("key", ["image_count", "output_image_count", "video_duration", "duration"])
@pytest.mark.parametrize("value", NO_QUANTITIES, ids=str)
@pytest.mark.parametrize(
    ("output", "unit"),
    [(IMAGE, "image"), (VIDEO, "video"), (TRANSCRIPTS, "transcript")],
    ids=lambda value: str(value)[:9],
)
def test_a_quantity_that_cannot_be_is_no_quantity(key: str, value: Any, output: Any, unit: str) -> None:
    assert lines(output, {key: value}) == [(unit, "1", "", "unknown_usage")]


@pytest.mark.parametrize(
    "usage", [{"input_tokens": 7}, {"credits": 3}, {"image_count": 1.0}, {"video_count": 1}, "x", [1]]
)
def test_a_usage_of_an_unknown_shape_is_flagged_and_the_files_are_counted(usage: Any) -> None:
    assert lines(IMAGE, usage) == [("image", "1", "", "unknown_usage")]
    assert lines({"text": "hello"}, usage) == [("image", "0", "", "unknown_usage")]


def test_a_duration_of_nobody_knows_what_is_an_unknown_usage() -> None:
    assert lines(IMAGE, {"duration": 5}) == [("image", "1", "", "unknown_usage")]
    assert lines({}, {"duration": 5}) == [("image", "0", "", "unknown_usage")]


@pytest.mark.parametrize("usage", [None, {}, [], ""])
def test_without_any_usage_the_files_are_counted_and_flagged(usage: Any) -> None:
    assert lines(IMAGE, usage) == [("image", "1", "", "counted_artifacts")]
    assert lines(SHAPES["a word"], usage) == [("image", "2", "", "counted_artifacts")]
    assert lines({**VIDEO, "image_url": URL.format(2)}, usage) == [
        ("image", "1", "", "counted_artifacts"),
        ("video", "1", "", "counted_artifacts"),
    ]


@pytest.mark.parametrize("output", [*NONSENSE.values(), None, [], "x"])
@pytest.mark.parametrize("usage", [None, {}, [], "x", {"image_count": None}, {"image_count": 1.0}, {"image_count": []}])
def test_in_nonsense_nothing_is_counted_and_that_is_flagged(output: Any, usage: Any) -> None:
    ((unit, quantity, _, flag),) = lines(output, usage)
    assert (unit, quantity) == ("image", "0")
    assert flag in ("counted_artifacts", "unknown_usage")


@pytest.mark.parametrize("tier", ["a b", "x\x00", "\ud800", "x" * 41, 1.5, True, [], {}, "\u0661"])
def test_a_tier_that_no_price_could_name_is_left_out_and_flagged(tier: Any) -> None:
    assert lines(VIDEO, {"duration": 5, "SR": tier}) == [("video_second", "5", "", "unknown_usage")]


def test_inputs_that_cannot_be_counted_flag_the_outputs() -> None:
    usage = {"output_image_count": 1, "input_image_count": -2}
    assert lines(IMAGE, usage) == [("image", "1", "", "unknown_usage")]


# --- links ---------------------------------------------------------------------------------------------------------


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
