"""Rescue: what dead processes left and what waited too long, decided by age and never by a guess."""

import asyncio
from typing import Any

from app.tasks.poll import poll_due
from app.tasks.rescue import end_grace, end_overdue, forget_requests, rescue_due
from app.tasks.submit import record_receipt
from app.upstream.answers import Accepted
from tests.steps.parts import (
    DAY,
    attempt_of,
    hanging_create,
    let_go,
    locked,
    model_limits,
    queued,
    sent,
    states,
    task,
    until_blocked,
    works,
)
from tests.world import World


async def abandoned(world: World) -> str:
    """A marked task whose sender died: its call ended long ago and nobody wrote anything down."""
    task_id, creating = await hanging_create(world)
    for call in list(world.res.calls._under_way):
        call.cancel()
    let_go(world)
    await asyncio.gather(creating, return_exceptions=True)
    assert await states(world) == ["submitting"]
    return task_id


async def doubtful(world: World, **parameters: Any) -> str:
    world.sim.fail_next("create", "lost_answer")
    return await world.create(**parameters)


async def lines(world: World) -> list[tuple[str, int]]:
    rows = await world.rows("SELECT kind, quantity FROM ledger_entries")
    return [(row["kind"], int(row["quantity"])) for row in rows]


# --- dead senders --------------------------------------------------------------------------------------------------


async def test_a_marked_task_is_left_alone_while_its_sender_may_live(world: World) -> None:
    await abandoned(world)
    world.sim.advance(world.res.settings.call_timeout_seconds + 14)
    assert await rescue_due(world.res) == 0
    assert await states(world) == ["submitting"]


async def test_a_dead_senders_task_is_in_doubt(world: World) -> None:
    task_id = await abandoned(world)
    world.sim.advance(world.res.settings.call_timeout_seconds + 16)
    assert await rescue_due(world.res) == 1
    assert await states(world) == ["doubtful"]
    assert await works(world, "submit") == []
    event = await world.row("SELECT reason FROM task_events WHERE state = 'doubtful'")
    assert event["reason"] == "sender died"
    assert (await task(world, task_id))["attempt"] == 1


async def test_a_dead_senders_task_is_never_sent_again(world: World) -> None:
    await abandoned(world)
    for _ in range(10):
        await world.advance(60)
    assert len(sent(world)) == 1


async def test_a_rescue_pauses_its_model(world: World) -> None:
    await abandoned(world)
    world.sim.advance(60)
    await rescue_due(world.res)
    assert ((await model_limits(world))["paused_until"] - world.res.clock.now()).total_seconds() == 5


async def test_two_rescuers_at_once_rescue_once(world: World) -> None:
    await abandoned(world)
    world.sim.advance(60)
    assert sorted(await asyncio.gather(*(rescue_due(world.res) for _ in range(3)))) == [0, 0, 1]


async def test_what_only_waits_is_not_rescued(world: World) -> None:
    await queued(world, 3)
    world.sim.advance(3_600)
    assert await rescue_due(world.res) == 0
    assert await states(world) == ["queued"] * 3


# --- overdue -------------------------------------------------------------------------------------------------------


async def test_a_task_that_waited_past_its_deadline_fails_and_is_never_sent(world: World) -> None:
    (task_id,) = await queued(world, 1)
    world.sim.advance(DAY - 1)
    assert await end_overdue(world.res) == 0
    world.sim.advance(2)
    assert await end_overdue(world.res) == 1
    row = await task(world, task_id)
    assert (row["state"], row["code"], row["attempt"]) == ("failed", "Dashgate.QueueTimeout", 0)
    assert await works(world, "submit") == []
    assert await world.dispatch() == 0
    assert await lines(world) == []


async def test_a_queue_timeout_is_told(world: World) -> None:
    await queued(world, 1)
    world.sim.advance(DAY + 1)
    await end_overdue(world.res)
    event = await world.row("SELECT type, payload FROM webhook_events")
    assert event["type"] == "task.failed"
    assert "Dashgate.QueueTimeout" in event["payload"]


async def test_a_doubt_is_given_up_after_a_day_and_what_it_may_have_cost_stands_apart(world: World) -> None:
    task_id = await doubtful(world, n=3)
    world.sim.advance(DAY - 1)
    assert await end_overdue(world.res) == 0
    world.sim.advance(2)
    assert await end_overdue(world.res) == 1
    row = await task(world, task_id)
    assert (row["state"], row["code"]) == ("failed", "Dashgate.OutcomeUnknown")
    assert await lines(world) == [("uncertain", 3)]


async def test_a_doubt_is_given_up_once(world: World) -> None:
    await doubtful(world)
    world.sim.advance(DAY + 1)
    assert sum(await asyncio.gather(*(end_overdue(world.res) for _ in range(3)))) >= 1
    assert await end_overdue(world.res) == 0
    assert await lines(world) == [("uncertain", 1)]
    assert len(await world.rows("SELECT 1 FROM webhook_events")) == 1


async def test_a_receipt_in_the_last_moment_wins_over_giving_up(world: World) -> None:
    task_id = await doubtful(world)
    attempt, (made,) = await attempt_of(world, task_id), world.sim.truth.tasks
    world.sim.advance(DAY + 1)
    adopt = "UPDATE tasks SET state = 'pending', upstream_task_id = $1, submitted_at = now() WHERE id = $2::uuid"
    async with locked(world, adopt, made.id, task_id):
        giving_up = asyncio.create_task(end_overdue(world.res))  # it still reads the doubt
        await until_blocked(world)
    await giving_up
    assert (await task(world, task_id))["state"] == "pending"
    assert await lines(world) == []
    assert await record_receipt(world.res, attempt, Accepted(made.id, made.request_id))


async def test_giving_up_wins_over_a_receipt_that_comes_later(world: World) -> None:
    task_id = await doubtful(world)
    attempt, (made,) = await attempt_of(world, task_id), world.sim.truth.tasks
    world.sim.advance(DAY + 1)
    await end_overdue(world.res)
    assert not await record_receipt(world.res, attempt, Accepted(made.id, made.request_id))
    assert (await task(world, task_id))["state"] == "failed"
    assert await lines(world) == [("uncertain", 1)]


async def test_a_dispatch_in_the_last_moment_wins_over_the_queue_deadline(world: World) -> None:
    (task_id,) = await queued(world, 1)
    world.sim.advance(DAY + 1)
    mark = "UPDATE tasks SET state = 'submitting', attempt = 1, sent_at = now() WHERE id = $1::uuid"
    async with locked(world, mark, task_id):
        ending = asyncio.create_task(end_overdue(world.res))
        await until_blocked(world)
    await ending
    assert (await task(world, task_id))["state"] == "submitting"
    assert len(await works(world, "submit")) == 1


# --- grace ---------------------------------------------------------------------------------------------------------


async def delivering(world: World) -> str:
    task_id = await world.create()
    world.sim.advance(1.1)
    await poll_due(world.res, watches=world.watches)
    return task_id


async def test_a_task_waits_for_its_files_no_longer_than_the_grace(world: World) -> None:
    task_id = await delivering(world)
    world.sim.advance(119)
    assert await end_grace(world.res) == 0
    world.sim.advance(2)
    assert await end_grace(world.res) == 1
    row = await task(world, task_id)
    assert (row["state"], row["finished_at"]) == ("succeeded", world.res.clock.now())
    assert [event["type"] for event in await world.rows("SELECT type FROM webhook_events")] == ["task.succeeded"]


async def test_the_end_of_the_grace_leaves_the_files_to_delivery(world: World) -> None:
    await delivering(world)
    world.sim.advance(121)
    await end_grace(world.res)
    assert len(await works(world, "deliver")) == 1
    assert (await world.row("SELECT state FROM assets"))["state"] == "waiting"


async def test_the_grace_ends_once(world: World) -> None:
    await delivering(world)
    world.sim.advance(121)
    await asyncio.gather(*(end_grace(world.res) for _ in range(3)))
    assert await end_grace(world.res) == 0
    assert len(await world.rows("SELECT 1 FROM webhook_events")) == 1


# --- forgetting ----------------------------------------------------------------------------------------------------


async def test_a_request_is_forgotten_a_day_after_its_task_ended(world: World) -> None:
    await world.finish(await world.create())
    world.sim.advance(DAY - 60)
    assert await forget_requests(world.res) == 0
    world.sim.advance(120)
    assert await forget_requests(world.res) == 1
    body = await world.row("SELECT request, answer IS NOT NULL AS answered FROM task_bodies")
    assert (body["request"], body["answered"]) == (None, True)


async def test_the_answer_stays_readable_when_the_request_is_forgotten(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    world.sim.advance(DAY + 60)
    await forget_requests(world.res)
    assert await world.status(task_id) == "SUCCEEDED"


async def test_the_request_of_a_task_that_waits_is_kept(world: World) -> None:
    await queued(world, 1)
    world.sim.advance(DAY * 2)
    assert await forget_requests(world.res) == 0
