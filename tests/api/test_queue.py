"""What a team sees of its queue: where its tasks stand, and that there may not be too many of them."""

from __future__ import annotations

import asyncio

import httpx

from app.tasks.rescue import end_overdue
from app.tasks.standing import note_positions
from app.teams.teams import change_team
from tests.steps.parts import DAY, allow, queued, states, task, until
from tests.world import World


async def read(world: World, task_id: str, team: str = "alpha") -> httpx.Response:
    world.res.signals._statuses.clear()
    return await world.http.get(f"/api/v1/tasks/{task_id}", headers=world.headers(team))


async def position(world: World, task_id: str) -> str | None:
    return (await read(world, task_id)).headers.get("x-dashgate-queue-position")


async def noted(world: World) -> None:
    """Take the snapshot, and forget what is remembered of the one before."""
    await note_positions(world.res)
    world.res.standings.clear()


# --- positions -----------------------------------------------------------------------------------------------------


async def test_a_queued_task_tells_its_place_and_the_time_it_may_take(world: World) -> None:
    ids = await queued(world, 3, running=1)
    await world.rows("UPDATE account_models SET learned_seconds = 90, running = 3")
    await noted(world)
    answers = [await read(world, task_id) for task_id in ids]
    assert [answer.headers["x-dashgate-queue-position"] for answer in answers] == ["1", "2", "3"]
    assert [answer.headers["x-dashgate-queue-seconds"] for answer in answers] == ["30", "60", "90"]


async def test_teams_that_take_turns_stand_between_each_other(world: World) -> None:
    await queued(world, 6)
    await world.rows("UPDATE account_models SET paused_until = $1", world.res.clock.now().replace(year=2100))
    theirs = [await world.create(f"beta {number}", team="beta") for number in range(2)]
    await noted(world)
    places = [(await read(world, task_id, "beta")).headers["x-dashgate-queue-position"] for task_id in theirs]
    assert places == ["1", "3"]


async def test_a_place_is_that_of_the_last_snapshot_and_never_counted(world: World) -> None:
    first, second = await queued(world, 2)
    await noted(world)
    await world.dispatch(limit=1)
    world.res.standings.clear()
    assert [await position(world, first), await position(world, second)] == [None, "2"]
    await noted(world)
    assert await position(world, second) == "1"


async def test_the_chore_takes_a_snapshot_every_five_seconds(world: World) -> None:
    (task_id,) = await queued(world, 1, running=1)
    await world.rows("UPDATE accounts SET paused_until = $1", world.res.clock.now().replace(year=2100))
    world.res.accounts.clear()
    await world.advance(6)
    assert await position(world, task_id) == "1"


async def test_a_task_that_is_not_queued_tells_no_place(world: World) -> None:
    task_id = await world.create()
    await noted(world)
    assert await position(world, task_id) is None


async def test_nobody_learns_anothers_place(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.rows("UPDATE account_models SET paused_until = $1", world.res.clock.now().replace(year=2100))
    await world.create(team="beta")
    await noted(world)
    answer = await read(world, task_id, "beta")
    assert "x-dashgate-queue-position" not in answer.headers
    assert answer.json()["output"]["task_status"] == "UNKNOWN"


async def test_of_a_long_queue_places_are_told_to_a_hundredth(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.rows(
        "INSERT INTO tasks SELECT (jsonb_populate_record(tasks, jsonb_build_object('id',"
        " overlay(id::text placing lpad(to_hex(number), 12, '0') from 25)))).*"
        " FROM tasks, generate_series(1, 2000) AS number WHERE id = $1::uuid",
        task_id,
    )
    ids = [str(row["id"]) for row in await world.rows("SELECT id FROM tasks ORDER BY id")]
    await noted(world)
    kept = await world.row("SELECT cardinality(ids) AS count FROM queue_positions")
    assert kept["count"] < 300
    for rank in (1, 50, 100, 537, 1000, 1999):
        assert rank * 0.94 <= int(await position(world, ids[rank - 1]) or 0) <= rank


async def test_events_tell_the_place_as_a_comment(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await noted(world)
    url = f"/api/v1/tasks/{task_id}"
    following = asyncio.create_task(world.http.get(f"{url}/events", headers=world.headers()))
    await until(lambda: len(world.res.standings._kept) == 2)  # it has been told
    await world.http.post(f"{url}/cancel", headers=world.headers())
    lines = (await following).text.split("\n")
    assert ":QUEUE-POSITION/1" in lines
    assert lines.index(":QUEUE-POSITION/1") < lines.index("event:result")


# --- caps ----------------------------------------------------------------------------------------------------------


async def full(world: World, most: int) -> None:
    """Let alpha have no more than `most` tasks in a queue that does not move."""
    await change_team(world.res, "alpha", {"max_queued": most})
    await allow(world, running=1)
    await world.rows("UPDATE account_models SET paused_until = $1", world.res.clock.now().replace(year=2100))


async def test_a_team_may_have_as_many_tasks_waiting_as_its_cap(world: World) -> None:
    await full(world, 2)
    answers = [await world.post(world.order(f"boat {number}")) for number in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["code"] == "Throttling.RateQuota"
    assert answers[2].headers["x-should-retry"] == "true"
    assert int(answers[2].headers["retry-after"]) >= 1
    assert await states(world) == ["queued"] * 2


async def test_creates_at_once_do_not_pass_the_cap_together(world: World) -> None:
    await full(world, 3)
    answers = await asyncio.gather(*(world.post(world.order(f"boat {number}")) for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    assert await states(world) == ["queued"] * 3


async def test_a_cap_is_one_teams_own(world: World) -> None:
    await full(world, 1)
    await world.create()
    assert (await world.post(world.order(), "beta")).status_code == 200


async def test_what_need_not_wait_is_not_capped(world: World) -> None:
    await change_team(world.res, "alpha", {"max_queued": 1})
    for _ in range(3):
        await world.create()
    assert await states(world) == ["pending"] * 3


async def test_a_resend_is_no_second_task_and_passes_the_cap(world: World) -> None:
    await full(world, 1)
    first = await world.post(world.order(), **{"Idempotency-Key": "k-1"})
    again = await world.post(world.order(), **{"Idempotency-Key": "k-1"})
    refused = await world.post(world.order(), **{"Idempotency-Key": "k-2"})
    assert (first.json()["output"]["task_id"], refused.status_code) == (again.json()["output"]["task_id"], 429)
    await world.rows("DELETE FROM work")
    await world.rows("UPDATE tasks SET state = 'canceled', finished_at = now()")
    assert (await world.post(world.order(), **{"Idempotency-Key": "k-2"})).status_code == 200  # the key was not used up


async def test_a_teams_tasks_wait_as_long_as_it_chose(world: World) -> None:
    await change_team(world.res, "alpha", {"queue_deadline_seconds": 1800})
    (task_id,) = await queued(world, 1)
    world.sim.advance(1799)
    assert await end_overdue(world.res) == 0
    world.sim.advance(2)
    assert await end_overdue(world.res) == 1
    assert (await task(world, task_id))["code"] == "Dashgate.QueueTimeout"


async def test_other_teams_wait_as_long_as_the_setting_says(world: World) -> None:
    await change_team(world.res, "beta", {"queue_deadline_seconds": 1800})
    (task_id,) = await queued(world, 1)
    row = await task(world, task_id)
    assert (row["queue_deadline_at"] - row["created_at"]).total_seconds() == DAY
