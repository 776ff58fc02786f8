"""What a team's program does with the vendor's SDK, the module-level API, which 1.x and 2.x share.

A case is a function that takes an end and returns what the SDK returned; nothing here knows what is right. CALM cases
can be played side by side; the others need a stage: test_sdk_at_both_ends.py sets it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from dashscope import ImageSynthesis, MultiModalConversation, VideoSynthesis
from dashscope.aigc.image_generation import AioImageGeneration, ImageGeneration
from dashscope.aigc.image_synthesis import AioImageSynthesis
from dashscope.aigc.multimodal_conversation import AioMultiModalConversation
from dashscope.aigc.video_synthesis import AioVideoSynthesis
from dashscope.audio.asr import Transcription

if TYPE_CHECKING:
    from tests.contract.sdk_program import End

MODEL = "wan2.6-image"
BOAT = "https://assets.example.com/boat.png"
FILM = "https://assets.example.com/boat.mp4"
SPOKEN = ["https://assets.example.com/1.wav", "https://assets.example.com/2.wav"]
SMALL = {"size": "768*768"}
NOT_A_TASK = "0385dc79-5ff8-4d82-bcb6-000000000000"
PICTURES = ("boat.png", "纸 船.png")  # in the folder of every end
LOOK_SECONDS = 0.2

Case = Callable[[Any], Any]
CALM: dict[str, Case] = {}


def calm(case: Case) -> Case:
    """Name a case that needs no stage."""
    CALM[case.__name__] = case
    return case


def asked(text: str, *images: str) -> list[dict[str, Any]]:
    """Return messages as the image models take them."""
    return [{"role": "user", "content": [{"text": text}, *({"image": image} for image in images)]}]


def edit(end: End, text: str = "a paper boat", **options: Any) -> dict[str, Any]:
    """Return the options of an edit by `wan2.6-image`."""
    return {"model": MODEL, "messages": asked(text, BOAT), "api_key": end.key, "n": 2, **SMALL, **options}


def guide(end: End, text: str = "folding", **options: Any) -> dict[str, Any]:
    """Return the options of an interleaved answer: the simulator makes two steps of "folding"."""
    more = {"enable_interleave": True, "max_images": 2, "n": 1, **SMALL, **options}
    return {"model": MODEL, "messages": asked(text), "api_key": end.key, **more}


def local(end: End) -> list[str]:
    """Return the end's own pictures, as the SDK wants local files named."""
    return [f"file://{end.folder / name}" for name in PICTURES]


def made(sdk_class: Any, end: End, **options: Any) -> list[Any]:
    """Create a task, and wait for it as the SDK waits: the receipt and the end."""
    receipt = sdk_class.async_call(api_key=end.key, **options)
    return [receipt, sdk_class.wait(receipt, api_key=end.key)]


def in_a_loop(making: Coroutine[Any, Any, Any]) -> Any:
    """Run one of the asyncio classes' calls."""
    return asyncio.run(making)


# ImageGeneration.


@calm
def image_generation_call(end: End) -> Any:
    return ImageGeneration.call(**edit(end))


@calm
def image_generation_call_in_a_workspace(end: End) -> Any:
    return ImageGeneration.call(**edit(end, workspace="llm-of-the-team", n=1))


@calm
def image_generation_call_of_a_text_model(end: End) -> Any:
    return ImageGeneration.call(model="wan2.6-t2i", messages=asked("a boat"), api_key=end.key, n=1, size="1280*1280")


@calm
def image_generation_stream(end: End) -> Any:
    return list(ImageGeneration.call(stream=True, **guide(end)))


@calm
def image_generation_stream_of_an_edit(end: End) -> Any:
    return list(ImageGeneration.call(stream=True, **edit(end)))


@calm
def image_generation_stream_of_something_forbidden(end: End) -> Any:
    return list(ImageGeneration.call(stream=True, **guide(end, "a [[forbidden]] guide")))


@calm
def image_generation_stream_refused(end: End) -> Any:
    return list(ImageGeneration.call(stream=True, **guide(end, max_images=9)))


@calm
def image_generation_task(end: End) -> Any:
    receipt = ImageGeneration.async_call(**edit(end))
    ended = ImageGeneration.wait(receipt, api_key=end.key)
    return [receipt, ended, ImageGeneration.fetch(receipt.output.task_id, api_key=end.key)]


@calm
def image_generation_interleaved_task(end: End) -> Any:
    return made(ImageGeneration, end, **{name: value for name, value in guide(end).items() if name != "api_key"})


@calm
def image_generation_failing(end: End) -> Any:
    receipts = [ImageGeneration.async_call(**edit(end, word)) for word in ("[[forbidden]]", "[[broken]]")]
    return [ImageGeneration.wait(receipt, api_key=end.key) for receipt in receipts]


@calm
def image_generation_failing_at_once(end: End) -> Any:
    return [ImageGeneration.call(**edit(end, word)) for word in ("[[forbidden]]", "[[broken]]")]


# ImageSynthesis.


@calm
def image_synthesis_call(end: End) -> Any:
    return ImageSynthesis.call(model="wanx2.1-t2i-turbo", prompt="a boat", n=2, api_key=end.key, size="1024*1024")


@calm
def image_synthesis_task(end: End) -> Any:
    receipt = ImageSynthesis.async_call(model="wan2.2-t2i-plus", prompt="a boat", n=2, api_key=end.key)
    return [receipt, ImageSynthesis.wait(receipt, api_key=end.key), ImageSynthesis.fetch(receipt, api_key=end.key)]


@calm
def image_synthesis_losing_a_part(end: End) -> Any:
    return ImageSynthesis.call(model="wan2.5-t2i-preview", prompt="a [[partial]] boat", n=3, api_key=end.key)


@calm
def image_synthesis_failing(end: End) -> Any:
    return ImageSynthesis.call(model="wanx-v1", prompt="a [[broken]] boat", n=2, api_key=end.key)


@calm
def image_synthesis_at_once(end: End) -> Any:
    return ImageSynthesis.sync_call(model="wan2.2-t2i-flash", prompt="a boat", n=1, api_key=end.key)


@calm
def image_synthesis_at_once_losing_a_part(end: End) -> Any:
    return ImageSynthesis.sync_call(model="wan2.2-t2i-flash", prompt="a [[partial]] boat", n=2, api_key=end.key)


@calm
def image_synthesis_of_images(end: End) -> Any:
    model = "wan2.5-i2i-preview"
    return made(ImageSynthesis, end, model=model, prompt="a boat", images=[BOAT, BOAT], n=2, size="768*768")


@calm
def image_synthesis_editing(end: End) -> Any:
    options = {"function": "description_edit", "base_image_url": BOAT, "n": 2}
    return made(ImageSynthesis, end, model="wanx2.1-imageedit", prompt="a red boat", **options)


# MultiModalConversation.


def conversation(end: End, model: str, *images: str, **options: Any) -> Any:
    """Make a picture by conversation."""
    return MultiModalConversation.call(model=model, messages=asked("a boat", *images), api_key=end.key, **options)


@calm
def conversation_with_qwen_image_max(end: End) -> Any:
    return conversation(end, "qwen-image-max", size="1328*1328")


@calm
def conversation_with_qwen_image_plus(end: End) -> Any:
    return conversation(end, "qwen-image-plus")


@calm
def conversation_with_qwen_image_2(end: End) -> Any:
    return conversation(end, "qwen-image-2.0", n=2, size="512*512")


@calm
def conversation_with_qwen_image_3(end: End) -> Any:
    return conversation(end, "qwen-image-3.0", BOAT, n=2, size="512*512")


@calm
def conversation_with_qwen_image_edit(end: End) -> Any:
    return conversation(end, "qwen-image-edit", BOAT)


@calm
def conversation_with_z_image(end: End) -> Any:
    return conversation(end, "z-image-turbo")


@calm
def conversation_with_wan_26(end: End) -> Any:
    return conversation(end, MODEL, BOAT, n=1, **SMALL)


@calm
def conversation_streamed(end: End) -> Any:
    return list(conversation(end, "qwen-image-2.0", stream=True))


@calm
def conversation_about_something_forbidden(end: End) -> Any:
    messages = asked("a [[forbidden]] boat")
    return MultiModalConversation.call(model="qwen-image-2.0", messages=messages, api_key=end.key)


# VideoSynthesis and Transcription.


@calm
def video_of_a_text(end: End) -> Any:
    models = {"wan2.5-t2v-preview": {}, "wan2.6-t2v": {"duration": 10, "size": "1920*1080"}}
    return [made(VideoSynthesis, end, model=model, prompt="a boat", **options) for model, options in models.items()]


@calm
def video_of_an_image(end: End) -> Any:
    return VideoSynthesis.call(model="wan2.5-i2v-preview", prompt="a boat", img_url=BOAT, api_key=end.key)


@calm
def video_of_two_frames(end: End) -> Any:
    frames = {"first_frame_url": BOAT, "last_frame_url": BOAT}
    return made(VideoSynthesis, end, model="wan2.2-kf2v-flash", prompt="a boat", **frames)


@calm
def video_of_videos(end: End) -> Any:
    return made(VideoSynthesis, end, model="wan2.6-r2v", prompt="a boat", reference_video_urls=[FILM], duration=5)


@calm
def transcription_call(end: End) -> Any:
    return Transcription.call(model="paraformer-v2", file_urls=SPOKEN, api_key=end.key)


@calm
def transcription_task(end: End) -> Any:
    receipt = Transcription.async_call(model="qwen3-asr-flash-filetrans", file_urls=SPOKEN[:1], api_key=end.key)
    return [receipt, Transcription.wait(receipt, api_key=end.key), Transcription.fetch(receipt, api_key=end.key)]


# The asyncio classes, which read tasks with a slash behind the id. There is none for transcriptions.


@calm
def aio_image_generation_call(end: End) -> Any:
    return in_a_loop(AioImageGeneration.call(**edit(end, n=1)))


@calm
def aio_image_generation_stream(end: End) -> Any:
    async def read() -> list[Any]:
        return [part async for part in await AioImageGeneration.call(stream=True, **guide(end))]

    return in_a_loop(read())


@calm
def aio_image_generation_task(end: End) -> Any:
    return in_a_loop(_aio_task(AioImageGeneration, end, **edit(end)))


@calm
def aio_image_synthesis(end: End) -> Any:
    return in_a_loop(AioImageSynthesis.call(model="wan2.2-t2i-plus", prompt="a boat", n=1, api_key=end.key))


@calm
def aio_image_synthesis_task(end: End) -> Any:
    options = {"model": "wan2.5-i2i-preview", "prompt": "a boat", "images": [BOAT], "n": 1, "api_key": end.key}
    return in_a_loop(_aio_task(AioImageSynthesis, end, **options))


@calm
def aio_image_synthesis_at_once(end: End) -> Any:
    return in_a_loop(AioImageSynthesis.sync_call(model="wan2.2-t2i-flash", prompt="a boat", n=1, api_key=end.key))


@calm
def aio_conversation(end: End) -> Any:
    messages = asked("a boat")
    return in_a_loop(AioMultiModalConversation.call(model="qwen-image-2.0", messages=messages, api_key=end.key))


@calm
def aio_video(end: End) -> Any:
    return in_a_loop(AioVideoSynthesis.call(model="wan2.5-t2v-preview", prompt="a boat", api_key=end.key))


@calm
def aio_video_task(end: End) -> Any:
    options = {"model": "wan2.6-i2v", "prompt": "a boat", "img_url": BOAT, "api_key": end.key}
    return in_a_loop(_aio_task(AioVideoSynthesis, end, **options))


async def _aio_task(sdk_class: Any, end: End, **options: Any) -> list[Any]:
    receipt = await sdk_class.async_call(**options)
    key = {"api_key": end.key}
    ended = await sdk_class.wait(receipt, **key)
    after = [await sdk_class.fetch(receipt, **key), await sdk_class.cancel(receipt, **key)]
    return [receipt, ended, *after, await sdk_class.list(**key)]


# Local files.


@calm
def local_files_in_messages(end: End) -> Any:
    first, second = local(end)
    task = made(ImageGeneration, end, model=MODEL, messages=asked("a boat", first, second), n=1, **SMALL)
    return [task, ImageGeneration.call(**edit(end, messages=asked("a boat", second), n=1))]


@calm
def local_files_in_a_conversation(end: End) -> Any:
    plain = str(end.folder / PICTURES[0])  # without a scheme
    return conversation(end, "qwen-image-edit-plus", plain, local(end)[1], n=1)


@calm
def local_files_beside_a_prompt(end: End) -> Any:
    first, second = local(end)
    named = {"function": "description_edit_with_mask", "base_image_url": first, "mask_image_url": second}
    return [
        made(ImageSynthesis, end, model="wanx2.1-imageedit", prompt="a boat", n=1, **named),
        made(ImageSynthesis, end, model="wan2.5-i2i-preview", prompt="a boat", images=[first, second], n=1),
    ]


@calm
def local_file_of_a_video(end: End) -> Any:
    return made(VideoSynthesis, end, model="wan2.5-i2v-preview", prompt="a boat", img_url=local(end)[0])


@calm
def local_file_under_asyncio(end: End) -> Any:
    return in_a_loop(AioImageGeneration.call(**edit(end, messages=asked("a boat", local(end)[0]), n=1)))


@calm
def local_file_that_is_not_there(end: End) -> Any:
    return ImageGeneration.call(**edit(end, messages=asked("a boat", f"file://{end.folder / 'no.png'}"), n=1))


# Lists, cancels, and what they say of tasks that are none.


@calm
def listing(end: End) -> Any:
    """List what was made, by everything that a list can be asked for."""
    receipts = [made(ImageGeneration, end, **_without_key(edit(end)))[0]]
    receipts += [made(ImageGeneration, end, **_without_key(edit(end, "[[forbidden]]")))[0]]
    receipts += [made(Transcription, end, model="paraformer-v2", file_urls=SPOKEN)[0]]
    every = ImageGeneration.list(api_key=end.key)
    asked_for: list[dict[str, Any]] = [
        *({"status": status} for status in ("SUCCEEDED", "FAILED", "CANCELED", "PENDING", "NONSENSE")),
        *({"model_name": model} for model in (MODEL, "paraformer-v2", "no-model")),
        *({"page_no": page, "page_size": 2} for page in (1, 2, 3)),
        {"page_size": 1000},
        {"start_time": "20200101000000", "end_time": "20200101120000"},
        {"region": "cn-beijing"},
        {"region": "nowhere"},
        {"api_key_id": every.output["data"][0]["api_key_id"]},
        {"api_key_id": "1"},
        {"model_name": MODEL, "status": "SUCCEEDED", "page_size": 5},
    ]
    newest_first = [receipt.request_id for receipt in reversed(receipts)]
    return [
        [row["request_id"] for row in every.output["data"]] == newest_first,
        every,
        *(ImageGeneration.list(api_key=end.key, **options) for options in asked_for),
    ]


@calm
def listing_nonsense(end: End) -> Any:
    nonsense: list[dict[str, Any]] = [
        {"start_time": "yesterday"},
        {"start_time": "20200101000000", "end_time": "20200103000000"},
        {"page_no": 0},
        {"page_size": -1},
        {"page_size": "many"},
    ]
    return [ImageGeneration.list(api_key=end.key, **options) for options in nonsense]


@calm
def cancelling_what_has_ended(end: End) -> Any:
    receipt, ended = made(ImageGeneration, end, **_without_key(edit(end)))
    return [ended, ImageGeneration.cancel(receipt, api_key=end.key), ImageGeneration.fetch(receipt, api_key=end.key)]


@calm
def tasks_that_are_none(end: End) -> Any:
    ids = (NOT_A_TASK, "no-id-at-all")
    calls = (ImageGeneration.fetch, ImageGeneration.wait, ImageGeneration.cancel)
    return [call(task_id, api_key=end.key) for call in calls for task_id in ids]


# Refusals.


@calm
def bad_parameters(end: End) -> Any:
    bad: list[dict[str, Any]] = [
        {"size": "1280x1280"},
        {"size": "100000*100000"},
        {"n": 9},
        {"n": "two"},
        {"seed": -1},
        {"messages": asked("no image")},
        {"messages": asked("a boat", *[BOAT] * 5)},
        {"messages": [*asked("one", BOAT), *asked("two", BOAT)]},
        {"messages": [{"role": "user", "content": []}]},
    ]
    calls = (ImageGeneration.async_call, ImageGeneration.call)
    return [call(**edit(end, **options)) for call in calls for options in bad]


@calm
def bad_parameters_of_other_families(end: End) -> Any:
    key = {"api_key": end.key}
    return [
        ImageSynthesis.async_call(model="wanx-v1", prompt="a boat", n=9, **key),
        ImageSynthesis.sync_call(model="wan2.2-t2i-flash", prompt="a boat", size="1K", **key),
        conversation(end, "qwen-image-2.0", n=99),
        conversation(end, "qwen-image-max", n=2),
        VideoSynthesis.async_call(model="wan2.5-t2v-preview", prompt="a boat", duration=0, **key),
        VideoSynthesis.async_call(model="wan2.2-kf2v-flash", prompt="a boat", **key),
        Transcription.async_call(model="paraformer-v2", file_urls=[], **key),
        Transcription.async_call(model="paraformer-v2", file_urls=["https://in.example.com/1.wav"] * 101, **key),
    ]


@calm
def unknown_models(end: End) -> Any:
    return [
        ImageGeneration.async_call(**edit(end, model="wan99-image")),
        ImageGeneration.call(**edit(end, model="wan99-image")),
        *ImageGeneration.call(stream=True, **edit(end, model="wan99-image")),
        ImageSynthesis.async_call(model="wan99-t2i", prompt="a boat", api_key=end.key),
        conversation(end, "no model"),
    ]


@calm
def models_at_paths_of_others(end: End) -> Any:
    return [
        ImageGeneration.async_call(**edit(end, model="wanx-v1")),
        ImageGeneration.call(**edit(end, model="wanx-v1")),
        ImageSynthesis.async_call(model="wan2.6-t2v", prompt="a boat", api_key=end.key),
        ImageSynthesis.async_call(model="paraformer-v2", prompt="a boat", api_key=end.key),
        VideoSynthesis.async_call(model="wan2.2-t2i-plus", prompt="a boat", api_key=end.key),
    ]


@calm
def wrong_keys(end: End) -> Any:
    wrong = {"api_key": "sk-wrong"}
    return [
        ImageGeneration.async_call(**edit(end, **wrong)),
        ImageGeneration.call(**edit(end, **wrong)),
        *ImageGeneration.call(stream=True, **edit(end, **wrong)),
        ImageGeneration.fetch(NOT_A_TASK, **wrong),
        ImageGeneration.wait(NOT_A_TASK, **wrong),
        ImageGeneration.cancel(NOT_A_TASK, **wrong),
        ImageGeneration.list(**wrong),
        in_a_loop(AioImageGeneration.fetch(NOT_A_TASK, **wrong)),
    ]


@calm
def wrong_key_of_an_upload(end: End) -> Any:
    return ImageGeneration.call(**edit(end, messages=asked("a boat", local(end)[0]), api_key="sk-wrong"))


# On a stage.


def cancelling_what_waits(end: End) -> Any:
    """Cancel a task that waits, twice: the second time it is too late. For a stage where nothing runs."""
    receipt = ImageGeneration.async_call(**edit(end))
    before = ImageGeneration.fetch(receipt, api_key=end.key)
    cancels = [ImageGeneration.cancel(receipt, api_key=end.key) for _ in range(2)]
    ended = ImageGeneration.wait(receipt, api_key=end.key)
    return [receipt, before, *cancels, ended, ImageGeneration.list(api_key=end.key)]


def cancelling_a_queue(end: End) -> Any:
    """Cancel more tasks than may run."""
    options = {"model": "wan2.7-image", "messages": asked("a boat"), "api_key": end.key, "n": 1}
    receipts = [ImageGeneration.async_call(**options) for _ in range(6)]
    cancels = [ImageGeneration.cancel(receipt, api_key=end.key) for receipt in reversed(receipts)]
    return [receipts, cancels, [ImageGeneration.wait(receipt, api_key=end.key) for receipt in receipts]]


def cancelling_under_asyncio(end: End) -> Any:
    """As cancelling_what_waits."""

    async def cancel() -> list[Any]:
        receipt = await AioImageGeneration.async_call(**edit(end))
        key = {"api_key": end.key}
        return [await AioImageGeneration.cancel(receipt, **key), await AioImageGeneration.wait(receipt, **key)]

    return in_a_loop(cancel())


def cancelling_what_runs(end: End) -> Any:
    """Cancel a task that is being worked on. For a stage where work takes seconds."""
    receipt = ImageGeneration.async_call(**edit(end))
    while (running := ImageGeneration.fetch(receipt, api_key=end.key)).output.task_status == "PENDING":
        time.sleep(LOOK_SECONDS)
    refused = ImageGeneration.cancel(receipt, api_key=end.key)
    return [running, refused, ImageGeneration.wait(receipt, api_key=end.key)]


def waiting_through_trouble(end: End) -> Any:
    """Wait for a task. For a stage where reads fail."""
    return made(ImageGeneration, end, **_without_key(edit(end)))


def making_in_spite_of_all(end: End) -> Any:
    """Make pictures in each way, whatever comes."""
    task = play_safely(lambda: made(ImageGeneration, end, **_without_key(edit(end))))
    return [task, play_safely(lambda: ImageGeneration.call(**edit(end)))]


def streaming_in_spite_of_all(end: End) -> Any:
    """Read a stream as far as it comes."""
    parts: list[Any] = []

    def read() -> None:
        parts.extend(iter(ImageGeneration.call(stream=True, **guide(end))))

    return [parts, play_safely(read)]


def play_safely(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or what it raises."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - that is what its caller finds
        return error


# Wanted differences.


def forms_that_the_models_do_not_have(end: End) -> Any:
    """Ask for an answer at once where there are only tasks, and where there are only streams."""
    options = {"model": "wanx-v1", "prompt": "a boat", "n": 1, "api_key": end.key}
    return [ImageSynthesis.sync_call(**options), ImageGeneration.call(**guide(end))]


def _without_key(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "api_key"}
