"""What the vendor's Java SDK sends, replayed as raw requests (dashscope-api.md 9.4): no JVM is at hand.

It speaks HTTP/1.1 by OkHttp, reads tasks in a loop that does not sleep after a 503, and an instance that once made a
task sends the async header with every later call.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.contract.both_ends import BothEnds, Caller, End, Question, assert_same

MULTIMODAL = "services/aigc/multimodal-generation/generation"
IMAGE_GENERATION = "services/aigc/image-generation/generation"
OKHTTP = {
    "User-Agent": "dashscope/2.22.29; java/17.0.9; platform/Linux; processor/amd64",
    "Content-Type": "application/json; charset=utf-8",
    "Accept-Encoding": "gzip",
    "Connection": "Keep-Alive",
}
ASYNC = {"X-DashScope-Async": "enable"}
SSE = {"X-DashScope-SSE": "enable", "Accept": "text/event-stream", "Cache-Control": "no-cache"}
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN")
LOOK_SECONDS = 0.3
MOST_LOOKS = 200


def order(text: str = "a boat", **parameters: Any) -> dict[str, Any]:
    content = [{"image": "https://assets.example.com/boat.png"}, {"text": text}]
    return {
        "model": "wan2.6-image",
        "input": {"messages": [{"role": "user", "content": content}]},
        "parameters": {"n": 2, "size": "768*768", **parameters},
    }


class Java:
    """An instance of one of the SDK's classes."""

    def __init__(self, http: httpx.AsyncClient, end: End, caller: Caller) -> None:
        self._http, self._base_url = http, end.base_url
        self._headers = {**OKHTTP, "Authorization": f"Bearer {caller.key}"}
        self.statuses: list[int] = []  # of reads

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self._http.post(f"{self._base_url}/{path}", json=body, headers={**self._headers, **headers})

    async def cancel(self, task_id: str) -> httpx.Response:
        return await self._http.post(f"{self._base_url}/tasks/{task_id}/cancel", headers=self._headers, content=b"")

    async def get(self, path: str) -> httpx.Response:
        return await self._http.get(f"{self._base_url}/{path}", headers=self._headers)

    async def wait(self, task_id: str) -> httpx.Response:
        """Read a task until it has ended: at once again after a 503 or 504, with a pause after other answers."""
        for _ in range(MOST_LOOKS):
            read = await self.get(f"tasks/{task_id}")
            self.statuses.append(read.status_code)
            if read.status_code in (503, 504):
                continue
            if read.status_code != 200 or read.json()["output"]["task_status"] in ENDED:
                return read
            await asyncio.sleep(LOOK_SECONDS)
        raise AssertionError("the task never ended")


def told(answer: httpx.Response) -> dict[str, Any]:
    return {"status": answer.status_code, "version": answer.http_version, "body": answer.json()}


def id_of(created: httpx.Response) -> str:
    assert created.status_code == 200, created.text
    return str(created.json()["output"]["task_id"])


def played(both: BothEnds, play: Any) -> Question:
    async def ask(end: End, caller: Caller) -> Any:
        return await play(Java(both.http, end, caller))

    return ask


async def calls_in_every_form(java: Java) -> Any:
    """Call, make a task, list it, cancel it too late."""
    called = await java.post(MULTIMODAL, order())
    failed = await java.post(MULTIMODAL, order("[[forbidden]]"))
    refused = await java.post(MULTIMODAL, order(size="1280x1280"))
    created = await java.post(IMAGE_GENERATION, order(), **ASYNC)
    ended = await java.wait(id_of(created))
    cancelled = await java.cancel(id_of(created))
    return [told(answer) for answer in (called, failed, refused, created, ended, cancelled)]


async def a_list(java: Java) -> Any:
    created = await java.post(IMAGE_GENERATION, order(), **ASYNC)
    await java.wait(id_of(created))
    listed = [await java.get(f"tasks{slash}?page_no=1&page_size=10&model_name=wan2.6-image") for slash in ("", "/")]
    return [told(answer) for answer in listed]


async def a_stream(java: Java) -> Any:
    """Read a stream by its lines, as the SDK's own reader does."""
    body = order("folding", enable_interleave=True, max_images=2, stream=True, n=1)
    answer = await java.post(MULTIMODAL, body, **SSE)
    return [answer.status_code, answer.text.splitlines()]


async def an_instance_that_has_made_a_task(java: Java) -> Any:
    """Call with the header that the task before has left behind."""
    return told(await java.post(MULTIMODAL, order(), **ASYNC))


@pytest.mark.parametrize("play", [calls_in_every_form, a_list, a_stream], ids=lambda play: play.__name__)
async def test_what_java_finds_is_the_same_at_both_ends(both: BothEnds, play: Any) -> None:
    straight, gateway = await both.ask(played(both, play))
    assert_same(straight, gateway)
    assert straight.billed


async def test_java_never_meets_a_503_on_a_read_here(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.fail_next("query", "5xx", times=5)
    seen: list[list[int]] = []

    async def wait(java: Java) -> Any:
        seen.append(java.statuses)
        return told(await java.wait(id_of(await java.post(IMAGE_GENERATION, order(), **ASYNC))))

    straight, gateway = await stage.ask(played(stage, wait))
    assert_same(straight, gateway)
    met = sorted(statuses.count(503) for statuses in seen)
    assert met == [0, 5]


async def test_javas_stray_async_header_makes_a_task_here(both: BothEnds) -> None:
    straight, gateway = await both.ask(played(both, an_instance_that_has_made_a_task))
    assert (straight.found["status"], straight.found["body"]["code"]) == (403, "AccessDenied")
    assert gateway.found["body"] == {
        "request_id": "<id>",
        "output": {"task_status": "PENDING", "task_id": "<id>"},
    }

    async def made_by(path: str) -> Any:
        async def make(java: Java) -> Any:
            return told(await java.wait(id_of(await java.post(path, order(), **ASYNC))))

        return (await both.ask_the_gateway(played(both, make))).found

    assert await made_by(MULTIMODAL) == await made_by(IMAGE_GENERATION)
