"""Cancelling: only what waits can be cancelled, and everything else is refused in the same words."""

from __future__ import annotations

import httpx
import pytest

from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from app.simulator.options import DAY_SECONDS
from tests.contract.conftest import UpstreamCaller

REFUSAL = (
    400,
    "UnsupportedOperation",
    "Failed to cancel the task, please confirm if the task is in PENDING status.",
)
STRANGER = SimulatorKey("sk-sim-stranger", BEIJING, "2000000000000002")
COLLEAGUE = SimulatorKey("sk-sim-colleague", BEIJING)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert body.keys() == {"code", "message", "request_id"}
    return answer.status_code, body["code"], body["message"]


@pytest.fixture
def waiting(sim: Simulator, upstream: UpstreamCaller) -> UpstreamCaller:
    """A client of a region where no task gets its turn."""
    sim.set_limits(running_tasks=0)
    return upstream


async def test_a_waiting_task_is_canceled_and_costs_nothing(sim: Simulator, waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    answer = await waiting.cancel(task_id)
    assert (answer.status_code, answer.json().keys()) == (200, {"request_id"})
    output = await waiting.output(task_id)
    assert output.keys() == {"task_id", "task_status", "submit_time"}
    assert output["task_status"] == "CANCELED"
    sim.set_limits(running_tasks=5)
    sim.advance(60)
    assert await waiting.status(task_id) == "CANCELED"
    assert sim.truth.bill()[BEIJING] == {}


async def test_the_list_shows_it_canceled(waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    await waiting.create()
    await waiting.cancel(task_id)
    [row] = (await waiting.list(status="CANCELED")).json()["data"]
    assert row["task_id"] == task_id
    assert "end_time" not in row


async def test_a_canceled_task_leaves_its_place_to_the_next(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_limits(running_tasks=1)
    sim.set_durations(10, 10)
    first, second, third = [await upstream.create() for _ in range(3)]
    assert (await upstream.cancel(second)).status_code == 200
    sim.advance(10)
    assert [await upstream.status(task_id) for task_id in (first, second, third)] == [
        "SUCCEEDED",
        "CANCELED",
        "RUNNING",
    ]


async def test_a_running_task_is_not_canceled_and_is_billed(sim: Simulator, upstream: UpstreamCaller) -> None:
    task_id = await upstream.create()
    assert refusal(await upstream.cancel(task_id)) == REFUSAL
    sim.advance(1)
    assert refusal(await upstream.cancel(task_id)) == REFUSAL
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 1}


async def test_a_task_is_canceled_once(waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    assert (await waiting.cancel(task_id)).status_code == 200
    assert refusal(await waiting.cancel(task_id)) == REFUSAL


async def test_an_unknown_and_a_forgotten_task_are_refused_alike(sim: Simulator, waiting: UpstreamCaller) -> None:
    assert refusal(await waiting.cancel("t-1")) == REFUSAL
    task_id = await waiting.create()
    sim.advance(DAY_SECONDS)
    assert refusal(await waiting.cancel(task_id)) == REFUSAL


async def test_only_the_same_main_account_and_region_may_cancel(http: httpx.AsyncClient) -> None:
    keys = (SimulatorKey("sk-sim-beijing", BEIJING), COLLEAGUE, STRANGER, SimulatorKey("sk-sim-singapore", SINGAPORE))
    async with running_simulator(SimulatorOptions(keys=keys, clock_scale=0)) as sim:
        sim.set_limits(running_tasks=0)
        upstream = UpstreamCaller(sim, http)
        task_id = await upstream.create()
        assert refusal(await UpstreamCaller(sim, http, SINGAPORE).cancel(task_id)) == REFUSAL
        upstream.headers["Authorization"] = f"Bearer {STRANGER.secret}"
        assert refusal(await upstream.cancel(task_id)) == REFUSAL
        assert sim.truth.tasks[0].status == "PENDING"
        upstream.headers["Authorization"] = f"Bearer {COLLEAGUE.secret}"
        assert (await upstream.cancel(task_id)).status_code == 200


async def test_a_cancel_needs_a_key(waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    waiting.headers = {}
    assert refusal(await waiting.cancel(task_id))[:2] == (401, "InvalidApiKey")


async def test_cancels_have_an_allowance_of_their_own(sim: Simulator, waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    for _ in range(20):
        assert refusal(await waiting.cancel("t-1")) == REFUSAL
    assert refusal(await waiting.cancel(task_id)) == (
        429,
        "Throttling.RateQuota",
        "Requests rate limit exceeded, please try again later.",
    )
    assert await waiting.status(task_id) == "PENDING"
    sim.advance(1)
    assert (await waiting.cancel(task_id)).status_code == 200


async def test_a_cancel_whose_answer_is_lost_has_happened(sim: Simulator, waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    sim.fail_next("cancel", "lost_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await waiting.cancel(task_id)
    assert await waiting.status(task_id) == "CANCELED"


async def test_the_journal_knows_what_was_to_be_canceled(sim: Simulator, waiting: UpstreamCaller) -> None:
    task_id = await waiting.create()
    await waiting.cancel(task_id)
    [entry] = sim.truth.journal.read(operation="cancel")
    assert (entry.task_id, entry.method, entry.status) == (task_id, "POST", 200)
