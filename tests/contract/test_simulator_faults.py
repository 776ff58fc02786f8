"""Trouble on purpose: what a client sees of each fault, and what really happened behind it."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from app.simulator import BEIJING, SINGAPORE, Hostility, Simulator, SimulatorOptions, running_simulator
from tests.contract.conftest import UpstreamCaller

LONG_SECONDS = 600


async def hit(sim: Simulator) -> None:
    """Wait until a fault has hit the first request."""
    while not any(entry.fault for entry in sim.truth.journal):  # noqa: ASYNC110 - the simulator tells nobody
        await asyncio.sleep(0)


async def test_a_throttled_create_makes_nothing(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("create", "429", times=2)
    answers = [await upstream.post(upstream.order()) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].json()["code"] == "Throttling.RateQuota"
    assert len(sim.truth.tasks) == 1


@pytest.mark.parametrize(("status", "code"), [(503, "ModelUnavailable"), (500, "InternalError")])
async def test_a_5xx_has_a_json_body(sim: Simulator, upstream: UpstreamCaller, status: int, code: str) -> None:
    sim.fail_next("query", "5xx", status=status)
    answer = await upstream.query("t-1")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json().keys() == {"code", "message", "request_id"}
    assert (await upstream.query("t-1")).status_code == 200


async def test_a_processed_5xx_names_the_request_that_made_the_task(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("create", "5xx", processed=True)
    answer = await upstream.post(upstream.order())
    assert answer.status_code == 503
    [row] = (await upstream.list()).json()["data"]
    assert row["request_id"] == answer.json()["request_id"]


async def test_a_lost_answer_leaves_a_task_behind(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("create", "lost_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await upstream.post(upstream.order())
    [task] = sim.truth.tasks
    sim.advance(1)
    assert await upstream.status(task.id) == "SUCCEEDED"
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 1}
    [entry] = sim.truth.journal.read(operation="create")
    assert (entry.status, entry.fault, entry.task_id) == (None, "lost_answer", task.id)


@pytest.mark.parametrize("processed", [True, False])
async def test_a_hanging_create_takes_effect_or_not_as_told(
    sim: Simulator, upstream: UpstreamCaller, processed: bool
) -> None:
    sim.fail_next("create", "hang", seconds=LONG_SECONDS, processed=processed)
    hanging = asyncio.create_task(upstream.post(upstream.order()))
    await hit(sim)
    hanging.cancel()
    assert len(sim.truth.tasks) == int(processed)
    [entry] = sim.truth.journal
    assert (entry.status, entry.fault) == (None, "hang")


async def test_a_hang_ends_without_an_answer(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("list", "hang", seconds=0.01)
    with pytest.raises(httpx.RemoteProtocolError):
        await upstream.list()


async def test_a_reset_lets_go_of_what_hangs(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("query", "hang", seconds=LONG_SECONDS)
    hanging = asyncio.create_task(upstream.query("t-1"))
    await hit(sim)
    sim.reset()
    with pytest.raises(httpx.TransportError):
        await hanging


async def test_a_hanging_request_does_not_hold_up_the_end(http: httpx.AsyncClient) -> None:
    async with running_simulator() as sim:
        sim.fail_next("query", "hang", seconds=LONG_SECONDS)
        hanging = asyncio.create_task(UpstreamCaller(sim, http).query("t-1"))
        await hit(sim)
    with pytest.raises(httpx.TransportError):
        await hanging


async def test_a_fault_can_belong_to_one_region(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    sim.fail_next("query", "5xx", region=SINGAPORE)
    assert (await upstream.query("t-1")).status_code == 200
    assert (await UpstreamCaller(sim, http, SINGAPORE).query("t-1")).status_code == 503


@pytest.mark.parametrize(("kind", "status"), [("429", 429), ("5xx", 503)])
async def test_a_faulty_file_is_refused_in_xml(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient, kind: str, status: int
) -> None:
    task_id = await upstream.create()
    sim.advance(1)
    [link] = await upstream.links(task_id)
    sim.fail_next("file", kind)
    answer = await http.get(link)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/xml")
    assert (await http.get(link)).status_code == 200


async def test_a_hostile_simulator_refuses_now_and_then(http: httpx.AsyncClient) -> None:
    hostility = Hostility(query_throttle_share=0.3, query_unavailable_share=0.3)
    async with running_simulator(SimulatorOptions(hostility=hostility, seed=1, clock_scale=0)) as sim:
        upstream = UpstreamCaller(sim, http)
        sim.set_limits(task_calls_per_second=1000)
        statuses = [(await upstream.query("t-1")).status_code for _ in range(60)]
        await upstream.create()
    assert set(statuses) == {200, 429, 503}
