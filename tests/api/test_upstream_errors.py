"""Every error that the upstream documents (dashscope-api.md 5), by every way a call goes: what the team sees of it, and
what the operator.

Whose fault a row is, is judged in tests/unit/test_upstream_faults.py; here is what follows from that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from app.errors import CouldNotFindOut
from app.routing.accounts import get_account_by_name, limit_model, upstream_of
from app.routing.changes import resume
from app.routing.keys import add_key
from app.simulator import BEIJING, Simulator
from app.tasks.poll import poll_due
from app.upstream.answers import CancelRefused
from app.upstream.faults import AtFault, Fault, judge
from tests.api.parts import UPSTREAM_ID, receipt, scripted_upstream, state
from tests.api.test_cli import run
from tests.hearing import Heard, listening
from tests.unit.test_upstream_faults import SECTION_5
from tests.world import CREATE_PATH, SECRET_KEY, World, open_world

CALLER, ACCOUNT, LOAD, UPSTREAM = Fault
SYNC_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
SYNC_ONLY = "qwen-image-2.0"
# Answers that tell of a call whose end nobody saw, whatever their status.
NO_VERDICT = ("APIConnectionError", "ClientDisconnect", "RequestTimeOut", "ResponseTimeout")
OURS = "Dashgate.UpstreamAccount"
OUR_WORDS = "The gateway's upstream account cannot take this call now. The operator has been told."


class Documented(NamedTuple):
    """A row of section 5."""

    status: int
    code: str
    message: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


TABLE = [Documented(*row[:4]) for row in SECTION_5]


def rows(*faults: Fault) -> list[Documented]:
    return [row for row in TABLE if row.fault in faults]


def in_tasks() -> list[Documented]:
    """The rows that a finished task can carry: those with a code."""
    return [row for row in TABLE if row.code]


@dataclass(frozen=True)
class Way:
    """How a team calls, and which operation of the upstream that becomes."""

    operation: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)


TASK = Way("create", CREATE_PATH, {"X-DashScope-Async": "enable"})
DURABLE = Way("create", SYNC_PATH)
RELAY = Way("sync", SYNC_PATH, {"X-Dashgate-Durable": "false"})
STREAM = Way("stream", SYNC_PATH, {"X-DashScope-SSE": "enable"})
EVERY_WAY = pytest.mark.parametrize("way", [TASK, DURABLE, RELAY, STREAM], ids=["task", "durable", "relay", "stream"])


@pytest.fixture
def heard() -> Iterator[Heard]:
    with listening() as heard:
        yield heard


@pytest.fixture
async def hasty(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that keeps nobody waiting."""
    quick = {"sync_wait_seconds": 0, "durable_wait_seconds": 0.05}
    async with open_world(still_sim, database_url, tmp_path, **quick) as world:
        yield world


def script(world: World, operation: str, row: Documented, **details: Any) -> None:
    """Let the upstream answer the next call with a row of the table."""
    if row.code:
        told = {"status": row.status, "code": row.code, "message": row.message}
        world.sim.fail_next(operation, "error", **told, **details)
    else:
        body = json.dumps({"message": row.message, "request_id": "upstreams"})
        world.sim.fail_next(operation, "garbage", status=row.status, body=body, **details)


async def send(world: World, way: Way, **parameters: Any) -> httpx.Response:
    return await world.http.post(way.path, json=world.order(**parameters), headers=world.headers(**way.headers))


async def meet(world: World, way: Way, row: Documented) -> httpx.Response:
    """Meet an error with a call, in a gateway that has forgotten the last one."""
    await forget(world)
    script(world, way.operation, row)
    return await send(world, way)


async def forget(world: World) -> None:
    await world.res.calls.drain(5)
    for table in ("work WHERE kind = 'submit'", "tasks", "account_models"):
        await world.rows(f"DELETE FROM {table}")  # noqa: S608
    await resume(world.res, BEIJING)
    await limit_model(world.res, BEIJING, "wan2.6-image", rps=10_000, running=1000)


async def last_task(world: World) -> dict[str, Any]:
    return await world.row("SELECT * FROM tasks")


async def left_alone(world: World) -> AtFault | None:
    """What the gateway leaves alone now: the account, or the model on it."""
    account = await world.row("SELECT paused_until FROM accounts")
    if account["paused_until"] is not None:
        return AtFault.ACCOUNT
    return AtFault.ACCOUNT_MODEL if await world.rows("SELECT 1 FROM account_key_models") else None


def without_another_key(row: Documented) -> AtFault:
    """What is left alone for a row by an account with one key."""
    at_fault = judge(row.code, row.message, status=row.status).at_fault
    return AtFault.ACCOUNT if at_fault in (AtFault.KEY, AtFault.ACCOUNT) else AtFault.ACCOUNT_MODEL


# --- the team's own fault ------------------------------------------------------------------------------------------


@EVERY_WAY
async def test_an_error_about_the_request_reaches_its_team_unchanged_and_ends_the_call(
    world: World, way: Way, heard: Heard
) -> None:
    for row in rows(CALLER):
        answer, task = await meet(world, way, row), await last_task(world)
        assert answer.status_code == row.status, row
        told = {"code": row.code, "message": row.message, "request_id": task["upstream_request_id"]}
        assert answer.json() == told, row
        assert answer.headers["x-should-retry"] == "false", row
        seen = (task["state"], task["code"], task["message"], task["refused_inline"])
        assert seen == ("failed", row.code, row.message, True), row
        assert await left_alone(world) is None, row
        alerts = judge(row.code, row.message, status=row.status).alerts
        events = [one for one in heard.take() if one["event"] in ("task.refused", "upstream.contradicted")]
        assert [one["event"] for one in events] == ["task.refused"] + ["upstream.contradicted"] * alerts, row
        assert all((one["code"], one.get("fault", "caller")) == (row.code, "caller") for one in events), row
    assert await world.rows("SELECT 1 FROM ledger_entries") == []


async def test_what_our_catalogue_knows_otherwise_is_an_error_to_the_operator_with_all_he_needs(
    world: World, heard: Heard
) -> None:
    await meet(world, TASK, Documented(400, "InvalidParameter", "url error, please check url", CALLER))
    (event,) = [one for one in heard.take() if one["event"] == "upstream.contradicted"]
    told = {name: event[name] for name in ("log_level", "account", "model", "path", "code", "message")}
    assert told == {
        "log_level": "error",
        "account": BEIJING,
        "model": "wan2.6-image",
        "path": "aigc/image-generation/generation",
        "code": "InvalidParameter",
        "message": "url error, please check url",
    }


async def test_a_model_that_only_its_team_believes_in_alarms_nobody(world: World, heard: Heard) -> None:
    await world.rows("UPDATE teams SET allow_unlisted_models = true")
    script(world, "create", Documented(404, "ModelNotFound", "Model not exist.", CALLER))
    answer = await world.post({**world.order(), "model": "tomorrows-model"})
    assert (answer.status_code, answer.json()["code"]) == (404, "ModelNotFound")
    assert heard.events(least="warning") == []


# --- our account's fault -------------------------------------------------------------------------------------------


@EVERY_WAY
async def test_an_error_of_our_account_is_a_503_without_details_and_the_operator_has_them_all(
    world: World, way: Way, heard: Heard
) -> None:
    for row in rows(ACCOUNT):
        answer, task = await meet(world, way, row), await last_task(world)
        assert answer.status_code == 503, row
        assert {**answer.json(), "request_id": ""} == {"code": OURS, "message": OUR_WORDS, "request_id": ""}, row
        assert answer.json()["request_id"] != task["upstream_request_id"], row
        assert answer.headers["x-should-retry"] == "false", row
        assert (task["state"], task["code"], task["refused_inline"]) == ("failed", OURS, True), row
        assert await left_alone(world) is without_another_key(row), row
        errors = [one for one in heard.take() if one["log_level"] == "error"]
        assert [(one["event"], one["account"]) for one in errors] == [("account.refused", BEIJING)], row
        assert (errors[0]["code"], errors[0]["message"]) == (row.code, row.message), row
    assert await world.rows("SELECT 1 FROM ledger_entries") == []


@EVERY_WAY
async def test_an_error_that_is_a_keys_is_met_once_and_the_next_key_makes_the_call(
    world: World, way: Way, heard: Heard
) -> None:
    by_key = [row for row in rows(ACCOUNT) if judge(row.code, status=row.status).at_fault in ("key", "key_model")]
    assert len(by_key) == 7
    old = world.sim.key(BEIJING)
    await add_key(world.res, BEIJING, "sk-sim-beijing-second")
    for row in by_key:
        await forget(world)
        script(world, way.operation, row, key="sk-sim-beijing-second")
        world.sim.set_durations(0, 0)
        answer = await finished(world, way)
        assert answer.status_code == 200, row
        marked = await world.rows("SELECT bad_reason AS reason FROM account_keys WHERE bad_until IS NOT NULL")
        barred = await world.rows("SELECT reason FROM account_key_models")
        is_model = judge(row.code, status=row.status).at_fault is AtFault.KEY_MODEL
        marks = [one["reason"] for one in (barred if is_model else marked)]
        assert marks == [row.code], row
        (error,) = [one for one in heard.take() if one["log_level"] == "error"]
        assert (error["event"], error["code"], error["account"]) == ("key.refused", row.code, BEIJING), row
        assert old not in str(error), row


async def finished(world: World, way: Way) -> httpx.Response:
    """Make a call and let time pass until it is answered."""
    calling = asyncio.ensure_future(send(world, way))
    async with asyncio.timeout(20):
        while not calling.done():
            await asyncio.sleep(0.02)
            await world.advance(1.1)
    return await calling


@pytest.mark.parametrize("row", [rows(ACCOUNT)[0], rows(ACCOUNT)[1]], ids=["money", "key"])
async def test_the_operators_commands_say_whose_fault_it_is(world: World, row: Documented) -> None:
    await meet(world, TASK, row)
    task = await last_task(world)
    usual = {"DASHGATE_DATABASE_URL": world.database_url, "DASHGATE_SECRET_KEY": SECRET_KEY}
    listed, drawn, shown, found = await asyncio.gather(
        run("account", "list", "--json", **usual),
        run("account", "list", **usual),
        run("task", "show", str(task["id"]), "--json", **usual),
        run("doctor", "--json", **usual),
    )
    (account,) = listed.document["accounts"]
    assert (account["paused_reason"], account["paused_until"] is not None) == (row.code, True)
    assert row.code in drawn.out.replace("\n", "")
    assert shown.document["code"] == OURS
    finding = next(one for one in found.document["findings"] if one["check"] == f"account {BEIJING}")
    assert (finding["level"], row.code in finding["text"]) == ("warning", True)
    assert world.sim.key(BEIJING) not in "".join(done.out + done.err for done in (listed, drawn, shown, found))


# --- too much at once ----------------------------------------------------------------------------------------------


async def test_load_is_not_a_tasks_affair_it_waits_here(world: World, heard: Heard) -> None:
    for row in rows(LOAD):
        answer, task = await meet(world, TASK, row), await last_task(world)
        assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING"), row
        assert (task["state"], task["refused_inline"]) == ("queued", False), row
        limits = await world.row("SELECT next_submit_at FROM account_models")
        assert limits["next_submit_at"] > world.res.clock.now(), row
        (event,) = [one for one in heard.take() if one["event"] == "task.refused"]
        assert (event["log_level"], event["code"], event["fault"]) == ("info", row.code, "load"), row


async def test_a_call_that_runs_as_a_task_waits_through_load(world: World) -> None:
    for row in rows(LOAD):
        await forget(world)
        script(world, "create", row)
        answer = await finished(world, DURABLE)
        assert (answer.status_code, list(answer.json())) == (200, ["output", "usage", "request_id"]), row


@pytest.mark.parametrize("way", [RELAY, STREAM], ids=["relay", "stream"])
async def test_a_relay_waits_through_load_only_as_long_as_it_may(hasty: World, way: Way) -> None:
    for row in rows(LOAD):
        answer = await meet(hasty, way, row)
        assert (answer.status_code, answer.json()["code"]) == (429, "Throttling.RateQuota"), row
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "1"), row


async def test_a_relay_that_may_wait_is_answered_after_a_429(world: World) -> None:
    world.sim.set_durations(0, 0)
    script(world, "sync", rows(LOAD)[0])
    calling = asyncio.ensure_future(send(world, RELAY))
    async with asyncio.timeout(20):
        while not await world.rows("SELECT 1 FROM tasks WHERE state = 'failed'"):  # noqa: ASYNC110 -- no event tells
            await asyncio.sleep(0.02)
        world.sim.advance(5)  # the model is left alone for a moment after a 429
        answer = await calling
    assert (answer.status_code, answer.json()["usage"]["image_count"]) == (200, 1)
    assert [call.billed_images for call in world.sim.truth.calls] == [1]


# --- the upstream's fault ------------------------------------------------------------------------------------------


async def test_an_error_of_the_upstream_leaves_a_task_in_doubt_and_is_never_resent(world: World, heard: Heard) -> None:
    for number, row in enumerate(rows(UPSTREAM), 1):
        answer, task = await meet(world, TASK, row), await last_task(world)
        assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING"), row
        assert answer.headers["x-should-retry"] == "false", row
        assert task["state"] == "doubtful", row
        (event,) = [one for one in heard.take() if one["event"] == "task.doubted"]
        assert (event["log_level"], event["reason"]) == ("warning", f"{row.status} {row.code}"), row
        await world.advance(6)
        assert len(world.sim.truth.journal.read(operation="create")) == number, row


async def test_a_call_that_runs_as_a_task_is_a_504_while_its_task_is_in_doubt(hasty: World) -> None:
    for row in rows(UPSTREAM):
        answer, task = await meet(hasty, DURABLE, row), await last_task(hasty)
        assert (answer.status_code, answer.json()["code"]) == (504, "RequestTimeOut"), row
        assert answer.headers["x-should-retry"] == "false", row
        assert (answer.headers["X-Dashgate-Task-Id"], task["state"]) == (str(task["id"]), "doubtful"), row


@pytest.mark.parametrize("way", [RELAY, STREAM], ids=["relay", "stream"])
async def test_a_relay_passes_the_upstreams_verdict_on_and_says_so_when_there_is_none(world: World, way: Way) -> None:
    for row in rows(UPSTREAM):
        answer, task = await meet(world, way, row), await last_task(world)
        lines = [line["kind"] for line in await world.rows("SELECT kind FROM ledger_entries")]
        assert answer.headers["x-should-retry"] == "false", row
        if row.code in NO_VERDICT:
            assert (answer.status_code, answer.json()["code"]) == (500, "Dashgate.OutcomeUnknown"), row
            assert (task["code"], lines[-1:]) == ("Dashgate.OutcomeUnknown", ["uncertain"]), row
        else:
            told = {"code": row.code, "message": row.message, "request_id": task["upstream_request_id"]}
            assert (answer.status_code, answer.json()) == (row.status, told), row
            assert task["code"] == row.code, row
    calls = len(world.sim.truth.journal.read(operation=way.operation))
    assert calls == len(rows(UPSTREAM))


# --- a task whose model knows only synchronous calls ----------------------------------------------------------------


def edit(world: World) -> dict[str, Any]:
    return {**world.order(), "model": SYNC_ONLY}


async def test_a_worker_that_makes_the_call_leaves_the_error_where_its_team_reads_it(world: World) -> None:
    for row in TABLE:
        await forget(world)
        script(world, "sync", row)
        created = await world.http.post(SYNC_PATH, json=edit(world), headers=world.headers(**TASK.headers))
        assert created.status_code == 200, row
        await world.dispatch()
        output = (await world.read(created.json()["output"]["task_id"]))["output"]
        told = (output["task_status"], output.get("code"), output.get("message"))
        if row.fault in (ACCOUNT, LOAD):
            assert told == ("PENDING", None, None), row
            assert (await last_task(world))["state"] == "queued", row
        elif row.code in NO_VERDICT:
            assert told[:2] == ("FAILED", "Dashgate.OutcomeUnknown"), row
        else:
            assert told == ("FAILED", row.code, row.message), row


# --- inside a finished task -----------------------------------------------------------------------------------------


async def test_the_code_of_a_failed_task_is_the_upstreams_unless_our_account_is_at_fault(
    world: World, heard: Heard
) -> None:
    await forget(world)
    for row in in_tasks():
        script(world, "outcome", row)
    ids = [await world.create(str(number)) for number, _ in enumerate(in_tasks())]
    heard.take()
    for _ in range(len(ids)):
        await world.advance(30)
    refused = [(one["code"], one["message"]) for one in heard.take() if one["event"] == "account.refused"]
    for row, task_id in zip(in_tasks(), ids, strict=True):
        output = (await world.read(task_id))["output"]
        ours = row.fault is ACCOUNT
        assert (output["task_status"], output["code"]) == ("FAILED", OURS if ours else row.code), row
        assert output.get("message", "") == ("" if ours else row.message), row
        assert ((row.code, row.message) in refused) is ours, row
    assert await world.rows("SELECT 1 FROM ledger_entries") == []  # what failed costs nothing
    assert len(world.sim.truth.journal.read(operation="create")) == len(ids)  # and is not made a second time by us


async def test_a_call_that_runs_as_a_task_has_the_status_of_the_code_that_its_task_ended_with(world: World) -> None:
    await forget(world)
    for row in in_tasks():
        script(world, "outcome", row)
    calls = [asyncio.ensure_future(send(world, DURABLE, prompt=str(n))) for n, _ in enumerate(in_tasks())]
    async with asyncio.timeout(60):
        while not all(call.done() for call in calls):
            await asyncio.sleep(0.02)
            await world.advance(30)
    answers = [await call for call in calls]
    seen = sorted((one.status_code, one.json()["code"], one.json()["message"]) for one in answers)
    told = [
        (503, OURS, OUR_WORDS) if row.fault is ACCOUNT else (row.status, row.code, row.message) for row in in_tasks()
    ]
    assert seen == sorted(told)
    assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}


async def test_the_code_of_one_result_among_others_is_the_upstreams(world: World) -> None:
    lost = [{"code": row.code, "message": row.message} for row in in_tasks() if row.fault is not ACCOUNT]
    metrics = {"TOTAL": len(lost) + 1, "SUCCEEDED": 1, "FAILED": len(lost)}
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        task_id = await world.create(team="gamma")
        results = [{"url": upstream.link()}, *lost]
        upstream.look = state("SUCCEEDED", results=results, task_metrics=metrics, usage={"image_count": 1})
        await world.advance(2)
        output = (await world.read(task_id, "gamma"))["output"]
    assert (output["task_status"], output["results"][1:], output["task_metrics"]) == ("SUCCEEDED", lost, metrics)
    assert output["results"][0]["url"].startswith("http://gateway/assets/")
    assert UPSTREAM_ID not in str(output)
    assert (await world.row("SELECT quantity FROM ledger_entries"))["quantity"] == 1


# --- questions ------------------------------------------------------------------------------------------------------


async def meet_in_question(world: World, operation: str, row: Documented) -> None:
    """Let time pass until the upstream has answered a question about a task with a row of the table."""
    script(world, operation, row)
    asked = len(world.sim.truth.journal.read(operation=operation))
    async with asyncio.timeout(20):
        while len(world.sim.truth.journal.read(operation=operation)) == asked:
            world.sim.advance(5)
            await poll_due(world.res, watches=world.watches)


async def test_no_error_on_a_question_ends_a_task_and_the_operator_hears_of_each(world: World, heard: Heard) -> None:
    world.sim.set_durations(100_000, 100_000)
    task_id = await world.create()
    await world.advance(60)
    said: list[str] = []
    for row in TABLE:
        heard.take()
        await meet_in_question(world, "query", row)
        assert await world.status(task_id) == "RUNNING", row
        told, reason = heard.take(), f"{row.status} {row.code}".strip()
        assert [one["reason"] for one in told if one["event"] == "task.call_failed"] == [reason], row
        errors = [(one["event"], one["reason"]) for one in told if one["log_level"] == "error"]
        assert errors in ([], [("account.refused", reason)] * (row.fault is ACCOUNT)), row
        said += [reason for _, reason in errors]
    assert said[0] == "400 Arrearage"
    assert len(said) < len(rows(ACCOUNT))  # said once until a question is answered, not with each look
    world.sim.set_durations(0, 0)


async def test_a_cancel_is_refused_by_an_error_about_the_request_alone(world: World) -> None:
    account = await get_account_by_name(world.res, BEIJING)
    there = upstream_of(world.res, account, key=account.keys[0])
    for row in TABLE:
        script(world, "cancel", row)
        try:
            seen: object = await there.cancel_task(UPSTREAM_ID)
        except CouldNotFindOut as trouble:
            seen = (trouble.throttled, trouble.account_at_fault)
        expected = CancelRefused(row.code) if row.fault is CALLER else (row.fault is LOAD, row.fault is ACCOUNT)
        assert seen == expected, row


async def test_a_team_is_told_no_when_the_upstream_refuses_its_cancel_and_its_task_goes_on(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    task_id = await world.create()
    script(world, "cancel", rows(CALLER)[0])
    asking = asyncio.ensure_future(world.http.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers()))
    async with asyncio.timeout(20):
        while not asking.done():
            await asyncio.sleep(0.02)
            world.sim.advance(1)
            await poll_due(world.res, watches=world.watches)
    answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (400, "UnsupportedOperation")
    assert (await last_task(world))["cancel_requested_at"] is None
    assert await world.status(task_id) == "PENDING"


async def test_an_error_on_an_upload_policy_is_told_by_whose_fault_it_is(world: World, heard: Heard) -> None:
    for row in TABLE:
        heard.take()
        script(world, "upload_policy", row)
        asked = {"action": "getPolicy", "model": "wan2.6-image"}
        answer = await world.http.get("/api/v1/uploads", params=asked, headers=world.headers())
        seen = (answer.status_code, answer.json()["code"])
        match row.fault:
            case Fault.CALLER:
                assert (*seen, answer.json()["message"]) == (row.status, row.code, row.message), row
            case Fault.ACCOUNT:
                assert (*seen, answer.json()["message"]) == (503, OURS, OUR_WORDS), row
                (error,) = [one for one in heard.take() if one["log_level"] == "error"]
                assert (error["event"], error["code"]) == ("account.refused", row.code), row
            case Fault.LOAD:
                assert (*seen, answer.headers["x-should-retry"]) == (429, "Throttling.RateQuota", "true"), row
            case Fault.UPSTREAM:
                assert (*seen, answer.headers["x-should-retry"]) == (503, "ServiceUnavailable", "true"), row
