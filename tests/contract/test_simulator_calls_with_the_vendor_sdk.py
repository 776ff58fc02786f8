"""The unmodified `dashscope` package calls every kind of service of the simulator: at once, streamed, by task.

The SDK blocks, so its calls run in a thread, and the base URL is set where the SDK documents it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
import dashscope
import pytest
from dashscope import ImageSynthesis, MultiModalConversation, VideoSynthesis
from dashscope.aigc.image_generation import AioImageGeneration, ImageGeneration
from dashscope.audio.asr import Transcription

from app.simulator import BEIJING, Simulator
from app.simulator.calls import CallState
from tests.contract.test_simulator_sync import until

MODEL = "wan2.6-image"
BOAT = "https://assets.example.com/boat.png"
EDIT = [{"role": "user", "content": [{"text": "a paper boat"}, {"image": BOAT}]}]
GUIDE = [{"role": "user", "content": [{"text": "folding"}]}]  # in two steps

Sdk = Callable[..., Any]


@pytest.fixture
def sdk(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """Call a method of one of the SDK's classes with the region's key, in a thread."""
    monkeypatch.setattr(dashscope, "base_http_api_url", sim.base_url(BEIJING))

    async def call(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(method, *args, **{"api_key": sim.key(BEIJING), **options})

    return call


async def when_begun(sim: Simulator, calling: Any) -> Any:
    """Let time pass once the upstream works on a synchronous call, and return the call's answer."""
    sending = asyncio.ensure_future(calling)
    await until(lambda: sim.truth.calls or sending.done())
    sim.advance(600)
    return await sending


def stream(**options: Any) -> Sequence[Any]:
    """Read a stream of `ImageGeneration` to its end."""
    return list(ImageGeneration.call(stream=True, **options))


async def test_image_generation_answers_at_once(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(60, 60)
    result = await when_begun(sim, sdk(ImageGeneration.call, model=MODEL, messages=EDIT, n=2, size="768*768"))
    assert result.status_code == HTTPStatus.OK
    assert [choice.finish_reason for choice in result.output.choices] == ["stop", "stop"]
    assert [choice.message.content[0]["type"] for choice in result.output.choices] == ["image", "image"]
    assert dict(result.usage)["image_count"] == 2
    assert sim.truth.bill()[BEIJING] == {MODEL: 2}


async def test_image_generation_answers_at_once_under_asyncio(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(0, 0)
    options = {"model": MODEL, "messages": EDIT, "n": 1, "size": "768*768", "api_key": sim.key(BEIJING)}
    async with aiohttp.ClientSession() as session:  # its own, or the SDK leaves one open
        result = await AioImageGeneration.call(session=session, **options)
    assert result.status_code == HTTPStatus.OK
    assert len(result.output.choices) == 1


async def test_image_generation_streams_text_and_pictures(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(60, 60)
    options = {"enable_interleave": True, "max_images": 2, "size": "768*768"}
    parts = await when_begun(sim, sdk(stream, model=MODEL, messages=GUIDE, **options))
    items = [part.output.choices[0].message.content[0] for part in parts]
    assert {part.status_code for part in parts} == {HTTPStatus.OK}
    assert "".join(item["text"] for item in items[:5]) == "Step 1 of 2: folding"
    assert [item["type"] for item in items] == [*["text"] * 5, "image", *["text"] * 5, "image"]
    assert [part.output.choices[0].finish_reason for part in parts] == ["null"] * 11 + ["stop"]
    assert dict(parts[-1].usage)["image_count"] == 2
    assert sim.truth.calls[0].state is CallState.SUCCEEDED


async def test_an_error_event_reaches_the_reader(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "error_event", after_events=1, status=400, code="DataInspectionFailed", message="no")
    first, last = await sdk(stream, model=MODEL, messages=GUIDE, enable_interleave=True, max_images=2)
    assert first.status_code == HTTPStatus.OK
    assert (last.status_code, last.code, last.message) == (HTTPStatus.BAD_REQUEST, "DataInspectionFailed", "no")


async def test_a_refused_stream_is_an_error(sim: Simulator, sdk: Sdk) -> None:
    [refusal] = await sdk(stream, model=MODEL, messages=GUIDE, enable_interleave=True, max_images=9)
    assert (refusal.status_code, refusal.code) == (HTTPStatus.BAD_REQUEST, "InvalidParameter")


async def test_a_broken_stream_raises(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "break", after_events=3)
    with pytest.raises(Exception, match="ended prematurely"):
        await sdk(stream, model=MODEL, messages=GUIDE, enable_interleave=True, max_images=2)


async def test_multimodal_conversation_makes_a_picture(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(0, 0)
    messages = [{"role": "user", "content": [{"text": "a paper boat"}]}]
    result = await sdk(MultiModalConversation.call, model="qwen-image-max", messages=messages, size="1328*1328")
    assert result.status_code == HTTPStatus.OK
    assert result.output.choices[0].message.content[0]["image"].startswith(f"http://{sim.file_host}/files/")
    usage = dict(result.usage)
    assert (usage["width"], usage["height"], usage["image_count"]) == (1328, 1328, 1)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("wan2.2-t2i-plus", {"n": 2}),
        ("wanx2.1-imageedit", {"n": 2, "function": "description_edit", "base_image_url": BOAT}),
        ("wan2.5-i2i-preview", {"n": 2, "images": [BOAT]}),
    ],
)
async def test_image_synthesis_makes_a_task(sim: Simulator, sdk: Sdk, model: str, options: dict[str, Any]) -> None:
    receipt = await sdk(ImageSynthesis.async_call, model=model, prompt="a paper boat", **options)
    assert receipt.output.task_status == "PENDING"
    sim.advance(1)
    result = await sdk(ImageSynthesis.wait, receipt)
    assert result.output.task_status == "SUCCEEDED"
    assert [".png?Expires=" in made.url for made in result.output.results] == [True, True]
    assert result.usage.image_count == 2
    assert result.output.task_metrics == {"TOTAL": 2, "SUCCEEDED": 2, "FAILED": 0}


async def test_image_synthesis_answers_at_once_for_two_models(sim: Simulator, sdk: Sdk) -> None:
    sim.set_durations(0, 0)
    result = await sdk(ImageSynthesis.sync_call, model="wan2.2-t2i-flash", prompt="a paper boat", n=1)
    assert (result.status_code, len(result.output.results), result.usage.image_count) == (HTTPStatus.OK, 1, 1)
    refusal = await sdk(ImageSynthesis.sync_call, model="wanx-v1", prompt="a paper boat", n=1)
    assert (refusal.status_code, refusal.code) == (HTTPStatus.FORBIDDEN, "AccessDenied")
    assert sim.truth.tasks == ()


async def test_a_sync_only_model_refuses_a_task(sdk: Sdk) -> None:
    refusal = await sdk(ImageGeneration.async_call, model="qwen-image-2.0", messages=EDIT)
    assert (refusal.status_code, refusal.message) == (HTTPStatus.BAD_REQUEST, "url error, please check url")


@pytest.mark.parametrize(
    ("model", "options", "usage"),
    [
        ("wan2.5-t2v-preview", {}, {"video_duration": 5, "video_ratio": "1280*720", "video_count": 1}),
        ("wan2.5-i2v-preview", {"img_url": BOAT}, {"video_duration": 5, "video_ratio": "1280*720", "video_count": 1}),
        ("wan2.6-t2v", {"duration": 10, "size": "1920*1080"}, {"duration": 10, "SR": 1080, "size": "1920*1080"}),
    ],
)
async def test_video_synthesis_makes_a_film(
    sim: Simulator, sdk: Sdk, model: str, options: dict[str, Any], usage: dict[str, Any]
) -> None:
    receipt = await sdk(VideoSynthesis.async_call, model=model, prompt="a paper boat sails", **options)
    sim.advance(1)
    result = await sdk(VideoSynthesis.wait, receipt)
    assert result.output.task_status == "SUCCEEDED"
    assert ".mp4?Expires=" in result.output.video_url
    assert usage.items() <= dict(result.usage).items()


async def test_video_synthesis_from_two_frames_has_its_result_in_an_object(sim: Simulator, sdk: Sdk) -> None:
    frames = {"first_frame_url": BOAT, "last_frame_url": BOAT}
    receipt = await sdk(VideoSynthesis.async_call, model="wan2.2-kf2v-flash", prompt="a boat", **frames)
    sim.advance(1)
    result = await sdk(VideoSynthesis.wait, receipt)
    assert ".mp4?Expires=" in result.output["results"]["video_url"]
    assert result.usage.video_ratio == "standard"


async def test_transcription_reads_recordings(sim: Simulator, sdk: Sdk) -> None:
    urls = ["https://assets.example.com/1.wav", "https://assets.example.com/2.wav"]
    receipt = await sdk(Transcription.async_call, model="paraformer-v2", file_urls=urls)
    sim.advance(1)
    result = await sdk(Transcription.wait, receipt)
    assert result.output.task_status == "SUCCEEDED"
    assert [made["file_url"] for made in result.output["results"]] == urls
    assert [made["subtask_status"] for made in result.output["results"]] == ["SUCCEEDED", "SUCCEEDED"]
    assert result.usage["duration"] == sim.truth.bill_units()[BEIJING]["paraformer-v2"]["audio_second"]
