"""Dispatch: who waits is sent as room appears, oldest first, at the model's pace, each once."""

import asyncio
from datetime import timedelta

from app.tasks.attempts import LEASE_MARGIN_SECONDS
from tests.steps.parts import allow, let_go, model_limits, queued, sent, states, task, until, works
from tests.world import World


async def test_with_nothing_waiting_dispatch_is_idle(world: World) -> None:
    await world.create()
    assert await world.dispatch() == 0


async def test_no_more_is_sent_than_runs_plus_the_buffer(world: World) -> None:
    await queued(world, 6, running=2)
    assert await world.dispatch() == 4
    assert await world.dispatch() == 0
    seen = await states(world)
    assert (seen.count("pending"), seen.count("queued")) == (4, 2)


async def test_a_place_that_becomes_free_is_filled(world: World) -> None:
    world.sim.set_limits(running_tasks=2)
    await queued(world, 6, running=2)
    assert await world.dispatch() == 4
    await world.advance(1)  # two of them end, and drain sends what waits
    assert len(sent(world)) == 6


async def test_the_oldest_go_first(world: World) -> None:
    await queued(world, 5, running=1)
    await world.dispatch()
    assert sorted(map(str, sent(world))) == ["boat 0", "boat 1", "boat 2"]


async def test_one_round_sends_no_more_than_its_limit(world: World) -> None:
    await queued(world, 5)
    assert await world.dispatch(limit=2) == 2
    assert sorted(map(str, sent(world))) == ["boat 0", "boat 1"]


async def test_what_somebody_waits_for_goes_before_what_is_older(world: World) -> None:
    ids = await queued(world, 3)
    await world.rows("UPDATE work SET priority = 1 WHERE key = $1", ids[2])
    await world.dispatch(limit=1)
    assert sent(world) == ["boat 2"]


async def test_calls_leave_at_the_models_pace(world: World) -> None:
    await queued(world, 6)
    await allow(world, rps=4, running=100)
    start = world.res.clock.now()
    assert await world.dispatch() == 5  # within the next second; the sixth waits
    rows = await world.rows("SELECT sent_at FROM tasks WHERE sent_at IS NOT NULL ORDER BY sent_at")
    assert [(row["sent_at"] - start).total_seconds() for row in rows] == [0, 0.25, 0.5, 0.75, 1.0]
    assert (await model_limits(world))["next_submit_at"] == start + timedelta(seconds=1.25)
    assert await world.dispatch() == 0


async def test_the_next_attempt_begins_with_a_mark_and_a_lease(world: World) -> None:
    (task_id,) = await queued(world, 1)
    world.sim.fail_next("create", "hang", seconds=60)
    dispatching = asyncio.create_task(world.dispatch())
    await until(lambda: bool(world.sim.truth.tasks))
    row, (work,) = await task(world, task_id), await works(world, "submit")
    let_go(world)
    await dispatching
    assert (row["state"], row["attempt"], work["epoch"]) == ("submitting", 1, 1)
    assert row["call_deadline_at"] == row["sent_at"] + timedelta(seconds=world.res.settings.call_timeout_seconds)
    assert work["due_at"] == work["lease_until"] == row["call_deadline_at"] + timedelta(seconds=LEASE_MARGIN_SECONDS)
    assert row["account_key_id"] is not None


async def test_what_is_sent_is_what_the_team_asked_for(world: World) -> None:
    await queued(world, 1)
    await world.dispatch()
    (entry,) = world.sim.truth.journal.read(operation="create")
    assert entry.body == world.order("boat 0")


async def test_a_queued_task_that_meets_a_429_goes_again_later_under_the_next_attempt(world: World) -> None:
    (task_id,) = await queued(world, 1)
    world.sim.fail_next("create", "429", times=2)
    assert await world.dispatch() == 1
    world.sim.advance(2)
    assert await world.dispatch() == 1
    assert await world.dispatch() == 0  # the second time in a row it waits for two seconds
    world.sim.advance(3)
    assert await world.dispatch() == 1
    row = await task(world, task_id)
    assert (row["state"], row["attempt"]) == ("pending", 3)
    reasons = await world.rows("SELECT attempt, reason FROM task_events WHERE state = 'queued' ORDER BY attempt")
    assert [tuple(row.values()) for row in reasons] == [
        (0, None),
        (1, "Throttling.RateQuota"),
        (2, "Throttling.RateQuota"),
    ]


async def test_after_a_lost_answer_nothing_of_that_model_leaves_for_five_seconds(world: World) -> None:
    await queued(world, 2)
    world.sim.fail_next("create", "lost_answer")
    await world.dispatch(limit=1)
    world.sim.advance(4.9)
    assert await world.dispatch() == 0
    world.sim.advance(0.2)
    assert await world.dispatch() == 1


async def test_a_task_in_doubt_takes_room_for_as_long_as_it_may_run(world: World) -> None:
    await queued(world, 4, running=1)
    world.sim.fail_next("create", "lost_answer")
    await world.dispatch(limit=1)
    world.sim.advance(10)
    assert await world.dispatch() == 2
    assert await world.dispatch() == 0
    world.sim.advance(240 + world.res.settings.call_timeout_seconds)  # twice what a model is taken to run
    assert await world.dispatch() == 1


async def test_an_account_that_is_paused_gets_nothing(world: World) -> None:
    await queued(world, 1)
    await world.rows("UPDATE accounts SET paused_until = $1", world.res.clock.now() + timedelta(seconds=60))
    world.res.accounts.clear()
    assert await world.dispatch() == 0
    world.sim.advance(61)
    assert await world.dispatch() == 1


async def test_a_queue_without_an_account_moves_to_another_and_holds_up_nobody(world: World) -> None:
    ids = await queued(world, 2)
    other = "UPDATE tasks SET main_account = 'other', region = 'nowhere' WHERE id = $1::uuid"
    await world.rows(other, ids[0])
    assert await world.dispatch() == 2  # one is sent, one moves
    assert sent(world) == ["boat 1"]
    assert await world.dispatch() == 1
    assert sent(world) == ["boat 1", "boat 0"]


async def test_two_dispatchers_at_once_send_nothing_twice(world: World) -> None:
    await queued(world, 12)
    counts = await asyncio.gather(*(world.dispatch(limit=5) for _ in range(3)))
    while await world.dispatch():
        pass
    assert sum(counts) <= 12
    assert sorted(map(str, sent(world))) == sorted(f"boat {number}" for number in range(12))
    assert {row["attempt"] for row in await world.rows("SELECT attempt FROM tasks")} == {1}


async def test_two_dispatchers_at_once_do_not_overfill_the_room(world: World) -> None:
    await queued(world, 12, running=3)
    await asyncio.gather(*(world.dispatch() for _ in range(3)))
    assert len(sent(world)) == 5
