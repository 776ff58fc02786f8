"""Dispatch: who waits is sent as room appears, oldest first, at the model's pace, each once."""

import asyncio
from datetime import timedelta

import pytest

from app.lib.db import transaction
from app.routing import room
from app.routing.room import LEAST_SHARE
from app.tasks.attempts import LEASE_MARGIN_SECONDS
from app.tasks.standing import note_positions
from app.teams.teams import change_team
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
    assert sum([await world.dispatch() for _ in range(3)]) == 3  # one is sent; one moves, and is sent then
    assert sorted(map(str, sent(world))) == ["boat 0", "boat 1"]
    assert (await task(world, ids[0]))["main_account"] != "other"


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


# --- fairness over teams -------------------------------------------------------------------------------------------


async def waiting(world: World, *teams: str) -> list[str]:
    """Accept a task for each team in this order, all of which must wait; return their ids."""
    await allow(world, running=1)
    await world.rows("UPDATE account_models SET paused_until = $1", world.res.clock.now().replace(year=2100))
    ids = [await world.create(f"{team} {number}", team=team) for number, team in enumerate(teams)]
    await world.rows("UPDATE account_models SET paused_until = NULL, next_submit_at = NULL")
    await allow(world, running=100)
    return ids


def whose(world: World) -> list[str]:
    """Whose tasks were sent, in order."""
    return [str(prompt).split()[0] for prompt in sent(world)]


async def sent_one_by_one(world: World, count: int) -> list[str]:
    for _ in range(count):
        assert await world.dispatch(limit=1) == 1
    return whose(world)


async def test_the_first_task_of_a_team_does_not_wait_for_the_queue_of_another(world: World) -> None:
    await waiting(world, *["alpha"] * 30)
    assert await sent_one_by_one(world, 10) == ["alpha"] * 10
    await waiting(world, "beta")
    assert (await sent_one_by_one(world, 2))[10:].count("beta") == 1


async def test_teams_take_turns(world: World) -> None:
    await waiting(world, *["alpha"] * 6, *["beta"] * 6, *["gamma"] * 6)
    order = await sent_one_by_one(world, 9)
    assert [sorted(order[turn : turn + 3]) for turn in (0, 3, 6)] == [["alpha", "beta", "gamma"]] * 3


async def test_turns_are_as_frequent_as_weights_say(world: World) -> None:
    await change_team(world.res, "beta", {"weight": 3})
    await waiting(world, *["alpha"] * 12, *["beta"] * 12)
    order = await sent_one_by_one(world, 12)
    assert (order.count("alpha"), order.count("beta")) == (3, 9)


async def test_turns_hold_within_one_claim_too(world: World) -> None:
    await change_team(world.res, "beta", {"weight": 3})
    await waiting(world, *["alpha"] * 8, *["beta"] * 8)
    assert await world.dispatch(limit=8) == 8
    assert (whose(world).count("alpha"), whose(world).count("beta")) == (2, 6)


async def test_a_team_that_was_away_has_saved_up_no_turns(world: World) -> None:
    await waiting(world, *["alpha"] * 20)
    await sent_one_by_one(world, 10)
    await waiting(world, *["beta"] * 10)
    order = (await sent_one_by_one(world, 10))[10:]
    assert abs(order.count("alpha") - order.count("beta")) <= 1


async def test_of_one_team_the_oldest_goes_first_whatever_others_do(world: World) -> None:
    await waiting(world, "alpha", "beta", "alpha", "beta", "alpha")
    await sent_one_by_one(world, 5)
    assert [str(prompt) for prompt in sent(world) if "alpha" in str(prompt)] == ["alpha 0", "alpha 2", "alpha 4"]


async def test_what_somebody_waits_for_goes_before_every_teams_queue(world: World) -> None:
    ids = await waiting(world, *["alpha"] * 25, "beta", "beta")
    await world.rows("UPDATE work SET priority = 10 WHERE key = ANY ($1)", [ids[24], ids[26]])
    await world.dispatch(limit=2)
    assert sorted(map(str, sent(world))) == ["alpha 24", "beta 26"]


async def test_turns_that_say_nothing_any_more_are_forgotten(world: World) -> None:
    await waiting(world, "alpha", "beta")
    await sent_one_by_one(world, 2)
    assert len(await world.rows("SELECT 1 FROM queue_turns")) == 2
    await world.rows("UPDATE account_models SET turn = 100")
    await note_positions(world.res)
    assert await world.rows("SELECT 1 FROM queue_turns") == []


async def test_a_task_that_waits_for_a_paused_account_holds_up_nobody_behind_it(world: World) -> None:
    ids = await waiting(world, *["alpha"] * 3)
    await world.rows(
        "INSERT INTO accounts (id, name, region, main_account, base_url, serving)"
        " SELECT gen_random_uuid(), 'other', region, main_account, base_url, 'paused' FROM accounts"
    )
    other = await world.row("SELECT id FROM accounts WHERE name = 'other'")
    pinned = "UPDATE tasks SET pinned = true, account_id = $2 WHERE id = $1::uuid"
    await world.rows(pinned, ids[0], other["id"])
    world.res.accounts.clear()
    await world.dispatch(limit=1)
    assert sent(world) == ["alpha 1"]


# --- a pace that adapts --------------------------------------------------------------------------------------------


async def pace(world: World) -> float:
    """The creates a second that the model was slowed to."""
    return float((await model_limits(world))["slowed_to"])


async def test_a_429_halves_the_pace_and_a_minute_restores_it(world: World) -> None:
    await queued(world, 30)
    await allow(world, rps=8, running=100)
    world.sim.fail_next("create", "429")
    assert await world.dispatch(limit=1) == 1
    assert await pace(world) == 4
    world.sim.advance(2)
    start = world.res.clock.now()
    await world.dispatch(limit=2)
    rows = await world.rows("SELECT sent_at FROM tasks WHERE sent_at >= $1 ORDER BY sent_at", start)
    assert 0.18 < (rows[1]["sent_at"] - rows[0]["sent_at"]).total_seconds() <= 0.25
    world.sim.advance(60)
    start = world.res.clock.now()
    await world.dispatch(limit=2)
    rows = await world.rows("SELECT sent_at FROM tasks WHERE sent_at >= $1 ORDER BY sent_at", start)
    assert (rows[1]["sent_at"] - rows[0]["sent_at"]).total_seconds() == 0.125


async def test_a_pace_that_grew_too_quickly_begins_anew(world: World) -> None:
    await queued(world, 3)
    await allow(world, rps=50, running=100)
    world.sim.fail_next("create", "error", status=429, code="Throttling.BurstRate", message="too quickly")
    await world.dispatch(limit=1)
    assert await pace(world) == 50 * LEAST_SHARE


async def test_refusals_in_a_row_slow_down_to_a_tenth_and_no_further(world: World) -> None:
    await queued(world, 12)
    await allow(world, rps=10, running=100)
    world.sim.fail_next("create", "429", times=10)
    for _ in range(10):
        await world.rows("UPDATE account_models SET paused_until = NULL, next_submit_at = NULL")
        await world.dispatch(limit=1)
    assert await pace(world) == pytest.approx(1, abs=0.5)


async def test_a_loss_slows_down_too(world: World) -> None:
    await queued(world, 2)
    world.sim.fail_next("create", "lost_answer")
    await world.dispatch(limit=1)
    assert await pace(world) == 500


async def test_after_an_absence_of_the_upstream_the_queue_comes_back_slowly(world: World) -> None:
    await queued(world, 8)
    await allow(world, rps=20, running=100)
    address = await world.row("SELECT base_url FROM accounts")
    await world.rows("UPDATE accounts SET base_url = 'http://127.0.0.1:9/api/v1'")
    world.res.accounts.clear()
    for _ in range(5):
        await world.dispatch(limit=1)
        world.sim.advance(6)
    await world.rows("UPDATE accounts SET base_url = $1", address["base_url"])
    world.res.accounts.clear()
    assert 2 <= await pace(world) < 10
    assert set(await states(world)) == {"queued"}
    world.sim.advance(6)
    assert await world.dispatch(limit=8) < 8


async def test_what_waits_for_its_slot_stays_here_when_an_answer_is_lost_meanwhile(world: World) -> None:
    await queued(world, 3)
    await allow(world, rps=4, running=100)
    world.sim.fail_next("create", "lost_answer")
    await world.dispatch(limit=3)  # a quarter of a second apart
    assert sorted(await states(world)) == ["doubtful", "queued", "queued"]
    assert len(sent(world)) == 1
    reasons = await world.rows("SELECT reason FROM task_events WHERE state = 'queued' AND attempt = 1")
    assert [row["reason"] for row in reasons] == ["paused meanwhile"] * 2


async def test_a_retry_after_is_honoured(world: World) -> None:
    await queued(world, 1)
    await allow(world, running=100)
    key = {"main_account": "cn-beijing", "region": "cn-beijing", "model": "wan2.6-image"}
    async with transaction(world.res) as session:
        await room.back_off(session, world.res, key, retry_after_seconds=40)
    world.sim.advance(30)
    assert await world.dispatch() == 0
    world.sim.advance(20)
    assert await world.dispatch() == 1
