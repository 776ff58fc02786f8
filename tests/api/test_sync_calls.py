"""Synchronous calls without a stream: run as tasks where that is possible, passed through once where it is not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.lib.db import Database, DirectSession, Session
from app.relay.entrance import ASK_AGAIN_SECONDS
from app.routing.accounts import limit_model
from app.simulator import BEIJING, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from app.tasks.waiting import say_still_waiting
from app.teams.teams import change_team
from tests.api.calling import RELAYED, SYNC_PATH, Line, call, create, fill, ledger, relay_order, served, sync_task
from tests.api.parts import scripted_upstream
from tests.api.streaming import telling_upstream
from tests.contract.sameness import ID, LINK
from tests.steps.parts import queued, until
from tests.world import CREATE_PATH, World, open_world

EU = "eu-central-1"


class CountingDatabase(Database):
    """A database that counts how often a connection is lent."""

    lent = 0

    def connect(self, *, autocommit: bool) -> contextlib.AbstractAsyncContextManager[Session]:
        self.lent += 1
        return super().connect(autocommit=autocommit)

    def connect_direct(self) -> contextlib.AbstractAsyncContextManager[DirectSession]:
        self.lent += 1
        return super().connect_direct()


def alike(answer: httpx.Response) -> Any:
    """An answer with placeholders for what no two calls have in common."""
    return json.loads(ID.sub("<id>", LINK.sub("<link>", answer.text)))


def links(answer: httpx.Response) -> list[str]:
    """The links in an answer."""
    return LINK.findall(answer.text)


async def straight(world: World, body: dict[str, Any]) -> httpx.Response:
    """The upstream's own synchronous answer."""
    url = f"{world.sim.base_url(BEIJING)}{SYNC_PATH.removeprefix('/api/v1')}"
    headers = {"Authorization": f"Bearer {world.sim.key(BEIJING)}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        before = len(world.sim.truth.calls)
        asking = asyncio.ensure_future(http.post(url, json=body, headers=headers))
        await until(lambda: asking.done() or len(world.sim.truth.calls) > before)
        world.sim.advance(5)
        return await asking


def operations(world: World) -> list[str]:
    """What the upstream was asked to make, in order."""
    makes = ("create", "sync", "stream")
    return [entry.operation for entry in world.sim.truth.journal.read() if entry.operation in makes]


# --- run as a task -------------------------------------------------------------------------------------------------


async def test_a_call_that_runs_as_a_task_is_answered_as_the_upstream_answers_at_once(world: World) -> None:
    body = world.order(n=2, size="1280*1280")
    expected = await straight(world, body)
    answer = await served(world, await call(world, body))
    assert (answer.status_code, alike(answer)) == (200, alike(expected))
    assert operations(world) == ["sync", "create"]
    row = await sync_task(world)
    assert (row["mode"], row["upstream_call"], row["state"]) == ("durable", "async", "succeeded")
    assert answer.headers["X-Dashgate-Task-Id"] == str(row["id"])
    assert (answer.headers["x-should-retry"], answer.headers["cache-control"]) == ("false", "no-store")


async def test_its_links_are_the_gateways_and_give_the_upstreams_bytes(world: World) -> None:
    answer = await served(world, await call(world, world.order(n=2)))
    (task,) = world.sim.truth.tasks
    found = [(await world.http.get(link)).content for link in links(answer)]
    assert found == [picture.content() for picture in task.pictures]
    assert all(link.startswith("http://gateway/") for link in links(answer))


async def test_interleaved_output_needs_no_stream(world: World) -> None:
    body = world.order(enable_interleave=True, max_images=2, size="768*768")
    refused = await straight(world, body)
    answer = await served(world, await call(world, body))
    assert (refused.status_code, answer.status_code) == (400, 200)
    (choice,) = answer.json()["output"]["choices"]
    assert {item["type"] for item in choice["message"]["content"]} == {"text", "image"}


async def test_a_region_that_has_only_tasks_answers_at_once_all_the_same(database_url: str, tmp_path: Path) -> None:
    options = SimulatorOptions(clock_scale=0, keys=(SimulatorKey("sk-sim-frankfurt", EU),))
    async with (
        running_simulator(options) as sim,
        open_world(sim, database_url, tmp_path, regions=(EU,)) as world,
    ):
        line = await call(world, world.order(), **{"X-Dashgate-Durable": "false"})  # there is no other way
        assert (await served(world, line)).status_code == 200
        assert [task.region for task in sim.truth.tasks] == [EU]


async def test_a_create_without_the_async_header_is_answered_at_once(world: World) -> None:
    for headers in ({}, {"X-DashScope-Async": "disable"}, {"X-DashScope-Async": ""}):
        line = await call(world, path=CREATE_PATH, **headers)
        answer = await served(world, line)
        assert (answer.status_code, answer.json()["output"]["finished"]) == (200, True)
    assert operations(world) == ["create"] * 3


async def test_the_async_header_at_the_path_for_calls_at_once_makes_a_task_at_the_other_path(world: World) -> None:
    line = Line(world, world.order(), **{"X-DashScope-Async": "enable"})  # as the Java SDK does
    answer = await line.answer()
    assert answer.json()["output"]["task_status"] == "PENDING"
    (entry,) = world.sim.truth.journal.read(operation="create")
    assert entry.path.endswith("/services/aigc/image-generation/generation")
    assert (entry.status, (await sync_task(world))["mode"]) == (200, "async")


@pytest.mark.parametrize("by", ["header", "team"])
async def test_without_durable_calls_the_upstream_is_called_at_once(world: World, by: str) -> None:
    headers = {"X-Dashgate-Durable": "false"} if by == "header" else {}
    if by == "team":
        await change_team(world.res, "alpha", {"durable": False})
    expected = await straight(world, world.order())
    answer = await served(world, await call(world, world.order(), **headers))
    assert (answer.status_code, alike(answer)) == (200, alike(expected))
    assert operations(world) == ["sync", "sync"]
    assert (await sync_task(world))["mode"] == "relay"


async def test_a_call_that_is_waited_for_goes_before_what_was_queued_earlier(world: World) -> None:
    await queued(world, 3, running=1)
    await limit_model(world.res, BEIJING, "wan2.6-image", rps=0.9, running=1)
    line = Line(world, world.order("waited for"))
    await until(lambda: len(world.res.awaited) == 1)
    await world.dispatch()
    bodies = [entry.body for entry in world.sim.truth.journal.read(operation="create")]
    assert bodies[0] and bodies[0]["input"]["messages"][0]["content"][0]["text"] == "waited for"
    assert (await served(world, line)).status_code == 200


async def test_a_caller_that_hangs_up_leaves_a_task_that_goes_on_and_can_be_read(world: World) -> None:
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    line.hang_up()
    await line.answer()
    row = await sync_task(world)
    assert (row["unanswered_at"], row["waited_until"]) == (world.res.clock.now(), None)
    task_id = str(row["id"])
    assert await world.finish(task_id) == "SUCCEEDED"
    listed = await world.http.get("/api/v1/tasks/", headers=world.headers())
    assert [task["task_id"] for task in listed.json()["data"]] == [task_id]
    assert await ledger(world) == [("usage", "image", 1)]
    assert [row["state"] for row in await world.rows("SELECT state FROM assets")] == ["stored"]
    assert len(world.res.awaited) == 0


async def test_a_caller_that_hangs_up_before_the_receipt_is_noticed_at_once(world: World) -> None:
    world.sim.fail_next("create", "hang", seconds=60)
    line = await call(world)
    line.hang_up()

    async def is_marked() -> bool:
        return (await sync_task(world))["unanswered_at"] is not None

    async with asyncio.timeout(5):
        while not await is_marked():  # noqa: ASYNC110 -- the database has no event for it
            await asyncio.sleep(0.005)
    assert (await sync_task(world))["state"] == "submitting"
    world.sim._exchange.release()
    await line.answer()


@pytest.fixture
async def impatient(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that waits for a task, and for room, a moment only."""
    async with open_world(still_sim, database_url, tmp_path, durable_wait_seconds=0.05, sync_wait_seconds=0) as world:
        yield world


async def test_a_call_that_lasts_longer_than_it_is_waited_for_is_a_504_with_its_task(impatient: World) -> None:
    answer = await (await call(impatient)).answer()
    row = await sync_task(impatient)
    assert (answer.status_code, answer.json()["code"]) == (504, "RequestTimeOut")
    assert answer.headers["X-Dashgate-Task-Id"] == str(row["id"])
    assert (answer.headers["x-should-retry"], "retry-after" in answer.headers) == ("false", False)
    assert row["unanswered_at"] is not None
    assert await impatient.finish(str(row["id"])) == "SUCCEEDED"


async def test_the_same_call_after_a_504_gets_the_task_and_its_answer(impatient: World) -> None:
    await (await call(impatient)).answer()
    row = await sync_task(impatient)
    await impatient.finish(str(row["id"]))
    answer = await (await call(impatient)).answer()
    assert (answer.status_code, answer.headers["X-Dashgate-Task-Id"]) == (200, str(row["id"]))
    assert len(impatient.sim.truth.tasks) == 1
    assert (await sync_task(impatient))["unanswered_at"] is None


async def test_the_second_call_of_a_key_is_a_409_while_the_first_has_not_ended(impatient: World) -> None:
    key = {"Idempotency-Key": "order-7"}
    assert (await (await call(impatient, **key)).answer()).status_code == 504
    answer = await Line(impatient, impatient.order(), **key).answer()
    assert (answer.status_code, answer.json()["code"]) == (409, "IdempotencyKeyInUse")
    assert answer.headers["x-should-retry"] == "false"
    await impatient.finish(str((await sync_task(impatient))["id"]))
    assert (await Line(impatient, impatient.order(), **key).answer()).status_code == 200
    assert len(impatient.sim.truth.tasks) == 1


ENDINGS: dict[str, int] = {
    "DataInspectionFailed": 400,
    "InvalidParameter.DataInspection": 400,
    "ModelNotFound": 404,
    "Throttling": 429,
    "InternalError.Timeout": 500,
    "ModelUnavailable": 503,
    "SomethingNew": 500,
}


@pytest.mark.parametrize(("code", "status"), ENDINGS.items())
async def test_a_task_that_failed_is_answered_with_the_status_of_its_code(world: World, code: str, status: int) -> None:
    line = await call(world)
    world.sim.truth.fail_task(world.sim.truth.tasks[0].id, code, message="why it failed")
    answer = await served(world, line)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json() == {"code": code, "message": "why it failed", "request_id": answer.json()["request_id"]}
    assert answer.headers["x-should-retry"] == "false"
    assert await ledger(world) == []


async def test_a_task_that_was_cancelled_meanwhile_is_a_400(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    line = await call(world)
    await until(lambda: len(world.res.awaited) == 1)
    task_id = (await sync_task(world))["id"]
    cancelling = asyncio.ensure_future(world.http.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers()))
    answer = await served(world, line)
    await cancelling
    assert (answer.status_code, answer.json()["code"]) == (400, "Dashgate.Canceled")


async def test_a_task_that_waited_too_long_for_room_is_a_500(world: World) -> None:
    await fill(world, "wan2.6-image")
    line = Line(world, world.order())
    await until(lambda: len(world.res.awaited) == 1)
    for _ in range(30):
        world.sim.advance(3_000)
        await say_still_waiting(world.res)
    await world.drain()
    answer = await line.answer()
    assert (answer.status_code, answer.json()["code"]) == (500, "Dashgate.QueueTimeout")
    assert await ledger(world) == []


async def test_what_the_upstream_refuses_at_once_is_refused_so(world: World) -> None:
    expected = await straight(world, world.order(n=99))
    answer = await (await call(world, world.order(n=99))).answer()
    assert (answer.status_code, alike(answer)) == (expected.status_code, alike(expected))
    assert (await sync_task(world))["refused_inline"] is True


async def test_a_call_while_our_account_is_at_fault_tells_nothing_of_it(world: World) -> None:
    secret = {"code": "Arrearage", "message": "account 1000000000000001 owes 12.50", "request_id": "abc"}
    for headers in ({}, {"X-Dashgate-Durable": "false"}):
        async with scripted_upstream(world) as upstream:
            upstream.create = (400, json.dumps(secret).encode())
            answer = await Line(world, world.order(), **headers).answer()
        assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")
        assert answer.headers["x-should-retry"] == "false"
        assert not any(part in answer.text for part in ("Arrearage", "1000000000000001", "12.50", "abc"))
        await world.rows("UPDATE accounts SET paused_until = NULL")
        world.res.accounts.clear()


async def test_a_team_that_holds_is_told_at_once_all_the_same_when_it_waits_on_a_connection(world: World) -> None:
    await change_team(world.res, "alpha", {"hold": True})
    world.sim.fail_next("create", "error", status=401, code="InvalidApiKey", message="no")
    answer = await (await call(world)).answer()
    assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")


# --- passed through ------------------------------------------------------------------------------------------------


async def test_a_relayed_call_is_answered_as_the_upstream_answers(world: World) -> None:
    expected = await straight(world, relay_order())
    answer = await served(world, await call(world, relay_order()))
    assert (answer.status_code, alike(answer)) == (200, alike(expected))
    _, made = world.sim.truth.calls
    assert answer.json()["request_id"] == made.id
    row = await sync_task(world)
    assert answer.headers["X-Dashgate-Task-Id"] == str(row["id"])
    assert (row["mode"], row["upstream_call"], row["last_request_id"]) == ("relay", "sync", made.id)


async def test_the_links_of_a_relayed_call_work_before_and_after_delivery(world: World) -> None:
    answer = await served(world, await call(world, relay_order()))
    (made,) = world.sim.truth.calls
    (link,) = links(answer)
    assert (await world.http.get(link)).content == made.pictures[0].content()
    await world.drain()
    assert (await sync_task(world))["state"] == "succeeded"
    assert (await world.http.get(link, follow_redirects=False)).content == made.pictures[0].content()
    assert await ledger(world) == [("usage", "image", 1)]


async def test_a_relayed_call_is_in_no_list(world: World) -> None:
    await served(world, await call(world, relay_order()))
    listed = await world.http.get("/api/v1/tasks", headers=world.headers())
    assert listed.json()["total"] == 0


async def test_a_relayed_call_is_a_row_with_its_request_before_anything_leaves(world: World) -> None:
    async with telling_upstream(world) as upstream:
        line = Line(world, relay_order())
        told = await upstream.asked()
        row = await world.row("SELECT * FROM tasks JOIN task_bodies ON task_bodies.task_id = tasks.id")
        assert (row["state"], row["attempt"], row["request"] is not None) == ("submitting", 1, True)
        (work,) = await world.rows("SELECT lease_until, due_at FROM work WHERE kind = 'submit'")
        assert (work["lease_until"] - world.res.clock.now()).total_seconds() > 620
        told.cut()
        await line.answer()


LOST = {
    "a lost answer": ("lost_answer", {}),
    "a page of a proxy": ("garbage", {"body": "<html>", "media_type": "text/html"}),
    "a 502 of a proxy": ("garbage", {"status": 502, "body": "<html>"}),
    "an empty answer": ("garbage", {"body": "{}"}),
    "a wait that ended there": ("error", {"status": 500, "code": "RequestTimeOut", "message": "timed out"}),
    "another wait that ended": ("error", {"status": 504, "code": "ResponseTimeout", "message": "timed out"}),
}


@pytest.mark.parametrize("what", LOST)
async def test_a_call_whose_verdict_was_lost_ends_as_unknown_and_is_never_sent_again(world: World, what: str) -> None:
    kind, details = LOST[what]
    world.sim.fail_next("sync", kind, **details)
    answer = await Line(world, relay_order()).answer()
    assert (answer.status_code, answer.json()["code"]) == (500, "Dashgate.OutcomeUnknown")
    assert (answer.headers["x-should-retry"], "retry-after" in answer.headers) == ("false", False)
    await world.drain()
    assert operations(world) == ["sync"]
    assert await ledger(world) == [("uncertain", "image", 1)]
    assert (await sync_task(world))["state"] == "failed"
    assert await world.rows("SELECT kind FROM work WHERE kind = 'submit'") == []


async def test_a_call_that_the_upstream_never_answers_ends_as_unknown(
    still_sim: Simulator, database_url: str, tmp_path: Path
) -> None:
    async with open_world(still_sim, database_url, tmp_path, relay_timeout_seconds=0.2) as world:
        still_sim.fail_next("sync", "hang", seconds=60, processed=True)
        answer = await Line(world, relay_order()).answer()
        assert (answer.status_code, answer.json()["code"]) == (500, "Dashgate.OutcomeUnknown")
        assert (operations(world), await ledger(world)) == (["sync"], [("uncertain", "image", 1)])
        still_sim._exchange.release()


VERDICTS = {
    "a bad parameter": (400, "InvalidParameter"),
    "an error of the upstream's own": (500, "InternalError"),
    "no room at the model": (503, "ModelUnavailable"),
    "a failed picture": (500, "InternalError.Algo"),
}


@pytest.mark.parametrize("what", VERDICTS)
async def test_the_upstreams_own_verdict_passes_unchanged_and_costs_nothing(world: World, what: str) -> None:
    status, code = VERDICTS[what]
    verdict = b'{"message":"\xe4\xb8\xad", "code":"%b","request_id":"r-1" , "more":[1.0]}' % code.encode()
    async with scripted_upstream(world) as upstream:
        upstream.create = (status, verdict)
        answer = await Line(world, relay_order()).answer()
        assert len(upstream.received) == 1
    assert (answer.status_code, answer.content) == (status, verdict)
    assert answer.headers["x-should-retry"] == "false"
    assert await ledger(world) == []
    assert (await sync_task(world))["state"] == "failed"


async def test_an_input_that_is_gone_is_the_callers_error_and_sends_nothing(world: World) -> None:
    made = await served(world, await call(world, relay_order("the first")))
    await world.drain()
    (link,) = links(made)
    body = world.order("the second")
    body["input"]["messages"][0]["content"][1]["image"] = link
    gone = "state = 'given_up', object_key = NULL, sha256 = NULL, stored_at = NULL, source_expires_at = '2020-01-01'"
    await world.rows(f"UPDATE assets SET {gone}")  # noqa: S608
    answer = await Line(world, body, **{"X-Dashgate-Durable": "false"}).answer()
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert operations(world) == ["sync"]


# --- tried again, while it is certain that nothing was taken -------------------------------------------------------


@pytest.mark.parametrize("code", ["Throttling.RateQuota", "limit_requests", "insufficient_quota", ""])
async def test_a_call_refused_for_load_waits_and_goes_again(world: World, code: str) -> None:
    refused = json.dumps({"code": code, "message": "slow down", "request_id": "r"}).encode()
    made = await straight(world, relay_order())
    async with scripted_upstream(world) as upstream:
        upstream.create = (429, refused)
        upstream.hold()
        line = Line(world, relay_order())
        await upstream.arrived.wait()
        upstream.let_go()
        await until(lambda: len(world.res.lines) == 1)  # it stands in line, for the model has a pause
        upstream.create = (200, made.content)
        world.sim.advance(5)
        answer = await line.answer()
        assert (answer.status_code, len(upstream.received)) == (200, 2)
    rows = await world.rows("SELECT state, refused_inline FROM tasks ORDER BY created_at")
    assert [(row["state"], row["refused_inline"]) for row in rows] == [("failed", True), ("delivering", False)]


@pytest.mark.parametrize("code", ["Throttling.RateQuota", "limit_burst_rate", ""])
async def test_a_call_refused_for_load_until_patience_ends_may_come_again(impatient: World, code: str) -> None:
    async with scripted_upstream(impatient) as upstream:
        upstream.create = (429, json.dumps({"code": code, "message": "no", "request_id": "r"}).encode())
        answer = await Line(impatient, relay_order()).answer()
    assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.RateQuota")
    assert (int(answer.headers["retry-after"]) >= 1, answer.headers["x-should-retry"]) == (True, "true")
    assert await ledger(impatient) == []


async def test_a_call_without_room_is_refused_and_leaves_no_trace(impatient: World) -> None:
    await fill(impatient)
    answer = await Line(impatient, relay_order()).answer()
    assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.RateQuota")
    assert answer.headers["x-should-retry"] == "true"
    assert (await impatient.rows("SELECT id FROM tasks"), operations(impatient)) == ([], [])


async def test_a_call_without_room_waits_for_it(world: World) -> None:
    await limit_model(world.res, BEIJING, RELAYED, rps=100, running=1)
    await world.rows("UPDATE account_models SET buffer = 0")
    first = await call(world, relay_order("first"))
    second = Line(world, relay_order("second"))
    await until(lambda: len(world.res.lines) == 1)
    assert (await served(world, first)).status_code == 200
    await until(lambda: len(world.sim.truth.calls) == 2)
    assert (await served(world, second)).status_code == 200
    assert len(world.res.lines) == 0


async def test_a_call_that_cannot_be_sent_is_tried_again(world: World) -> None:
    made = await straight(world, relay_order())
    async with scripted_upstream(world) as upstream:
        port = upstream.port
    line = Line(world, relay_order())  # nobody listens there now

    async def was_tried() -> bool:
        return await world.rows("SELECT 1 FROM tasks WHERE code = 'not_sent'") != []

    async with asyncio.timeout(5):
        while not await was_tried():  # noqa: ASYNC110 -- the database has no event for it
            await asyncio.sleep(0.01)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(made.content)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + made.content)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        world.sim.advance(5)
        assert (await line.answer()).status_code == 200
    assert await ledger(world) == [("usage", "image", 1)]


async def test_a_call_that_could_never_be_sent_is_a_503_that_may_come_again(impatient: World) -> None:
    async with scripted_upstream(impatient):
        pass  # it is gone again
    answer = await Line(impatient, relay_order()).answer()
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
    assert (answer.headers["x-should-retry"], "retry-after" in answer.headers) == ("true", True)
    assert await ledger(impatient) == []


async def test_many_calls_in_line_ask_the_database_little(world: World) -> None:
    await fill(world)
    db = CountingDatabase(world.database_url)
    res = dataclasses.replace(world.res, db=db)
    lines = [Line(world, relay_order(str(number)), res=res) for number in range(200)]
    await until(lambda: world.res.lines._standing.total() == 200)
    before = db.lent
    await asyncio.sleep(5 * ASK_AGAIN_SECONDS)
    assert 0 < db.lent - before <= 6  # all together, not each
    world.sim.advance(61)
    answers = [await line.answer() for line in lines]
    assert {answer.status_code for answer in answers} == {429}
    await db.close()


# --- callers that leave --------------------------------------------------------------------------------------------


async def test_a_relayed_call_whose_caller_hangs_up_is_read_to_its_end(world: World) -> None:
    line = await call(world, relay_order())
    line.hang_up()

    async def is_marked() -> bool:
        return (await sync_task(world))["unanswered_at"] is not None

    async with asyncio.timeout(5):
        while not await is_marked():  # noqa: ASYNC110 -- the database has no event for it
            await asyncio.sleep(0.005)
    await served(world, line)
    await world.drain()
    (made,) = world.sim.truth.calls
    assert (made.hung_up, (await sync_task(world))["state"]) == (False, "succeeded")
    assert await ledger(world) == [("usage", "image", 1)]
    assert [row["state"] for row in await world.rows("SELECT state FROM assets")] == ["stored"]


async def test_a_caller_that_left_and_asks_again_gets_the_same_call(world: World) -> None:
    line = await call(world, relay_order())
    line.hang_up()
    again = Line(world, relay_order())
    answer = await served(world, again)
    assert (answer.status_code, len(world.sim.truth.calls)) == (200, 1)
    assert answer.headers["X-Dashgate-Task-Id"] == str((await sync_task(world))["id"])


async def test_a_caller_that_leaves_in_the_second_try_finds_that_try_again(world: World) -> None:
    world.sim.fail_next("sync", "429")
    line = Line(world, relay_order())
    await until(lambda: len(world.res.lines) == 1)
    world.sim.advance(5)
    await until(lambda: len(world.sim.truth.calls) == 1)
    line.hang_up()
    again = Line(world, relay_order())
    answer = await served(world, again)
    assert (answer.status_code, operations(world)) == (200, ["sync", "sync"])
    assert len(world.sim.truth.calls) == 1


async def test_a_caller_that_leaves_the_line_sends_nothing(world: World) -> None:
    await fill(world)
    line = Line(world, relay_order())
    await until(lambda: len(world.res.lines) == 1)
    line.hang_up()
    await line.answer()
    assert (await world.rows("SELECT id FROM tasks"), operations(world), len(world.res.lines)) == ([], [], 0)


# --- team rates ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "no redis"])
async def rated(
    request: pytest.FixtureRequest, still_sim: Simulator, database_url: str, tmp_path: Path, redis_url: str
) -> AsyncIterator[World]:
    """A gateway with Redis or without it, whose team alpha may make two calls in a long while."""
    changes = {"redis_url": redis_url} if request.param == "redis" else {}
    async with open_world(still_sim, database_url, tmp_path, **changes) as world:
        await change_team(world.res, "alpha", {"rps": Decimal("0.001")})
        yield world


async def test_calls_above_a_teams_rate_are_told_when_to_come_again(rated: World) -> None:
    assert (await rated.post(rated.order())).status_code == 200
    for line in (await create(rated), Line(rated, rated.order()), Line(rated, relay_order())):
        answer = await line.answer()
        assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.RateQuota")
        assert answer.headers["x-should-retry"] == "true"
        assert 900 < int(answer.headers["retry-after"]) <= 1_000
    assert len(await rated.rows("SELECT id FROM tasks")) == 1
    assert (await rated.post(rated.order(), "beta")).status_code == 200
    assert await rated.status(str((await rated.rows("SELECT id FROM tasks ORDER BY id"))[0]["id"])) == "PENDING"
