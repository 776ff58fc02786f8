"""What the upstream should never say: it ends no task, is counted, told once, and stands on the task's row."""

from __future__ import annotations

import json
from typing import Any

import pytest
import structlog

from app.lib.metrics import UPSTREAM_ODDITIES
from tests.steps.parts import states, task
from tests.world import World

HOUR = 3_600


async def open_task(world: World) -> str:
    """A task that runs upstream for as long as anybody looks."""
    world.sim.set_durations(20 * HOUR, 20 * HOUR)
    task_id = await world.create()
    await world.advance(5)
    assert await states(world) == ["running"]
    return task_id


def says(world: World, word: str, times: int = 1) -> None:
    """The next looks are answered with a status."""
    body = json.dumps({"request_id": "r", "output": {"task_id": "t", "task_status": word}})
    world.sim.fail_next("query", "garbage", times=times, body=body)


def counted(kind: str) -> float:
    return UPSTREAM_ODDITIES.labels(kind)._value.get()


async def looked_at(world: World, times: int = 1) -> None:
    for _ in range(times):
        await world.advance(40)


@pytest.mark.parametrize(
    ("word", "kind", "told"),
    [
        ("PENDING", "backwards", "backwards"),
        ("SUSPENDED", "suspended", "suspended"),
        ("PAUSED", "new_word", "new_word: PAUSED"),
        ("UNKNOWN", "unknown", "unknown"),
    ],
)
async def test_an_odd_word_ends_nothing_and_stands_on_the_row(world: World, word: str, kind: str, told: str) -> None:
    task_id, before = await open_task(world), counted(kind)
    says(world, word)
    await looked_at(world)
    row = await task(world, task_id)
    assert (row["state"], row["oddity"]) == ("running", told)
    assert counted(kind) == before + 1


async def test_a_state_that_ran_backwards_runs_on(world: World) -> None:
    world.sim.set_durations(100, 100)
    task_id = await world.create()
    await world.advance(5)
    says(world, "PENDING")
    await looked_at(world, times=4)
    assert (await task(world, task_id))["state"] == "succeeded"
    assert "pending" not in (await world.events(task_id))[2:]


async def test_an_oddity_is_counted_once_for_a_task_and_told_once_a_day(world: World) -> None:
    await open_task(world)
    before = counted("new_word")
    says(world, "HALTED", times=5)
    with structlog.testing.capture_logs() as logs:
        await looked_at(world, times=5)
    assert counted("new_word") == before + 1
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["upstream.odd"]


async def test_the_first_oddity_of_a_task_stays_on_its_row(world: World) -> None:
    task_id = await open_task(world)
    says(world, "HALTED")
    await looked_at(world)
    says(world, "PENDING")
    await looked_at(world)
    assert (await task(world, task_id))["oddity"] == "new_word: HALTED"


async def test_a_task_that_outlives_the_upstreams_own_limit_is_odd(world: World) -> None:
    task_id, before = await open_task(world), counted("overdue")
    world.sim.advance(3 * HOUR)
    await world.advance(40)
    assert counted("overdue") == before
    world.sim.advance(HOUR)
    await world.advance(40)
    row = await task(world, task_id)
    assert (row["state"], row["oddity"], counted("overdue")) == ("running", "overdue", before + 1)


async def test_the_upstreams_own_limit_fails_a_task_in_its_words_and_costs_nothing(world: World) -> None:
    world.sim.fail_next("outcome", "error", code="InternalError.Timeout", message="no result in 3 hours")
    task_id = await world.create()
    await world.advance(5)
    row = await task(world, task_id)
    assert (row["state"], row["code"]) == ("failed", "InternalError.Timeout")
    assert await world.rows("SELECT 1 FROM ledger_entries") == []


async def test_what_the_upstream_has_forgotten_is_expired_and_presumed(world: World) -> None:
    world.sim.set_durations(30, 30)
    task_id = await world.create()
    world.sim.advance(24 * HOUR + 60)
    await world.drain()
    row = await task(world, task_id)
    assert (row["state"], row["code"]) == ("expired", "Dashgate.ResultExpired")
    (line,) = await world.rows("SELECT kind FROM ledger_entries")
    assert line["kind"] == "presumed"


async def test_nothing_odd_is_said_of_a_task_that_only_runs(world: World) -> None:
    task_id = await open_task(world)
    await looked_at(world, times=3)
    row: dict[str, Any] = await task(world, task_id)
    assert row["oddity"] is None
