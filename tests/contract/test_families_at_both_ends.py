"""Every model of every family, asked over plain HTTP in each form that it has, answers alike at both ends, is listed
alike, leads to the same files and is billed the same. Most of them have no class in the SDK.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from app.simulator import SINGAPORE
from app.simulator.catalogue import IMAGE2VIDEO, MODELS, MULTIMODAL, TEXT2IMAGE, TRANSCRIPTION, WORDART_SEMANTIC, Mode
from tests.contract.both_ends import BothEnds, Caller, End, Question, assert_same
from tests.contract.test_simulator_families import ANY_INPUT, IN, asked

LOOK_SECONDS = 0.3
MOST_LOOKS = 100
FACTS = {"task_id", "task_status", "submit_time", "scheduled_time", "end_time"}
ASYNC = {"X-DashScope-Async": "enable"}
SSE = {"X-DashScope-SSE": "enable"}
ONE_AT_A_TIME = {"qwen-image", "qwen-image-plus", "qwen-image-max", "qwen-image-edit"}  # refuse any other `n`

Door = tuple[str, str]  # model, service


def doors(mode: Mode) -> list[Door]:
    """Return every model with every path where it can be called so."""
    return [(model, path) for model, by_path in MODELS.items() for path, door in by_path.items() if mode in door.modes]


ABROAD = [(model, TEXT2IMAGE) for model in ("wan2.1-t2i-plus", "wan2.1-t2i-turbo")]  # Singapore's names
TASKS, CALLS = [door for door in doors(Mode.ASYNC) if door not in ABROAD], doors(Mode.SYNC)


def order(model: str) -> dict[str, Any]:
    """Return a body that any path of a model takes."""
    needs_image = model == "wan2.6-image" or "edit" in model
    messages = asked(f"{IN}/1.png") if needs_image else asked()
    return {"model": model, "input": {**ANY_INPUT, **messages}, "parameters": {"n": 1 if model in ONE_AT_A_TIME else 2}}


async def post(both: BothEnds, end: End, caller: Caller, *, door: Door, headers: dict[str, str]) -> httpx.Response:
    model, service = door
    sent = {"Authorization": f"Bearer {caller.key}", **headers}
    return await both.http.post(f"{end.base_url}/services/{service}", json=order(model), headers=sent)


def told(answer: httpx.Response) -> dict[str, Any]:
    return {"status": answer.status_code, "body": answer.json()}


def task_of(both: BothEnds, door: Door) -> Question:
    """Ask for a task, read it until it has ended, and list it."""

    async def ask(end: End, caller: Caller) -> Any:
        created = await post(both, end, caller, door=door, headers=ASYNC)
        key = {"Authorization": f"Bearer {caller.key}"}
        url = f"{end.base_url}/tasks/{created.json()['output']['task_id']}"
        for _ in range(MOST_LOOKS):
            read = await both.http.get(url, headers=key)
            if read.json()["output"]["task_status"] not in ("PENDING", "RUNNING"):
                break
            await asyncio.sleep(LOOK_SECONDS)
        listed = await both.http.get(f"{end.base_url}/tasks/", headers=key)
        return {"created": told(created), "read": told(read), "listed": told(listed)}

    return ask


def call_of(both: BothEnds, door: Door) -> Question:
    """Ask for an answer on the connection."""

    async def ask(end: End, caller: Caller) -> Any:
        return told(await post(both, end, caller, door=door, headers={}))

    return ask


def stream_of(both: BothEnds, door: Door) -> Question:
    """Ask for a stream; its events are told field by field, as they stood on the wire."""

    async def ask(end: End, caller: Caller) -> Any:
        answer = await post(both, end, caller, door=door, headers={**SSE, "Accept": "text/event-stream"})
        kind = answer.headers["content-type"].partition(";")[0]
        return {"status": answer.status_code, "kind": kind, "lines": re.split("\n", answer.text)}

    return ask


@pytest.mark.parametrize("door", TASKS, ids=" ".join)
async def test_a_task_is_the_same_at_both_ends(both: BothEnds, door: Door) -> None:
    straight, gateway = await both.ask_once("tasks", str(door), {str(each): task_of(both, each) for each in TASKS})
    assert_same(straight, gateway)
    assert straight.found["read"]["body"]["output"]["task_status"] == "SUCCEEDED"
    assert straight.billed


@pytest.mark.parametrize("door", ABROAD, ids=" ".join)
async def test_a_task_of_another_region_is_the_same_at_both_ends(both: BothEnds, door: Door) -> None:
    straight, gateway = await both.ask(task_of(both, door), abroad=True)
    assert_same(straight, gateway)
    assert straight.found["listed"]["body"]["data"][0]["region"] == SINGAPORE


@pytest.mark.parametrize("door", CALLS, ids=" ".join)
async def test_a_call_is_the_same_at_both_ends(both: BothEnds, door: Door) -> None:
    straight, gateway = await both.ask_once("calls", str(door), {str(each): call_of(both, each) for each in CALLS})
    assert_same(straight, gateway)
    assert straight.found["status"] == 200
    assert straight.billed


@pytest.mark.parametrize("door", CALLS, ids=" ".join)
async def test_a_stream_is_the_same_at_both_ends(both: BothEnds, door: Door) -> None:
    straight, gateway = await both.ask_once("streams", str(door), {str(each): stream_of(both, each) for each in CALLS})
    assert_same(straight, gateway)
    assert (straight.found["status"], straight.found["kind"]) == (200, "text/event-stream")
    assert straight.billed


# Wanted differences.


@pytest.mark.parametrize(
    "door",
    [
        ("wanx2.1-t2i-turbo", TEXT2IMAGE),
        ("wan2.2-kf2v-flash", IMAGE2VIDEO),
        ("paraformer-v2", TRANSCRIPTION),
        ("wordart-semantic", WORDART_SEMANTIC),
    ],
    ids=" ".join,
)
async def test_a_model_that_only_makes_tasks_answers_at_once_here(both: BothEnds, door: Door) -> None:
    refused, answered = await both.ask(call_of(both, door))
    made, _ = await both.ask_once("tasks", str(door), {str(each): task_of(both, each) for each in TASKS})
    assert (refused.found["status"], refused.found["body"]["code"]) == (403, "AccessDenied")
    body = made.found["read"]["body"]
    output = {name: value for name, value in body["output"].items() if name not in FACTS}
    assert answered.found == {"status": 200, "body": {**body, "output": output}}
    assert answered.billed == made.billed


@pytest.mark.parametrize("door", [("qwen-image-max", MULTIMODAL), ("z-image-turbo", MULTIMODAL)], ids=" ".join)
async def test_a_model_that_only_answers_at_once_makes_a_task_here(both: BothEnds, door: Door) -> None:
    called, _ = await both.ask_once("calls", str(door), {str(each): call_of(both, each) for each in CALLS})
    refused = await both.http.post(
        f"{both.straight.base_url}/services/{MULTIMODAL}",
        json=order(door[0]),
        headers={"Authorization": f"Bearer {(await both.straight.new_caller()).key}", **ASYNC},
    )
    assert (refused.status_code, refused.json()["code"]) == (403, "AccessDenied")
    made = await both.ask_the_gateway(task_of(both, door))
    body = made.found["read"]["body"]
    assert body["output"].items() >= {**called.found["body"]["output"], "task_status": "SUCCEEDED"}.items()
    assert (body["usage"], made.billed) == (called.found["body"]["usage"], called.billed)
