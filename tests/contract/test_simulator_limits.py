"""20 task calls and 5 creates a second, 5 running tasks: more is refused or waits, and a second later there is room."""

from __future__ import annotations

import httpx

from app.simulator import SINGAPORE, Simulator
from tests.contract.conftest import UpstreamCaller

RATE_REFUSAL = ("Throttling.RateQuota", "Requests rate limit exceeded, please try again later.")


def is_rate_refusal(answer: httpx.Response) -> bool:
    body = answer.json()
    return answer.status_code == 429 and (body["code"], body["message"]) == RATE_REFUSAL


async def test_the_twenty_first_query_of_a_second_is_refused(sim: Simulator, upstream: UpstreamCaller) -> None:
    answers = [await upstream.query("t-1") for _ in range(21)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429]
    assert is_rate_refusal(answers[-1])
    sim.advance(1)
    assert (await upstream.query("t-1")).status_code == 200


async def test_queries_and_lists_share_one_allowance(upstream: UpstreamCaller) -> None:
    for _ in range(10):
        assert (await upstream.query("t-1")).status_code == 200
        assert (await upstream.list()).status_code == 200
    assert is_rate_refusal(await upstream.query("t-1"))
    assert is_rate_refusal(await upstream.list())


async def test_the_sixth_create_of_a_second_is_refused_and_makes_nothing(
    sim: Simulator, upstream: UpstreamCaller
) -> None:
    answers = [await upstream.post(upstream.order()) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert is_rate_refusal(answers[-1])
    assert len(sim.truth.tasks) == 5
    sim.advance(1)
    await upstream.create()


async def test_another_region_has_its_own_allowance(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    for _ in range(5):
        await upstream.create()
    for _ in range(20):
        await upstream.query("t-1")
    elsewhere = UpstreamCaller(sim, http, SINGAPORE)
    assert await elsewhere.status(await elsewhere.create()) == "RUNNING"


async def test_a_task_above_the_running_limit_stays_pending(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(60, 60)
    running = [await upstream.create() for _ in range(5)]
    sim.advance(1)
    waiting = await upstream.create()
    assert {await upstream.status(task_id) for task_id in running} == {"RUNNING"}
    output = await upstream.output(waiting)
    assert output["task_status"] == "PENDING"
    assert "scheduled_time" not in output
    sim.advance(59)
    assert await upstream.status(waiting) == "RUNNING"
    sim.advance(60)
    assert await upstream.status(waiting) == "SUCCEEDED"


async def test_limits_can_be_changed(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_limits(creates_per_second=7, running_tasks=1, task_calls_per_second=3)
    first, second, *_ = [await upstream.create() for _ in range(7)]
    assert is_rate_refusal(await upstream.post(upstream.order()))
    assert [await upstream.status(first), await upstream.status(second)] == ["RUNNING", "PENDING"]
    await upstream.query("t-1")
    assert is_rate_refusal(await upstream.query("t-1"))


async def test_refused_parameters_count_for_the_rate(upstream: UpstreamCaller) -> None:
    answers = [await upstream.post(upstream.order(n=9)) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]
