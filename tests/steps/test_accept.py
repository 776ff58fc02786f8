"""Accept: one commit makes a task durable, and marks it before anything leaves the house."""

import asyncio
from datetime import timedelta

from tests.steps.parts import DAY, allow, hanging_create, let_go, sent, states, task, until, works
from tests.world import World


async def waiting_at(world: World, statement: str) -> int:
    (row,) = await world.rows(f"SELECT count(*) AS n FROM {statement}")  # noqa: S608
    return int(row["n"])


# --- the mark ------------------------------------------------------------------------------------------------------


async def test_a_task_is_marked_and_leased_before_its_call_leaves(world: World) -> None:
    task_id, creating = await hanging_create(world)
    row, (work,) = await task(world, task_id), await works(world, "submit")
    assert (row["state"], row["attempt"], row["upstream_task_id"]) == ("submitting", 1, None)
    assert (work["key"], work["epoch"], work["attempts"]) == (task_id, 1, 1)
    assert work["lease_id"] is not None
    assert work["due_at"] == work["lease_until"] > row["call_deadline_at"] > row["sent_at"]
    let_go(world)
    await creating


async def test_a_marked_task_remembers_which_key_of_ours_it_was_sent_with(world: World) -> None:
    row = await task(world, await world.create())
    assert row["account_key_id"] == (await world.row("SELECT id FROM account_keys"))["id"]


async def test_an_accepted_task_is_whole_from_its_first_commit(world: World) -> None:
    task_id, creating = await hanging_create(world)
    row = await task(world, task_id)
    destination = await world.row(
        "SELECT place_id FROM destinations JOIN teams ON teams.id = team_id WHERE slug = 'alpha'"
    )
    assert row["place_id"] == destination["place_id"]
    assert row["queue_deadline_at"] - row["created_at"] == timedelta(seconds=DAY)
    assert (row["mode"], row["upstream_call"], row["region"]) == ("async", "async", "cn-beijing")
    assert await world.events(task_id) == ["submitting"]
    assert await waiting_at(world, "task_bodies") == 1
    let_go(world)
    await creating


async def test_the_most_a_request_can_make_is_kept_for_the_day_it_is_lost(world: World) -> None:
    for parameters in ({"n": 3}, {"n": None}, {"n": "all"}, {"n": 1, "enable_interleave": True, "max_images": 2}):
        await world.post(world.order(**parameters))
    rows = await world.rows("SELECT most FROM tasks ORDER BY created_at, id")
    assert [row["most"] for row in rows] == [3, 4, 4, 2]


# --- inline or queued ----------------------------------------------------------------------------------------------


async def test_with_room_the_task_is_pending_when_the_client_hears_of_it(world: World) -> None:
    await world.create()
    assert await states(world) == ["pending"]
    assert await works(world, "submit") == []


async def test_without_room_a_task_is_queued_and_due_at_once(world: World) -> None:
    await allow(world, running=1)
    for _ in range(4):  # one runs, two wait upstream so that it never idles
        await world.create()
    assert await states(world) == ["pending", "pending", "pending", "queued"]
    (work,) = await works(world, "submit")
    assert work["due_at"] <= world.res.clock.now()
    assert (work["lease_id"], work["epoch"]) == (None, 0)


async def test_a_queued_task_has_made_no_attempt_and_holds_no_key(world: World) -> None:
    await world.rows("UPDATE accounts SET paused_until = NULL")
    await allow(world, running=1)
    ids = [await world.create() for _ in range(4)]
    row = await task(world, ids[-1])
    assert (row["attempt"], row["sent_at"], row["account_key_id"]) == (0, None, None)


async def test_a_newcomer_does_not_overtake_those_who_wait(world: World) -> None:
    world.sim.fail_next("create", "429")
    await world.create("first")
    world.sim.advance(60)
    await world.create("second")
    assert await states(world) == ["queued", "queued"]
    assert sent(world) == [None]  # the first, which was turned away


async def test_many_creates_at_once_take_no_more_than_there_is_room(world: World) -> None:
    await allow(world, running=3)
    await asyncio.gather(*(world.create(f"boat {number}") for number in range(12)))
    seen = await states(world)
    assert (seen.count("pending"), seen.count("queued")) == (5, 7)
    assert len(sent(world)) == 5


async def test_creates_leave_no_faster_than_the_models_pace(world: World) -> None:
    await allow(world, rps=4, running=50)
    await asyncio.gather(*(world.create() for _ in range(8)))
    rows = await world.rows("SELECT sent_at FROM tasks WHERE sent_at IS NOT NULL ORDER BY sent_at")
    instants = [row["sent_at"] for row in rows]
    # what would leave more than a second from now waits its turn in the queue instead
    assert [(at - instants[0]).total_seconds() for at in instants] == [0, 0.25, 0.5, 0.75, 1.0]
    assert (await states(world)).count("queued") == 3


# --- whoever leaves ------------------------------------------------------------------------------------------------


async def test_a_client_is_not_kept_waiting_for_a_slow_upstream(hasty: World) -> None:
    task_id, creating = await hanging_create(hasty)
    answer = await creating
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")
    assert answer.json()["output"]["task_id"] == task_id
    assert await states(hasty) == ["submitting"]  # the call goes on


async def test_a_client_that_hangs_up_changes_nothing(world: World) -> None:
    task_id, creating = await hanging_create(world)
    creating.cancel()
    let_go(world)
    await world.res.calls.drain(5)
    assert (await task(world, task_id))["state"] == "doubtful"  # its answer was lost, and that was written down


async def test_a_lifes_work_is_done_for_a_client_that_never_came_back(world: World) -> None:
    creating = asyncio.create_task(world.post(world.order()))
    await until(lambda: bool(world.sim.truth.tasks))
    creating.cancel()
    await world.res.calls.drain(5)
    (row,) = await world.rows("SELECT id FROM tasks")
    assert await world.finish(str(row["id"])) == "SUCCEEDED"
