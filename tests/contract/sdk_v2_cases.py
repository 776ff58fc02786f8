"""What a team's program does with the `dashscope.v2` client, which 2.x has beside the older API. As sdk_cases.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dashscope
from dashscope.v2.errors import DashScopeError

if TYPE_CHECKING:
    from tests.contract.sdk_program import End

MODEL = "wan2.6-image"
BOAT = "https://assets.example.com/boat.png"
FILM = "https://assets.example.com/boat.mp4"
SPOKEN = ["https://assets.example.com/1.wav", "https://assets.example.com/2.wav"]
EDIT: dict[str, Any] = {"model": MODEL, "prompt": "a boat", "image_urls": [BOAT], "n": 2, "size": "768x768"}
NOT_A_TASK = "0385dc79-5ff8-4d82-bcb6-000000000000"
PICTURES = ("boat.png", "纸 船.png")
LOOK_SECONDS = 0.2

Case = Callable[[Any], Any]
CALM: dict[str, Case] = {}


def calm(case: Case) -> Case:
    """Name a case that needs no stage."""
    CALM[case.__name__] = case
    return case


def client(end: End, **options: Any) -> Any:
    """Open the client."""
    return dashscope.Client(**{"api_key": end.key, "base_url": end.base_url, **options})


def attempted(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or what it raises."""
    try:
        return call()
    except DashScopeError as error:
        return error


@calm
def images_at_once(end: End) -> Any:
    with client(end) as there:
        made = there.images.generate(**EDIT)
        return [made, made.image_urls, made.succeeded]


@calm
def images_of_a_text_at_once(end: End) -> Any:
    with client(end) as there:
        return there.images.generate(model="wan2.6-t2i", prompt="a boat", n=1)


@calm
def images_by_task(end: End) -> Any:
    with client(end) as there:
        made = there.images.generate(model="wan2.2-t2i-plus", prompt="a boat", n=2, size="512x512")
        return [made, made.image_urls]


@calm
def images_step_by_step(end: End) -> Any:
    with client(end) as there:
        jobs = there.images.jobs
        created = jobs.create(**EDIT)
        done = jobs.wait(created)
        return [
            created,
            done,
            done.image_urls,
            jobs.fetch(created.task_id),
            attempted(lambda: jobs.cancel(done.task_id)),
        ]


@calm
def images_of_local_files(end: End) -> Any:
    files = [f"file://{end.folder / name}" for name in PICTURES]
    with client(end) as there:
        created = there.images.jobs.create(**{**EDIT, "image_urls": files, "n": 1})
        return [there.images.jobs.wait(created), there.images.generate(**{**EDIT, "image_urls": files[1:], "n": 1})]


@calm
def images_under_asyncio(end: End) -> Any:
    async def make() -> Any:
        async with dashscope.AsyncClient(api_key=end.key, base_url=end.base_url) as there:
            jobs = there.images.jobs
            created = await jobs.create(**EDIT)
            return [created, await jobs.wait(created), await there.images.generate(**EDIT)]

    return asyncio.run(make())


@calm
def images_that_fail(end: End) -> Any:
    with client(end) as there:
        calls = [(call, word) for call in ("create", "generate") for word in ("[[forbidden]]", "[[broken]]")]
        options = {"max_retries": 0}
        with client(end, **options) as once:
            found = [
                attempted(lambda word=word: once.images.generate(**{**EDIT, "prompt": word}))  # type: ignore[misc]
                for call, word in calls
                if call == "generate"
            ]
        jobs = there.images.jobs
        created = [jobs.create(**{**EDIT, "prompt": word}) for call, word in calls if call == "create"]
        return [*found, *(attempted(lambda job=job: jobs.wait(job)) for job in created)]  # type: ignore[misc]


@calm
def errors_as_answers(end: End) -> Any:
    with client(end, raise_on_error=False) as there:
        jobs = there.images.jobs
        failed = jobs.wait(jobs.create(**{**EDIT, "prompt": "[[forbidden]]"}))
        return [failed, jobs.create(**{**EDIT, "size": "1x1"}), jobs.cancel(failed.task_id), jobs.fetch(NOT_A_TASK)]


@calm
def refusals(end: End) -> Any:
    with client(end) as there, client(end, api_key="sk-wrong") as stranger:
        return [
            attempted(lambda: there.images.generate(**{**EDIT, "n": 9})),
            attempted(lambda: there.images.jobs.create(**{**EDIT, "image_urls": [BOAT] * 5})),
            attempted(lambda: there.images.generate(model="wan99-t2i", prompt="a boat")),
            attempted(lambda: there.images.jobs.create(model="wan99-t2i", prompt="a boat")),
            attempted(lambda: there.images.jobs.create(model="paraformer-v2", prompt="a boat")),
            attempted(lambda: there.images.jobs.list(page_no=0)),
            attempted(lambda: stranger.images.generate(**EDIT)),
            attempted(lambda: stranger.images.jobs.fetch(NOT_A_TASK)),
            attempted(stranger.images.jobs.list),
        ]


@calm
def videos(end: End) -> Any:
    with client(end) as there:
        made = [
            there.videos.generate(model="wan2.5-t2v-preview", prompt="a boat"),
            there.videos.generate(model="wan2.5-i2v-preview", prompt="a boat", image_url=BOAT),
            there.videos.generate(model="wan2.6-t2v", prompt="a boat", duration=10, size="1920*1080"),
        ]
        return [made, [film.video_url for film in made]]


@calm
def transcriptions(end: End) -> Any:
    with client(end) as there:
        heard = there.audio.asr.transcribe(SPOKEN, model="paraformer-v2")
        return [heard, heard.results]


@calm
def conversations(end: End) -> Any:
    messages = [{"role": "user", "content": [{"text": "a boat"}]}]
    with client(end) as there:
        return attempted(lambda: there.multimodal.chat.create(model="qwen-image-2.0", messages=messages))


@calm
def listing(end: End) -> Any:
    """List two tasks. The client reads `tasks`, which DashScope does not have: see test_sdk_at_both_ends.py."""
    with client(end) as there:
        jobs = there.images.jobs
        for word in ("a boat", "[[forbidden]]"):
            attempted(lambda word=word: jobs.wait(jobs.create(**{**EDIT, "prompt": word})))  # type: ignore[misc]
        return [jobs.list(), jobs.list(status="FAILED"), jobs.list(page_no=2, page_size=1), jobs.list(status="PENDING")]


# On a stage.


def cancelling_what_waits(end: End) -> Any:
    with client(end) as there:
        jobs = there.images.jobs
        waiting = jobs.create(**EDIT)
        cancelled = [attempted(lambda: jobs.cancel(waiting.task_id)) for _ in range(2)]
        return [cancelled, jobs.fetch(waiting.task_id), attempted(lambda: jobs.wait(waiting))]


def cancelling_what_runs(end: End) -> Any:
    with client(end) as there:
        jobs = there.images.jobs
        created = jobs.create(**EDIT)
        while (running := jobs.fetch(created.task_id)).status == "PENDING":
            time.sleep(LOOK_SECONDS)
        return [running, attempted(lambda: jobs.cancel(created.task_id)), jobs.wait(created)]


def making_in_spite_of_all(end: End) -> Any:
    with client(end) as there:
        return [attempted(lambda: there.images.jobs.wait(there.images.jobs.create(**EDIT)))]


def listing_as_the_client_reads_it(end: End) -> Any:
    """List a task with the client's own eyes."""
    with client(end) as there:
        jobs = there.images.jobs
        jobs.wait(jobs.create(**EDIT))
        return [[task.status, task.submitted_at, task.finished_at] for task in jobs.list().tasks]
