"""Cancel: what waits does not happen, what runs goes on; and nothing is called cancelled before a look said so."""

import asyncio
from uuid import UUID

import pytest

from app.lib.ids import new_id
from app.tasks.cancel import Cancel, cancel
from app.tasks.poll import SUCCESSOR_WAIT_SECONDS, Watches, poll_due, release
from app.tasks.waiting import wait_for_task
from app.tasks.watch import THROTTLED_PAUSE_SECONDS
from tests.api.parts import receipt, scripted_upstream, state
from tests.steps.parts import DAY, locked, queued, sent, states, task, until, until_blocked, works
from tests.world import World

PATIENCE_SECONDS = 10.0
REFUSAL = (400, b'{"code":"UnsupportedOperation","message":"x","request_id":"r"}')
HEARD = (200, b'{"request_id":"r"}')


async def ask(world: World, task_id: str, team: str = "alpha", *, seconds: float = PATIENCE_SECONDS) -> Cancel:
    (row,) = await world.rows("SELECT id FROM teams WHERE slug = $1", team)
    return await cancel(world.res, row["id"], UUID(task_id), verdict_seconds=seconds)


async def wish(world: World, task_id: str) -> None:
    """Ask while nobody polls: the wish is written down, and that is all."""
    assert await ask(world, task_id, seconds=0) is Cancel.REQUESTED


async def poll(world: World, watches: Watches | None = None) -> int:
    return await poll_due(world.res, watches=world.watches if watches is None else watches)


async def pending(world: World) -> str:
    """A task that waits at the upstream."""
    world.sim.set_limits(running_tasks=0)
    return await world.create()


def asked_upstream(world: World) -> list[str]:
    """What the upstream was asked about its tasks, in order."""
    return [entry.operation for entry in world.sim.truth.journal.read() if entry.operation in ("query", "cancel")]


async def told(world: World) -> list[str]:
    """What the team is told by webhook, and what it is billed."""
    lines = await world.rows("SELECT kind FROM ledger_entries")
    return [row["type"] for row in await world.rows("SELECT type FROM webhook_events")] + [row["kind"] for row in lines]


# --- waiting here --------------------------------------------------------------------------------------------------


async def test_a_queued_task_ends_at_once_with_its_work_and_is_never_sent(world: World) -> None:
    (task_id,) = await queued(world, 1)
    assert await ask(world, task_id) is Cancel.CANCELED
    assert await works(world, "submit") == []
    await world.dispatch()
    assert (await states(world), sent(world)) == (["canceled"], [])
    assert await world.events(task_id) == ["queued", "canceled"]
    assert await told(world) == ["task.canceled"]


async def test_a_task_that_is_being_sent_at_this_moment_is_not_cancelled(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with locked(world, "SELECT 1 FROM work WHERE kind = 'submit' FOR UPDATE") as dispatcher:
        asking = asyncio.create_task(ask(world, task_id))
        await until_blocked(world)
        await dispatcher.execute("UPDATE tasks SET state = 'submitting', attempt = attempt + 1")
    assert await asking is Cancel.REFUSED
    assert await states(world) == ["submitting"]
    assert [work["key"] for work in await works(world, "submit")] == [task_id]


async def test_whatever_comes_first_a_task_is_either_cancelled_or_sent(world: World) -> None:
    ids = await queued(world, 12)
    asking = [asyncio.create_task(ask(world, task_id, seconds=0)) for task_id in ids]
    await asyncio.gather(world.dispatch(), *asking)
    await world.dispatch()
    cancelled = [task_id for task_id, done in zip(ids, asking, strict=True) if done.result() is Cancel.CANCELED]
    assert [task_id for task_id in ids if (await task(world, task_id))["state"] == "canceled"] == cancelled
    assert len(sent(world)) == len(ids) - len(cancelled)


async def test_whoever_waits_for_a_cancelled_task_waits_no_longer(world: World) -> None:
    (task_id,) = await queued(world, 1)
    waiting = asyncio.create_task(
        wait_for_task(
            world.res,
            UUID(task_id),
            is_over=lambda row: row["state"] == "canceled",
            timeout_seconds=PATIENCE_SECONDS,
            lasting=True,
        )
    )
    await until(lambda: len(world.res.waiters) == 1)
    await ask(world, task_id)
    ended = await waiting
    assert ended is not None
    assert ended["state"] == "canceled"


# --- waiting upstream ----------------------------------------------------------------------------------------------


async def test_the_owner_cancels_what_waits_upstream_and_a_look_says_so(world: World) -> None:
    task_id = await pending(world)
    asking = asyncio.create_task(ask(world, task_id))
    await until(lambda: len(world.res.waiters) == 1)
    assert await poll(world) == 1
    assert await asking is Cancel.CANCELED
    assert asked_upstream(world) == ["cancel", "query"]
    assert [entry.status for entry in world.sim.truth.tasks] == ["CANCELED"]
    assert await world.events(task_id) == ["submitting", "pending", "canceled"]
    assert await told(world) == ["task.canceled"]


async def test_a_task_that_starts_first_is_not_cancelled_and_is_made_and_billed(world: World) -> None:
    world.sim.set_durations(60, 60)
    task_id = await pending(world)
    await poll(world)
    asking = asyncio.create_task(ask(world, task_id))
    await until(lambda: len(world.res.waiters) == 1)
    world.sim.set_limits(running_tasks=5)
    world.sim.advance(1.1)  # it starts; we have not seen it
    await poll(world)
    assert await asking is Cancel.REFUSED
    assert await states(world) == ["running"]
    world.sim.advance(60)
    await world.drain()
    assert await told(world) == ["task.succeeded", "usage"]


async def test_a_refusal_of_what_still_waits_ends_the_wish_and_the_task_goes_on(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create, upstream.look = receipt(), state("PENDING")
        task_id = await world.create()
        asking = asyncio.create_task(ask(world, task_id))
        await until(lambda: len(world.res.waiters) == 1)
        upstream.create = REFUSAL
        assert await poll(world) == 0
        assert await asking is Cancel.REFUSED
        row = await task(world, task_id)
        assert (row["state"], row["cancel_requested_at"]) == ("pending", None)
        world.sim.advance(1.1)
        upstream.received.clear()
        await poll(world)
        assert [request.method for request in upstream.received] == ["GET"]


async def test_a_refusal_of_what_the_upstream_does_not_know_ends_the_wish_too(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create, upstream.look = receipt(), state("UNKNOWN")
        task_id = await world.create()
        await wish(world, task_id)
        upstream.create = REFUSAL
        await poll(world)
        row = await task(world, task_id)
    assert (row["state"], row["cancel_requested_at"]) == ("pending", None)


async def test_the_upstreams_yes_alone_cancels_nothing(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create, upstream.look = receipt(), state("PENDING")
        task_id = await world.create()
        await wish(world, task_id)
        upstream.create = HEARD
        for upstream.look in (state("PENDING"), (500, b""), state("UNKNOWN")):
            await poll(world)
            assert await states(world) == ["pending"], upstream.look
            world.sim.advance(1.1)
        upstream.look = state("CANCELED")
        await poll(world)
    assert await states(world) == ["canceled"]
    assert await told(world) == ["task.canceled"]


async def test_a_cancel_whose_answer_was_lost_is_found_out_by_the_next(world: World) -> None:
    task_id = await pending(world)
    await wish(world, task_id)
    world.sim.fail_next("cancel", "lost_answer")
    await poll(world)
    assert (await task(world, task_id))["cancel_requested_at"] is not None
    world.sim.advance(1.1)
    await poll(world)
    assert asked_upstream(world)[-2:] == ["cancel", "query"]
    assert await states(world) == ["canceled"]


@pytest.mark.parametrize("kind", ["5xx", "garbage"])
async def test_a_cancel_that_was_not_answered_is_asked_again_in_a_second(world: World, kind: str) -> None:
    task_id = await pending(world)
    await wish(world, task_id)
    world.sim.fail_next("cancel", kind)
    await poll(world)
    await poll(world)
    assert asked_upstream(world).count("cancel") == 1
    assert (await task(world, task_id))["cancel_requested_at"] is not None
    world.sim.advance(1.1)
    await poll(world)
    assert await states(world) == ["canceled"]


async def test_a_429_on_a_cancel_holds_the_owners_pace(world: World) -> None:
    await wish(world, await pending(world))
    world.sim.fail_next("cancel", "429")
    await poll(world)
    (watch,) = world.watches.values()
    assert watch.pace._next_at - world.res.clock.monotonic() >= THROTTLED_PAUSE_SECONDS
    assert asked_upstream(world) == ["cancel"]
    assert await states(world) == ["pending"]


async def test_a_wish_without_a_verdict_in_time_stands_and_the_next_owner_fulfils_it(world: World) -> None:
    task_id = await pending(world)
    await poll(world)
    await wish(world, task_id)
    asked_at = (await task(world, task_id))["cancel_requested_at"]
    world.sim.advance(2)
    await wish(world, task_id)  # once more: the first wish counts
    assert (await task(world, task_id))["cancel_requested_at"] == asked_at
    await release(world.res, watches=world.watches)
    world.sim.advance(SUCCESSOR_WAIT_SECONDS + 0.1)
    await poll(world, Watches())
    assert await states(world) == ["canceled"]


async def test_an_owner_whose_lease_ends_between_cancel_and_look_asks_nothing_more(world: World) -> None:
    task_id = await pending(world)
    await poll(world)
    await wish(world, task_id)
    (watch,) = world.watches.values()
    watch.pace.hold(0.1)
    before = asked_upstream(world)
    polling = asyncio.create_task(poll(world))
    await until(lambda: watch.picture.find_wish(now=world.res.clock.monotonic()) is not None)
    world.sim.advance(world.res.settings.account_lease_seconds + 1)
    assert await polling == 0
    assert asked_upstream(world) == before
    assert (await task(world, task_id))["cancel_requested_at"] is not None


async def test_cancels_go_before_looks(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    ids = [await world.create(f"boat {n}") for n in range(3)]
    await wish(world, ids[2])
    await poll(world)
    assert asked_upstream(world) == ["cancel", "query", "query", "query"]
    assert await states(world) == ["pending", "pending", "canceled"]


# --- what is not cancelled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("here", ["submitting", "doubtful", "running", "delivering"])
async def test_what_does_not_wait_goes_on(world: World, here: str) -> None:
    task_id = await pending(world)
    await world.rows("UPDATE tasks SET state = $1", here)
    before = await task(world, task_id)
    assert await ask(world, task_id) is Cancel.REFUSED
    assert await task(world, task_id) == before


async def test_what_has_ended_stays_as_it_ended(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    doubtful = await world.create()
    await world.advance(DAY + 1)
    await pending(world)
    assert await ask(world, doubtful) is Cancel.REFUSED
    assert (await task(world, doubtful))["state"] == "failed"


async def test_a_cancelled_task_is_cancelled_once(world: World) -> None:
    (task_id,) = await queued(world, 1)
    assert [await ask(world, task_id) for _ in range(2)] == [Cancel.CANCELED, Cancel.REFUSED]
    assert await told(world) == ["task.canceled"]


async def test_another_teams_task_is_as_unknown_as_one_that_never_was(world: World) -> None:
    there = await pending(world)
    world.sim.fail_next("create", "429")
    waiting = await world.create()
    for task_id in (waiting, there, str(new_id())):
        assert await ask(world, task_id, "beta") is Cancel.REFUSED
    assert [(await task(world, task_id))["cancel_requested_at"] for task_id in (waiting, there)] == [None, None]
    assert (await task(world, waiting))["state"] == "queued"


async def test_a_relay_is_not_cancelled(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.rows("UPDATE tasks SET mode = 'relay', upstream_call = 'sync'")
    assert await ask(world, task_id) is Cancel.REFUSED
    assert await states(world) == ["queued"]
