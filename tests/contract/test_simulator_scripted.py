"""Scripted errors, garbage and outcomes: any refusal, for any call, aimed at a key or a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import pytest_asyncio

from app.simulator import BEIJING, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from tests.contract.conftest import UpstreamCaller

MODEL = "wan2.6-image"
FIRST, SECOND = SimulatorKey("sk-sim-first", BEIJING), SimulatorKey("sk-sim-second", BEIJING)
ARREARAGE = "Access denied, please make sure your account is in good standing."

Call = Callable[[UpstreamCaller], Awaitable[httpx.Response]]


async def ask_policy(upstream: UpstreamCaller) -> httpx.Response:
    wanted = {"action": "getPolicy", "model": MODEL}
    return await upstream.http.get(f"{upstream.base_url}/uploads", params=wanted, headers=upstream.headers)


async def call_at_once(upstream: UpstreamCaller, **headers: str) -> httpx.Response:
    return await upstream.call("aigc/multimodal-generation/generation", upstream.order(), **headers)


CALLS: dict[str, Call] = {
    "sync": call_at_once,
    "stream": lambda upstream: call_at_once(upstream, X_DashScope_SSE="enable"),
    "create": lambda upstream: upstream.post(upstream.order()),
    "query": lambda upstream: upstream.query("t-1"),
    "list": lambda upstream: upstream.list(),
    "cancel": lambda upstream: upstream.cancel("t-1"),
    "upload_policy": ask_policy,
}
COUNTED = ("create", "query", "list", "upload_policy")  # those whose plain answer here is 200


@pytest_asyncio.fixture(loop_scope="session")
async def two_keys(http: httpx.AsyncClient) -> AsyncIterator[tuple[Simulator, UpstreamCaller, UpstreamCaller]]:
    """A simulator with two keys of one main account, and a client for each."""
    async with running_simulator(SimulatorOptions(keys=(FIRST, SECOND), clock_scale=0)) as sim:
        first, second = UpstreamCaller(sim, http), UpstreamCaller(sim, http)
        second.headers = {"Authorization": f"Bearer {SECOND.secret}"}
        yield sim, first, second


@pytest.mark.parametrize("operation", CALLS)
async def test_any_call_can_be_refused_with_any_words(sim: Simulator, upstream: UpstreamCaller, operation: str) -> None:
    sim.fail_next(operation, "error", status=400, code="Arrearage", message=ARREARAGE)
    answer = await CALLS[operation](upstream)
    assert (answer.status_code, answer.json().keys()) == (400, {"code", "message", "request_id"})
    assert (answer.json()["code"], answer.json()["message"]) == ("Arrearage", ARREARAGE)
    assert (sim.truth.tasks, sim.truth.calls, sim.truth.faults.waiting()) == ((), (), ())


async def test_a_refusal_of_the_file_host_is_xml(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    task_id = await upstream.create()
    sim.advance(1)
    [link] = await upstream.links(task_id)
    sim.fail_next("file", "error", status=404, code="NoSuchKey", message="gone & lost")
    answer = await http.get(link)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/xml")
    assert "<Code>NoSuchKey</Code>" in answer.text
    assert "gone &amp; lost" in answer.text


async def test_a_processed_error_hides_a_task(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("create", "error", status=500, code="RequestTimeOut", processed=True)
    answer = await upstream.post(upstream.order())
    assert (answer.status_code, answer.json()["code"]) == (500, "RequestTimeOut")
    [row] = (await upstream.list()).json()["data"]
    assert row["request_id"] == answer.json()["request_id"]


@pytest.mark.parametrize("operation", CALLS)
async def test_any_answer_can_be_garbage(sim: Simulator, upstream: UpstreamCaller, operation: str) -> None:
    page = "<html>Bad Gateway</html>"
    sim.fail_next(operation, "garbage", status=502, body=page, media_type="text/html")
    answer = await CALLS[operation](upstream)
    assert (answer.status_code, answer.text) == (502, page)
    assert answer.headers["content-type"].startswith("text/html")


async def test_garbage_is_an_answer_that_broke_off_unless_told_otherwise(
    sim: Simulator, upstream: UpstreamCaller
) -> None:
    sim.fail_next("create", "garbage", processed=True)
    answer = await upstream.post(upstream.order())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    with pytest.raises(ValueError):
        answer.json()
    assert len(sim.truth.tasks) == 1


@pytest.mark.parametrize("operation", COUNTED)
async def test_a_fault_can_hit_one_key_of_an_account(
    two_keys: tuple[Simulator, UpstreamCaller, UpstreamCaller], operation: str
) -> None:
    sim, first, second = two_keys
    sim.fail_next(operation, "error", times=2, status=401, code="InvalidApiKey", key=FIRST.secret)
    statuses = [(await CALLS[operation](caller)).status_code for caller in (second, first, second, first, first)]
    assert statuses == [200, 401, 200, 401, 200]


async def test_a_model_can_be_denied_to_one_key(
    two_keys: tuple[Simulator, UpstreamCaller, UpstreamCaller],
) -> None:
    sim, first, second = two_keys
    denied = {"status": 403, "code": "Model.AccessDenied", "key": FIRST.secret}
    sim.fail_next("create", "error", model="another-model", **denied)
    assert (await first.post(first.order())).status_code == 200
    sim.fail_next("create", "error", model=MODEL, **denied)
    sim.fail_next("upload_policy", "error", model=MODEL, **denied)
    assert (await second.post(second.order())).status_code == 200
    assert (await first.post(first.order())).json()["code"] == "Model.AccessDenied"
    assert (await ask_policy(first)).json()["code"] == "Model.AccessDenied"
    assert [fault.model for fault in sim.truth.faults.waiting()] == ["another-model"]


async def test_the_two_keys_of_an_account_see_the_same_tasks(
    two_keys: tuple[Simulator, UpstreamCaller, UpstreamCaller],
) -> None:
    _, first, second = two_keys
    assert await second.status(await first.create()) == "RUNNING"


async def test_the_next_task_can_be_told_to_fail(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("outcome", "error", code="InternalError.Timeout", message="nothing came")
    failing, healthy = await upstream.create(), await upstream.create()
    assert await upstream.status(failing) == "RUNNING"
    sim.advance(1)
    output = await upstream.output(failing)
    assert (output["task_status"], output["code"], output["message"]) == (
        "FAILED",
        "InternalError.Timeout",
        "nothing came",
    )
    assert await upstream.status(healthy) == "SUCCEEDED"
    assert sim.truth.bill()[BEIJING] == {MODEL: 1}


async def test_a_synchronous_call_can_be_told_to_fail(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("outcome", "error", status=400, code="DataInspectionFailed", message="no", key=sim.key(BEIJING))
    answer = await call_at_once(upstream)
    assert (answer.status_code, answer.json()["code"]) == (400, "DataInspectionFailed")
    assert (await call_at_once(upstream)).status_code == 200
    assert sim.truth.bill()[BEIJING] == {MODEL: 1}


async def test_a_task_under_way_can_be_told_to_fail(sim: Simulator, upstream: UpstreamCaller) -> None:
    task_id = await upstream.create()
    sim.truth.fail_task(task_id, "IPInfringementSuspect", message="not yours")
    assert await upstream.status(task_id) == "RUNNING"
    sim.advance(1)
    output = await upstream.output(task_id)
    assert (output["task_status"], output["code"]) == ("FAILED", "IPInfringementSuspect")
    assert sim.truth.bill()[BEIJING] == {}


async def test_what_has_ended_cannot_be_told_to_fail(sim: Simulator, upstream: UpstreamCaller) -> None:
    with pytest.raises(LookupError):
        sim.truth.fail_task("t-1", "InternalError")
    task_id = await upstream.create()
    sim.advance(1)
    with pytest.raises(ValueError, match="SUCCEEDED already"):
        sim.truth.fail_task(task_id, "InternalError")


async def test_errors_are_scripted_through_the_control_port_too(sim: Simulator, upstream: UpstreamCaller) -> None:
    script = {"operation": "create", "kind": "error", "status": 403, "code": "Model.AccessDenied", "model": MODEL}
    faults = (await upstream.http.post(f"{sim.control_url}/faults", json=script)).json()["faults"]
    assert [(fault["kind"], fault["code"], fault["model"]) for fault in faults] == [
        ("error", "Model.AccessDenied", MODEL)
    ]
    outcome = {"operation": "outcome", "kind": "error", "code": "DataInspectionFailed"}
    assert (await upstream.http.post(f"{sim.control_url}/faults", json=outcome)).status_code == 200
    assert (await upstream.post(upstream.order())).status_code == 403
    task_id = await upstream.create()
    sim.advance(1)
    assert await upstream.status(task_id) == "FAILED"
