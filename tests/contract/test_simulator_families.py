"""Every family of models answers in its documented shape, counts in its documented units, and serves its files."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.simulator import BEIJING, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from app.simulator.catalogue import MODELS, Mode
from tests.contract.conftest import UpstreamCaller

IMAGE_GENERATION = "aigc/image-generation/generation"
MULTIMODAL = "aigc/multimodal-generation/generation"
TEXT2IMAGE = "aigc/text2image/image-synthesis"
IMAGE2IMAGE = "aigc/image2image/image-synthesis"
VIDEO = "aigc/video-generation/video-synthesis"
IMAGE2VIDEO = "aigc/image2video/video-synthesis"
TRANSCRIPTION = "audio/asr/transcription"

IN = "https://in.example.com"
SPOKEN = ["https://in.example.com/a.wav", "https://in.example.com/b.wav"]
FRANKFURT = "eu-central-1"

# What any model of the catalogue can be asked with.
ANY_INPUT = {
    "prompt": "a paper boat",
    "text": "boat",
    "title": "Boats",
    "function": "description_edit",
    "images": [f"{IN}/a.png"],
    "resources": [{"resource_id": "r-1", "resource_type": "facelora"}],
    "driven_id": "mengwa_kaixin",
    "target_lang": "en",
    "file_urls": SPOKEN,
    "shoe_image_url": [f"{IN}/shoe.png"],
    **{
        f"{name}_url": f"{IN}/{name}"
        for name in (
            *("image", "mask", "mask_image", "base_image", "sketch_image", "template_image", "coarse_image", "img"),
            *("person_image", "top_garment", "first_frame", "video", "audio"),
        )
    },
}


def asked(*images: str, text: str = "a paper boat") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": text}, *({"image": image} for image in images)]}]}


def chosen(*contents: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    choices = [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}} for content in contents]
    return {"finished": True, "choices": choices, **more}


def metrics(total: int, succeeded: int) -> dict[str, int]:
    return {"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": total - succeeded}


def linkless(value: Any) -> Any:
    """Put `LINK.<ending>` where links to result files stand."""
    match value:
        case dict():
            return {name: linkless(item) for name, item in value.items()}
        case list():
            return [linkless(item) for item in value]
        case str() if "/files/" in value and "Expires=" in value:
            return "LINK." + urlsplit(value).path.rpartition(".")[2]
        case _:
            return value


def links(value: Any) -> list[str]:
    """Find every link to a result file."""
    match value:
        case dict():
            return [link for item in value.values() for link in links(item)]
        case list():
            return [link for item in value for link in links(item)]
        case str() if "/files/" in value and "Expires=" in value:
            return [value]
        case _:
            return []


PNG = {"url": "LINK.png"}
TYPED = {"type": "image", "image": "LINK.png"}
UNTYPED = {"image": "LINK.png"}
PROMPTS = {"orig_prompt": "a paper boat", "actual_prompt": "a paper boat, in soft morning light"}

# model, service path, input, parameters, what is in `output` apart from the facts of the task, `usage`
TASKS: list[tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        *("wan2.6-t2i", IMAGE_GENERATION, asked(), {"n": 2, "size": "1280*1280"}),
        chosen([TYPED], [TYPED]),
        {"image_count": 2, "size": "1280*1280"},
    ),
    (
        *("wan2.7-image", IMAGE_GENERATION, asked(f"{IN}/1.png"), {"enable_sequential": True, "n": 5, "size": "1K"}),
        chosen(*[[TYPED]] * 5),
        {"image_count": 5, "size": "1280*1280", "input_tokens": 22, "output_tokens": 1000, "total_tokens": 1022},
    ),
    (
        *("qwen-image-3.0", IMAGE_GENERATION, asked(f"{IN}/1.png"), {"size": "1024*1024"}),
        chosen([UNTYPED]),
        {
            "output_width": 1024,
            "output_height": 1024,
            "input_image_count": 1,
            "input_image_type": "qima_input_1k",
            "output_image_count": 1,
            "output_image_type": "qima_output_1k",
        },
    ),
    (
        *("kling/kling-v3-image-generation", IMAGE_GENERATION, asked(), {"n": 3}),
        chosen([TYPED, TYPED, TYPED]),
        {"image_count": 3, "size": "1024*1024", "SR": "1K"},
    ),
    (
        *("wanx-style-repaint-v1", IMAGE_GENERATION, {"image_url": f"{IN}/1.png", "style_index": 3}, {}),
        {"results": [PNG], "task_metrics": metrics(1, 1)},
        {"image_count": 1},
    ),
    (
        *("wanx-v1", TEXT2IMAGE, {"prompt": "a paper boat"}, {"n": 2}),
        {"results": [{**PROMPTS, **PNG}] * 2, "task_metrics": metrics(2, 2)},
        {"image_count": 2},
    ),
    (
        *("qwen-image", TEXT2IMAGE, {"prompt": "a paper boat"}, {}),
        {"results": [{**PROMPTS, **PNG}], "task_metrics": metrics(1, 1)},
        {"image_count": 1},
    ),
    (
        *("wanx-poster-generation-v1", TEXT2IMAGE, {"title": "Boats", "generate_num": 2}, {}),
        {"render_urls": ["LINK.png"] * 2, "bg_urls": ["LINK.png"] * 2},
        {"image_count": 2},
    ),
    (
        *("wan2.5-i2i-preview", IMAGE2IMAGE, {"prompt": "a boat", "images": [f"{IN}/1.png"]}, {"n": 1}),
        {"results": [PNG], "task_metrics": metrics(1, 1)},
        {"image_count": 1},
    ),
    (
        *("qwen-mt-image", IMAGE2IMAGE, {"image_url": f"{IN}/1.png", "source_lang": "zh", "target_lang": "en"}, {}),
        {"image_url": "LINK.jpg"},
        {"image_count": 1},
    ),
    (
        *("aitryon", IMAGE2IMAGE, {"person_image_url": f"{IN}/1.png", "top_garment_url": f"{IN}/2.png"}, {}),
        {"image_url": "LINK.png"},
        {"image_count": 1},
    ),
    (
        *("image-instance-segmentation", IMAGE2IMAGE, {"image_url": f"{IN}/1.png"}, {}),
        {"output_image_url": "LINK.png", "output_vis_image_url": "LINK.png"},
        {"image_count": 1},
    ),
    (
        *("image-out-painting", "aigc/image2image/out-painting", {"image_url": f"{IN}/1.png"}, {"angle": 45}),
        {"output_image_url": "LINK.png"},
        {"image_count": 1},
    ),
    (
        "wanx-background-generation-v2",
        "aigc/background-generation/generation/",
        *({"base_image_url": f"{IN}/1.png", "ref_prompt": "a beach"}, {"n": 2}),
        {"results": [PNG, PNG], "task_metrics": metrics(2, 2)},
        {"image_count": 2},
    ),
    (
        "shoemodel-v1",
        "aigc/virtualmodel/generation",
        *({"template_image_url": f"{IN}/1.png", "shoe_image_url": [f"{IN}/2.png"]}, {}),
        {"result_url": "LINK.png"},
        {"image_count": 1},
    ),
    (
        *("wordart-semantic", "aigc/wordart/semantic", {"text": "boat", "prompt": "waves"}, {"n": 2}),
        {"results": [{"png_url": "LINK.png", "svg_url": "LINK.svg"}] * 2, "task_metrics": metrics(2, 2)},
        {"image_count": 2},
    ),
    (
        *("wan2.5-t2v-preview", VIDEO, {"prompt": "a paper boat"}, {"size": "1920*1080", "duration": 10}),
        {**PROMPTS, "video_url": "LINK.mp4"},
        {"video_duration": 10, "video_ratio": "1920*1080", "video_count": 1},
    ),
    (
        *("wan2.6-t2v", VIDEO, {"prompt": "a paper boat"}, {"resolution": "720P"}),
        {**PROMPTS, "video_url": "LINK.mp4"},
        {
            "duration": 5,
            "input_video_duration": 0,
            "output_video_duration": 5,
            "SR": 720,
            "size": "1280*720",
            "video_count": 1,
            "fps": 24,
            "ratio": "16:9",
        },
    ),
    (
        "wan2.6-r2v",
        VIDEO,
        *({"prompt": "a paper boat", "reference_video_urls": [f"{IN}/1.mp4"]}, {"size": "1080*1920", "duration": 10}),
        {**PROMPTS, "video_url": "LINK.mp4"},
        {
            "duration": 12,
            "input_video_duration": 2,
            "output_video_duration": 10,
            "SR": 1080,
            "size": "1080*1920",
            "video_count": 1,
            "fps": 24,
            "ratio": "9:16",
        },
    ),
    (
        *("wan2.2-s2v", IMAGE2VIDEO, {"image_url": f"{IN}/1.png", "audio_url": f"{IN}/1.wav"}, {}),
        {"results": {"video_url": "LINK.mp4"}},
        {"video_duration": 12.91, "video_ratio": "1:1"},
    ),
    (
        *("emoji-v1", IMAGE2VIDEO, {"image_url": f"{IN}/1.png", "driven_id": "mengwa_kaixin"}, {}),
        {"video_url": "LINK.mp4"},
        {"video_duration": 12.91, "video_ratio": "1:1"},
    ),
    (
        *("paraformer-v2", TRANSCRIPTION, {"file_urls": SPOKEN}, {}),
        {
            "results": [
                {"file_url": url, "transcription_url": "LINK.json", "subtask_status": "SUCCEEDED"} for url in SPOKEN
            ],
            "task_metrics": metrics(2, 2),
        },
        {"duration": 58},
    ),
    (
        *("qwen3-asr-flash-filetrans", TRANSCRIPTION, {"file_url": SPOKEN[0]}, {}),
        {"result": {"transcription_url": "LINK.json"}},
        {"duration": 25},
    ),
]

# model, input, parameters, what is in `output`, `usage`
CALLS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("wan2.6-t2i", asked(), {"n": 1}, chosen([TYPED]), {"image_count": 1, "size": "1280*1280"}),
    (
        *("qwen-image-max", asked(), {}),
        chosen([UNTYPED], task_metric=metrics(1, 1)),
        {"width": 1664, "height": 928, "image_count": 1},
    ),
    (
        *("qwen-image-2.0", asked(), {"n": 2, "size": "512*512"}),
        chosen([UNTYPED], [UNTYPED]),
        {"width": 512, "height": 512, "image_count": 2},
    ),
    (
        *("qwen-image-edit", asked(f"{IN}/1.png"), {}),
        chosen([UNTYPED]),
        {"width": 1024, "height": 1024, "image_count": 1},
    ),
    (
        *("z-image-turbo", asked(), {}),
        chosen([UNTYPED, {"text": "a paper boat"}]),
        {"width": 1024, "height": 1536, "image_count": 1},
    ),
]


async def create(upstream: UpstreamCaller, service: str, body: dict[str, Any]) -> str:
    answer = await upstream.call(service, body, X_DashScope_Async="enable")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["output"]["task_id"])


@pytest.mark.parametrize(
    ("model", "service", "given", "parameters", "output", "usage"), TASKS, ids=[case[0] for case in TASKS]
)
async def test_a_task_answers_in_the_shape_of_its_family(
    sim: Simulator,
    upstream: UpstreamCaller,
    model: str,
    service: str,
    given: dict[str, Any],
    parameters: dict[str, Any],
    output: dict[str, Any],
    usage: dict[str, Any],
) -> None:
    task_id = await create(upstream, service, {"model": model, "input": given, "parameters": parameters})
    sim.advance(1)
    body = (await upstream.query(task_id)).json()
    facts = {"task_id", "task_status", "submit_time", "scheduled_time", "end_time"}
    assert body["output"]["task_status"] == "SUCCEEDED"
    assert {name: linkless(value) for name, value in body["output"].items() if name not in facts} == output
    assert body["usage"] == usage
    [row] = (await upstream.list()).json()["data"]
    assert row["user_api_unique_key"] == f"apikey:v1:{service.rstrip('/').replace('/', ':')}:{model}"


@pytest.mark.parametrize(("model", "given", "parameters", "output", "usage"), CALLS, ids=[case[0] for case in CALLS])
async def test_a_synchronous_call_answers_with_choices_and_the_usage_of_its_model(
    upstream: UpstreamCaller,
    sim: Simulator,
    model: str,
    given: dict[str, Any],
    parameters: dict[str, Any],
    output: dict[str, Any],
    usage: dict[str, Any],
) -> None:
    sim.set_durations(0, 0)
    answer = await upstream.call(MULTIMODAL, {"model": model, "input": given, "parameters": parameters})
    body = answer.json()
    assert (answer.status_code, body.keys()) == (200, {"output", "usage", "request_id"})
    assert linkless(body["output"]) == output
    assert body["usage"] == usage


@pytest.mark.parametrize(
    ("model", "service"), [(model, service) for model, doors in MODELS.items() for service in doors]
)
async def test_every_model_answers_at_every_path_of_its_own(
    sim: Simulator, upstream: UpstreamCaller, model: str, service: str
) -> None:
    sim.set_durations(0, 0)
    body = {"model": model, "input": {**ANY_INPUT, **asked()}, "parameters": {}}
    if model == "wan2.6-image" or "edit" in model:
        body["input"].update(asked(f"{IN}/1.png"))
    for mode in MODELS[model][service].modes:
        if mode is Mode.ASYNC:
            answer = await upstream.query(await create(upstream, service, body))
        else:
            answer = await upstream.call(service, body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]
        assert links(answer.json()["output"])
    assert set(sim.truth.bill_units()[BEIJING]) == {model}


@pytest.mark.parametrize(
    ("model", "service", "given", "media_type", "start"),
    [
        ("wanx-v1", TEXT2IMAGE, {"prompt": "a"}, "image/png", b"\x89PNG"),
        ("qwen-mt-image", IMAGE2IMAGE, {"image_url": f"{IN}/1", "target_lang": "en"}, "image/jpeg", b"\xff\xd8\xff"),
        ("wan2.5-t2v-preview", VIDEO, {"prompt": "a"}, "video/mp4", b"\x00\x00\x00\x1cftypisom"),
        ("paraformer-v2", TRANSCRIPTION, {"file_urls": SPOKEN}, "application/json", b'{"file_url"'),
    ],
)
async def test_files_are_what_they_are_called(
    sim: Simulator,
    upstream: UpstreamCaller,
    model: str,
    service: str,
    given: dict[str, Any],
    media_type: str,
    start: bytes,
) -> None:
    sim.set_durations(0, 0)
    task_id = await create(upstream, service, {"model": model, "input": given})
    files = [await upstream.http.get(link) for link in links(await upstream.output(task_id))]
    [task] = sim.truth.tasks
    assert {file.headers["content-type"] for file in files} == {media_type}
    assert all(file.content.startswith(start) for file in files)
    assert [file.size_bytes for file in task.pictures] == [len(file.content) for file in files]
    assert len({file.content for file in files}) == len(files)


async def test_word_art_comes_as_png_and_as_svg(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    body = {"model": "wordart-semantic", "input": {"text": "<boat>", "prompt": "waves"}, "parameters": {"n": 1}}
    task_id = await create(upstream, "aigc/wordart/semantic", body)
    [result] = (await upstream.output(task_id))["results"]
    png, svg = [await upstream.http.get(result[name]) for name in ("png_url", "svg_url")]
    assert png.content.startswith(b"\x89PNG")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.text.startswith("<svg ")
    assert sim.truth.bill()[BEIJING] == {"wordart-semantic": 1}


async def test_a_transcription_speaks_of_its_own_recording(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    task_id = await create(upstream, TRANSCRIPTION, {"model": "fun-asr", "input": {"file_urls": SPOKEN}})
    results = (await upstream.output(task_id))["results"]
    texts = [json.loads((await upstream.http.get(result["transcription_url"])).content) for result in results]
    assert [text["file_url"] for text in texts] == SPOKEN
    assert texts[0]["transcripts"] != texts[1]["transcripts"]


async def test_a_lost_part_tells_why_and_is_not_billed(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    body = {"model": "wanx-v1", "input": {"prompt": "a [[partial]] boat"}, "parameters": {"n": 3}}
    output = await upstream.output(await create(upstream, TEXT2IMAGE, body))
    assert output["task_status"] == "SUCCEEDED"
    assert [sorted(result)[0] for result in output["results"]] == ["actual_prompt", "actual_prompt", "code"]
    assert output["task_metrics"] == metrics(3, 2)
    assert sim.truth.bill()[BEIJING] == {"wanx-v1": 2}


async def test_a_family_with_parts_counts_them_before_they_are_made(sim: Simulator, upstream: UpstreamCaller) -> None:
    good = await create(upstream, TEXT2IMAGE, {"model": "wanx-v1", "input": {"prompt": "a"}, "parameters": {"n": 3}})
    bad = await create(upstream, TEXT2IMAGE, {"model": "wanx-v1", "input": {"prompt": "[[broken]]"}})
    assert (await upstream.output(good))["task_metrics"] == {"TOTAL": 3, "SUCCEEDED": 0, "FAILED": 0}
    sim.advance(1)
    assert (await upstream.output(bad))["task_metrics"] == {"TOTAL": 4, "SUCCEEDED": 0, "FAILED": 4}


async def test_the_bill_counts_every_unit(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    orders = [
        ("qwen-image-3.0", IMAGE_GENERATION, asked(f"{IN}/1.png", f"{IN}/2.png"), {"n": 3}),
        ("wan2.6-r2v", VIDEO, {"prompt": "a", "reference_video_urls": [f"{IN}/1.mp4"]}, {"duration": 10}),
        ("wan2.2-s2v", IMAGE2VIDEO, {"image_url": f"{IN}/1.png", "audio_url": f"{IN}/1.wav"}, {}),
        ("paraformer-v2", TRANSCRIPTION, {"file_urls": SPOKEN}, {}),
        ("paraformer-v2", TRANSCRIPTION, {"file_urls": SPOKEN[:1]}, {}),
    ]
    for model, service, given, parameters in orders:
        await create(upstream, service, {"model": model, "input": given, "parameters": parameters})
    assert sim.truth.bill_units()[BEIJING] == {
        "qwen-image-3.0": {"image": 3, "input_image": 2},
        "wan2.6-r2v": {"video_second": 12},
        "wan2.2-s2v": {"video_second": Decimal("12.91")},
        "paraformer-v2": {"audio_second": 83},
    }
    assert sim.truth.bill()[BEIJING] == {"qwen-image-3.0": 3}


@pytest.mark.parametrize(
    ("model", "service", "given", "parameters", "message"),
    [
        ("wanx-v1", TEXT2IMAGE, {}, {}, "prompt is required"),
        ("wanx-v1", TEXT2IMAGE, {"prompt": None}, {}, "prompt is required"),
        ("wanx-v1", TEXT2IMAGE, [], {}, "prompt is required"),
        ("wanx-v1", TEXT2IMAGE, "a boat", {}, "Required body invalid"),
        ("wanx-v1", TEXT2IMAGE, {"prompt": "a"}, {"n": 5}, "n must be an integer between 1 and 4"),
        ("wanx-v1", TEXT2IMAGE, {"prompt": "a"}, {"size": "1K"}, "Expected format: '<width>*<height>'"),
        ("wanx-v1", TEXT2IMAGE, {"prompt": "a"}, {"size": "9999*9999"}, "total pixels"),
        ("qwen-image", TEXT2IMAGE, {"prompt": "a"}, {"n": 2}, "num_images_per_prompt must be 1"),
        ("qwen-image", TEXT2IMAGE, asked(), {}, "prompt is required"),
        ("qwen-image-3.0", IMAGE_GENERATION, asked(), {"size": "1K"}, "Expected format: '<width>*<height>'"),
        ("wan2.6-t2i", IMAGE_GENERATION, asked(f"{IN}/1.png"), {}, "between 0 and 0"),
        ("wan2.7-image", IMAGE_GENERATION, asked(), {"n": 5}, "n must be an integer between 1 and 4"),
        ("aitryon", IMAGE2IMAGE, {"person_image_url": "a"}, {}, "top_garment_url or bottom_garment_url is required"),
        ("wan2.5-t2v-preview", VIDEO, {"prompt": "a"}, {"duration": 0}, "duration must be an integer"),
        ("paraformer-v2", TRANSCRIPTION, {"file_urls": [1]}, {}, "a list of at most 100 URLs"),
        ("paraformer-v2", TRANSCRIPTION, {"file_urls": SPOKEN * 51}, {}, "a list of at most 100 URLs"),
    ],
)
async def test_what_a_family_refuses_is_an_invalid_parameter(
    sim: Simulator,
    upstream: UpstreamCaller,
    model: str,
    service: str,
    given: Any,
    parameters: dict[str, Any],
    message: str,
) -> None:
    body = {"model": model, "input": given, "parameters": parameters}
    answer = await upstream.call(service, body, X_DashScope_Async="enable")
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert message in answer.json()["message"]
    assert sim.truth.tasks == ()


@pytest.mark.parametrize(
    ("model", "service"),
    [("qwen-image-max", TEXT2IMAGE), ("wanx-v1", MULTIMODAL), ("wan2.2-s2v", VIDEO), ("wan2.6-t2v", IMAGE2VIDEO)],
)
async def test_a_model_at_a_path_of_another_family_is_a_url_error(
    upstream: UpstreamCaller, model: str, service: str
) -> None:
    answer = await upstream.call(service, {"model": model, "input": ANY_INPUT}, X_DashScope_Async="enable")
    assert (answer.status_code, answer.json()["message"]) == (400, "url error, please check url")


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    return answer.status_code, body["code"], body["message"]


@pytest.mark.parametrize(
    "model", ["qwen-image-max", "qwen-image-2.0", "z-image-turbo", "qwen-image", "wan2.6-image", "wan2.6-t2i"]
)
async def test_the_synchronous_path_refuses_the_async_header(upstream: UpstreamCaller, model: str) -> None:
    answer = await upstream.call(MULTIMODAL, {"model": model, "input": asked()}, X_DashScope_Async="enable")
    assert refusal(answer) == (403, "AccessDenied", "current user api does not support asynchronous calls")


@pytest.mark.parametrize(
    ("model", "service"),
    [("wan2.6-image", IMAGE_GENERATION), ("wanx-v1", TEXT2IMAGE), ("wan2.6-t2v", VIDEO), ("fun-asr", TRANSCRIPTION)],
)
@pytest.mark.parametrize("headers", [{}, {"X_DashScope_SSE": "enable"}], ids=["plain", "stream"])
async def test_an_async_only_path_refuses_a_call_without_the_async_header(
    upstream: UpstreamCaller, model: str, service: str, headers: dict[str, str]
) -> None:
    answer = await upstream.call(service, {"model": model, "input": ANY_INPUT}, **headers)
    assert refusal(answer) == (403, "AccessDenied", "current user api does not support synchronous calls")


async def test_frankfurt_makes_wan26_images_by_task_only(http: httpx.AsyncClient) -> None:
    keys = (SimulatorKey("k-1", FRANKFURT),)
    async with running_simulator(SimulatorOptions(keys=keys, duration_seconds=(0, 0))) as sim:
        upstream = UpstreamCaller(sim, http, FRANKFURT)
        body = upstream.order()
        assert refusal(await upstream.call(MULTIMODAL, body))[0] == 403
        other = await upstream.call(MULTIMODAL, {"model": "wan2.6-t2i", "input": asked()})
        await create(upstream, IMAGE_GENERATION, body)
    assert other.status_code == 200
