"""tasks/call.py: the async header on models that only answer at once, and senders of such calls that die."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import pytest

from app.routing.accounts import limit_model
from app.simulator import BEIJING
from app.tasks.dispatch import dispatch_due
from app.tasks.rescue import rescue_due
from tests.api.calling import RELAYED, SYNC_PATH, FickleDatabase, Line, ledger, relay_order, sync_task
from tests.api.parts import scripted_upstream
from tests.api.streaming import telling_upstream
from tests.steps.parts import DAY, until, works
from tests.world import World

LEASE_SECONDS = 640  # a relay's call, and the sender's margin
MINUTE = 61


async def create(world: World, prompt: str = "a paper boat") -> str:
    """Ask for a task of a model that has none; return its id."""
    headers = world.headers(**{"X-DashScope-Async": "enable"})
    answer = await world.http.post(SYNC_PATH, json=relay_order(prompt), headers=headers)
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING"), answer.text
    return str(answer.json()["output"]["task_id"])


async def send(world: World, calls: int = 1) -> None:
    """Let the worker begin calls, and wait until the upstream has them."""
    before = len(world.sim.truth.calls)
    await dispatch_due(world.res)
    await until(lambda: len(world.sim.truth.calls) == before + calls)


async def let_answer(world: World) -> None:
    """Let the upstream answer, and wait until that is recorded."""
    world.sim.advance(1)
    assert await world.res.calls.drain(10) == 0


async def finish(world: World) -> None:
    """Let the upstream answer, and everything come to its end."""
    await let_answer(world)
    await world.drain()


# --- the async header on a model that only answers at once ---------------------------------------------------------


async def test_a_task_of_such_a_model_waits_runs_and_ends_like_any_other(world: World) -> None:
    task_id = await create(world)
    row = await sync_task(world)
    assert (row["mode"], row["upstream_call"], row["state"]) == ("async", "sync", "queued")
    await send(world)
    assert await world.status(task_id) == "RUNNING"
    assert (await sync_task(world))["state"] == "submitting"  # no byte of an answer has come
    await finish(world)
    answer = await world.read(task_id)
    assert (answer["output"]["task_status"], answer["output"]["task_id"]) == ("SUCCEEDED", task_id)
    (link,) = await world.links(task_id)
    assert (await world.http.get(link)).content == world.sim.truth.calls[0].pictures[0].content()
    assert await ledger(world) == [("usage", "image", 1)]
    assert await world.rows("SELECT kind FROM work WHERE kind IN ('submit', 'deliver')") == []


async def test_it_is_running_once_the_first_byte_of_an_answer_is_in(world: World) -> None:
    task_id = await create(world)
    made = json.dumps({"request_id": "r", "output": {"choices": []}, "usage": {"image_count": 0}}).encode()
    async with telling_upstream(world) as upstream:
        await dispatch_due(world.res)
        told = await upstream.asked()
        await told.begin("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        await told.say(made[:10])

        async def is_running() -> bool:
            return (await sync_task(world))["state"] == "running"

        async with asyncio.timeout(5):
            while not await is_running():  # noqa: ASYNC110 -- the database has no event for it
                await asyncio.sleep(0.005)
        assert await world.status(task_id) == "RUNNING"
        await told.say(made[10:])
        await told.end()
        assert await world.res.calls.drain(10) == 0
    assert await world.status(task_id) == "SUCCEEDED"


async def test_an_answer_is_read_on_although_its_beginning_cannot_be_written_down(world: World) -> None:
    db = FickleDatabase(world.database_url)
    made = json.dumps({"request_id": "r", "output": {"choices": []}, "usage": {"image_count": 1}}).encode()
    async with telling_upstream(world) as upstream:
        line = Line(world, relay_order(), res=dataclasses.replace(world.res, db=db))
        told = await upstream.asked()
        db.is_away = True
        await told.begin("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        await told.say(made[:10])
        await until(lambda: db.refused > 0)
        db.is_away = False
        await told.say(made[10:])
        await told.end()
        answer = await line.answer()
    assert (answer.status_code, answer.json()["usage"]) == (200, {"image_count": 1})
    assert await ledger(world) == [("usage", "image", 1)]
    await db.close()


async def test_a_call_whose_end_cannot_be_written_down_is_never_sent_again_by_an_sdk(world: World) -> None:
    db = FickleDatabase(world.database_url)
    made = json.dumps({"request_id": "r", "output": {"choices": []}, "usage": {"image_count": 1}}).encode()
    async with telling_upstream(world) as upstream:
        line = Line(world, relay_order(), res=dataclasses.replace(world.res, db=db))
        told = await upstream.asked()
        db.is_away = True
        await told.begin(f"Content-Length: {len(made)}\r\n")
        await told._write(made)
        await until(lambda: db.refused > 0)
        world.sim.advance(MINUTE)
        answer = await line.answer()
    assert (answer.status_code, answer.json()["code"]) == (500, "InternalError")
    assert answer.headers["x-should-retry"] == "false"
    await world.advance(LEASE_SECONDS)
    assert ((await sync_task(world))["code"], upstream.unanswered) == ("Dashgate.OutcomeUnknown", 0)
    await db.close()


async def test_room_and_pace_hold_for_such_tasks_too(world: World) -> None:
    await limit_model(world.res, BEIJING, RELAYED, rps=1000, running=2)
    await world.rows("UPDATE account_models SET buffer = 0")
    for number in range(3):
        await create(world, str(number))
    await send(world, 2)
    assert await dispatch_due(world.res) == 0
    await let_answer(world)
    await send(world, 1)
    await let_answer(world)


async def test_at_a_slow_pace_one_leaves_after_the_other(world: World) -> None:
    await limit_model(world.res, BEIJING, RELAYED, rps=0.25, running=100)
    for number in range(3):
        await create(world, str(number))
    await send(world, 1)
    assert await dispatch_due(world.res) == 0
    await let_answer(world)
    assert await dispatch_due(world.res) == 0
    world.sim.advance(3)
    await send(world, 1)
    assert await dispatch_due(world.res) == 0
    await let_answer(world)


async def test_such_a_task_waits_for_room_no_longer_than_its_deadline(world: World) -> None:
    task_id = await create(world)
    await world.rows("UPDATE accounts SET serving = 'paused'")
    world.res.accounts.clear()
    await world.advance(DAY + 1)
    answer = await world.read(task_id)
    assert (answer["output"]["task_status"], answer["output"]["code"]) == ("FAILED", "Dashgate.QueueTimeout")
    assert (await ledger(world), world.sim.truth.calls) == ([], ())


async def test_such_a_task_refused_for_load_goes_back_to_the_queue(world: World) -> None:
    task_id = await create(world)
    world.sim.fail_next("sync", "429")
    await world.dispatch()
    assert (await sync_task(world))["state"] == "queued"
    world.sim.advance(5)
    await send(world)
    await finish(world)
    assert await world.status(task_id) == "SUCCEEDED"
    assert (await sync_task(world))["attempt"] == 2


@pytest.mark.parametrize(("status", "code"), [(400, "InvalidParameter"), (500, "InternalError.Algo")])
async def test_such_a_task_refused_for_good_fails_with_the_upstreams_words(
    world: World, status: int, code: str
) -> None:
    task_id = await create(world)
    world.sim.fail_next("sync", "error", status=status, code=code, message="why")
    await world.dispatch()
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"], output["message"]) == ("FAILED", code, "why")
    assert await ledger(world) == []


@pytest.mark.parametrize("kind", ["lost_answer", "garbage"])
async def test_such_a_task_whose_answer_was_lost_is_never_sent_again(world: World, kind: str) -> None:
    task_id = await create(world)
    world.sim.fail_next("sync", kind)
    await world.dispatch()
    await world.advance(DAY)
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "Dashgate.OutcomeUnknown")
    assert await ledger(world) == [("uncertain", "image", 1)]
    assert len(world.sim.truth.journal.read(operation="sync")) == 1


async def test_a_call_that_could_not_be_sent_goes_back_to_the_queue(world: World) -> None:
    task_id = await create(world)
    async with scripted_upstream(world):
        pass  # it is gone again
    await world.dispatch()
    assert [(await sync_task(world))["state"], *(work["key"] for work in await works(world, "submit"))] == [
        "queued",
        task_id,
    ]
    base_url, host = world.sim.base_url(BEIJING), world.sim.file_host
    await world.rows("UPDATE accounts SET base_url = $1, file_hosts = ARRAY[$2]", base_url, host)
    world.res.accounts.clear()
    world.sim.advance(10)
    await send(world)
    await finish(world)
    assert await world.status(task_id) == "SUCCEEDED"


# --- senders that die ----------------------------------------------------------------------------------------------


async def dead(world: World) -> dict[str, Any]:
    """Let the process of the only call die: it is cut off in the middle, and records nothing any more."""
    (under_way,) = world.res.calls._under_way
    under_way.cancel()
    await asyncio.wait({under_way})
    return await sync_task(world)


async def test_a_worker_that_dies_in_a_call_leaves_a_task_of_unknown_outcome(world: World) -> None:
    task_id = await create(world)
    await send(world)
    assert (await dead(world))["state"] == "submitting"
    assert await rescue_due(world.res) == 0  # its lease holds
    await world.advance(LEASE_SECONDS)
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "Dashgate.OutcomeUnknown")
    row = await sync_task(world)
    assert (row["unanswered_at"], await ledger(world)) == (None, [("uncertain", "image", 1)])
    assert len(world.sim.truth.calls) == 1


async def test_a_relay_whose_process_dies_before_the_call_ends_as_unknown(world: World) -> None:
    async with telling_upstream(world):
        line = Line(world, relay_order())
        await until(lambda: len(world.res.calls) == 1)
        row = await dead(world)
        assert (row["state"], row["mode"]) == ("submitting", "relay")
        line._serving.cancel()
    world.sim.advance(LEASE_SECONDS)
    assert await rescue_due(world.res) == 1
    row = await sync_task(world)
    assert (row["state"], row["code"], row["unanswered_at"]) == (
        "failed",
        "Dashgate.OutcomeUnknown",
        world.res.clock.now(),
    )
    assert await ledger(world) == [("uncertain", "image", 1)]
    again = await Line(world, relay_order()).answer()
    assert (again.status_code, again.json()["code"]) == (500, "Dashgate.OutcomeUnknown")
    assert world.sim.truth.journal.read(operation="sync") == []


async def test_an_answer_that_comes_after_the_rescue_changes_no_end(world: World) -> None:
    task_id = await create(world)
    made = json.dumps({"request_id": "r", "output": {"choices": []}, "usage": {"image_count": 1}}).encode()
    async with telling_upstream(world) as upstream:
        await dispatch_due(world.res)
        told = await upstream.asked()
        world.sim.advance(LEASE_SECONDS)
        assert await rescue_due(world.res) == 1
        await told.begin("Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
        await told.say(made)
        await told.end()
        assert await world.res.calls.drain(10) == 0
    assert (await world.read(task_id))["output"]["code"] == "Dashgate.OutcomeUnknown"
    assert (await world.events(task_id)).count("failed") == 1
