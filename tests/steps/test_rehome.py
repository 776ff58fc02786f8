"""tasks/rehome.py: what waits at an account that takes no calls goes to another that its team may use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.routing.accounts import all_accounts, limit_model
from app.routing.changes import AccountChange, change_account, drain, pause, resume
from app.simulator import BEIJING, SINGAPORE
from app.tasks.dispatch import dispatch_due
from app.teams.teams import change_team
from tests.api.calling import RELAYED, Line, call, ledger, relay_order, served
from tests.steps.failover import NO_MONEY, NO_RIGHT, UNKNOWN_KEY, add, asked_with, several_keys
from tests.steps.parts import MODEL, states, until
from tests.world import World

FAR, OTHER = "far", "other"


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway with an account in Beijing and one in Singapore; all teams may use both regions."""
    async with several_keys(database_url, tmp_path) as world:
        await add(world, FAR, key="sk-far", region=SINGAPORE)
        for team in ("alpha", "beta", "gamma"):
            await change_team(world.res, team, {"regions": [BEIJING, SINGAPORE]})
        yield world


async def rows(world: World) -> list[dict[str, Any]]:
    """All tasks with their accounts, the oldest first."""
    return await world.rows(
        "SELECT tasks.*, accounts.name AS account FROM tasks JOIN accounts ON accounts.id = account_id"
        " ORDER BY tasks.created_at, tasks.id"
    )


async def homes(world: World) -> list[str]:
    """The account of every task, the oldest first."""
    return [row["account"] for row in await rows(world)]


async def queue_up(world: World, count: int = 1, team: str = "alpha") -> list[str]:
    """Let tasks wait in Beijing for room."""
    await limit_model(world.res, BEIJING, MODEL, rps=1000, running=1)
    await world.rows("UPDATE account_models SET paused_until = '2100-01-01' WHERE region = $1", BEIJING)
    ids = []
    for number in range(count):
        ids.append(await world.create(f"{team} {number}", team))
        world.sim.advance(0.001)
    return ids


async def at_fault(world: World, name: str = BEIJING) -> None:
    """Let an account be at fault for a minute."""
    until_at = world.res.clock.now().timestamp() + 60
    await world.rows("UPDATE accounts SET paused_until = to_timestamp($1) WHERE name = $2", until_at, name)
    world.res.accounts.clear()


# --- what moves ----------------------------------------------------------------------------------------------------


async def test_a_create_that_finds_its_account_at_fault_is_made_by_another(world: World) -> None:
    world.sim.fail_next("create", "error", key="sk-first", **UNKNOWN_KEY)
    task_id = await world.create()
    assert await states(world) == ["queued"]
    await world.drain()
    assert asked_with(world) == ["sk-first", "sk-far"]
    (row,) = await rows(world)
    assert (row["account"], row["region"], row["main_account"], row["state"]) == (FAR, SINGAPORE, FAR, "running")
    assert await world.finish(task_id) == "SUCCEEDED"
    assert [task.region for task in world.sim.truth.tasks] == [SINGAPORE]
    assert await ledger(world) == [("usage", "image", 1)]


async def test_a_call_that_is_waited_for_moves_too(world: World) -> None:
    world.sim.fail_next("create", "error", key="sk-first", **NO_MONEY)
    line = Line(world, world.order())
    await until(lambda: len(world.res.awaited) == 1)
    answer = await served(world, line)
    assert (answer.status_code, await homes(world)) == (200, [FAR])
    (entry,) = [entry for entry in world.sim.truth.journal.read(operation="create") if entry.status == 200]
    assert entry.path.endswith("/aigc/image-generation/generation")


async def test_a_relay_that_finds_its_account_at_fault_goes_to_another(world: World) -> None:
    world.sim.fail_next("sync", "error", key="sk-first", **NO_MONEY)
    answer = await served(world, await call(world, relay_order()))
    assert (answer.status_code, asked_with(world)) == (200, ["sk-first", "sk-far"])
    assert [(row["account"], row["state"], row["refused_inline"]) for row in await rows(world)] == [
        (BEIJING, "failed", True),
        (FAR, "delivering", False),
    ]


async def test_a_task_of_a_model_that_answers_at_once_moves(world: World) -> None:
    await at_fault(world, FAR)
    await Line(world, relay_order(), **{"X-DashScope-Async": "enable"}).answer()
    await resume(world.res, FAR)
    await at_fault(world)
    assert await dispatch_due(world.res) == 1  # moved
    await dispatch_due(world.res)
    await until(lambda: len(world.sim.truth.calls) == 1)
    world.sim.advance(1)
    await world.res.calls.drain(5)
    assert (asked_with(world), await homes(world)) == (["sk-far"], [FAR])


async def test_another_account_of_the_same_region_is_a_home_too(world: World) -> None:
    await change_team(world.res, "alpha", {"regions": [BEIJING]})
    await queue_up(world)
    await add(world, OTHER, key="sk-other")
    await at_fault(world)
    await world.drain()
    assert (await homes(world), asked_with(world)) == ([OTHER], ["sk-other"])


async def test_the_queue_of_a_drained_account_moves_and_that_of_a_paused_one_waits(world: World) -> None:
    await queue_up(world, 3)
    await pause(world.res, BEIJING)
    await world.drain()
    assert await homes(world) == [BEIJING] * 3
    await drain(world.res, BEIJING)
    await world.drain()
    assert (await homes(world), asked_with(world)) == ([FAR] * 3, ["sk-far"] * 3)


async def test_new_creates_pass_by_an_account_that_an_operator_holds_back(world: World) -> None:
    for hold_back in (pause, drain):
        await hold_back(world.res, BEIJING)
        await world.create()
    assert asked_with(world) == ["sk-far", "sk-far"]


async def test_a_model_that_an_account_may_not_call_moves_and_others_stay(world: World) -> None:
    (waiting,) = await queue_up(world)
    await world.rows("UPDATE account_models SET paused_until = NULL WHERE region = $1", BEIJING)
    world.sim.fail_next("create", "error", key="sk-first", **NO_RIGHT)
    await world.drain()
    assert (asked_with(world), await homes(world)) == (["sk-first", "sk-far"], [FAR])
    assert await world.finish(waiting) == "SUCCEEDED"
    messages = [{"role": "user", "content": [{"text": "a boat"}]}]
    other = {"model": "wan2.6-t2i", "input": {"messages": messages}, "parameters": {"n": 1}}
    assert (await world.post(other)).status_code == 200
    assert (await homes(world))[-1] == BEIJING


# --- what stays ----------------------------------------------------------------------------------------------------


async def test_what_an_upload_pins_stays_until_its_account_serves_again(world: World) -> None:
    (task_id,) = await queue_up(world)
    await world.rows("UPDATE tasks SET pinned = true")
    await at_fault(world)
    await world.drain()
    assert (await homes(world), await states(world)) == ([BEIJING], ["queued"])
    await resume(world.res, BEIJING)
    await world.rows("UPDATE account_models SET paused_until = NULL")
    assert await world.finish(task_id) == "SUCCEEDED"
    assert asked_with(world) == ["sk-first"]


async def test_a_team_that_may_not_use_the_other_region_is_told_so_at_once(world: World) -> None:
    await change_team(world.res, "alpha", {"regions": [BEIJING]})
    world.sim.fail_next("create", "error", key="sk-first", **NO_MONEY)
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")
    assert (await states(world), asked_with(world)) == (["failed"], ["sk-first"])


async def test_those_that_may_not_move_stand_in_nobodys_way(world: World) -> None:
    await change_team(world.res, "alpha", {"regions": [BEIJING]})
    await queue_up(world, 25)
    await queue_up(world, 1, "beta")
    await at_fault(world)
    await world.drain()
    assert await homes(world) == [BEIJING] * 25 + [FAR]


async def test_a_region_without_the_model_is_no_home(world: World) -> None:
    await world.rows("UPDATE accounts SET region = 'eu-west-1' WHERE name = $1", FAR)
    await change_team(world.res, "alpha", {"regions": [BEIJING, "eu-west-1"]})
    await queue_up(world)
    await at_fault(world)
    await world.drain()
    assert (await homes(world), await states(world)) == ([BEIJING], ["queued"])


async def test_from_the_moment_it_is_sent_a_task_stays_where_it_is(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    await world.create()
    await world.create("upstream")
    world.sim.advance(6)
    await drain(world.res, BEIJING)
    await world.drain()
    before = await homes(world)
    assert (before[0], (await states(world))[0]) == (BEIJING, "doubtful")


# --- a team that holds ---------------------------------------------------------------------------------------------


async def test_a_team_that_holds_waits_while_every_account_is_at_fault(world: World) -> None:
    await change_team(world.res, "alpha", {"hold": True})
    for name in (BEIJING, FAR):
        await at_fault(world, name)
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")
    assert (await world.post(world.order(), "beta")).status_code == 503
    await world.drain()
    assert (await states(world), asked_with(world)) == (["queued"], [])
    await world.advance(61)
    assert await world.finish(answer.json()["output"]["task_id"]) == "SUCCEEDED"


async def test_a_team_that_holds_waits_when_its_create_finds_the_last_account_at_fault(world: World) -> None:
    await change_team(world.res, "alpha", {"hold": True})
    await at_fault(world, FAR)
    world.sim.fail_next("create", "error", key="sk-first", **NO_MONEY)
    task_id = await world.create()
    assert await states(world) == ["queued"]
    await world.advance(61)
    assert await world.finish(task_id) == "SUCCEEDED"
    assert len(world.sim.truth.tasks) == 1


async def test_a_team_that_holds_is_told_at_once_when_it_waits_on_a_connection(world: World) -> None:
    await change_team(world.res, "alpha", {"hold": True})
    for name in (BEIJING, FAR):
        await at_fault(world, name)
    for body in (world.order(), relay_order()):
        answer = await Line(world, body).answer()
        assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")
    assert await states(world) == []


# --- weights -------------------------------------------------------------------------------------------------------


async def test_accounts_of_a_region_share_its_calls_by_weight(world: World) -> None:
    await add(world, OTHER, key="sk-other")
    await change_account(world.res, BEIJING, AccountChange(weight=3))
    for name in (BEIJING, OTHER):
        await limit_model(world.res, name, MODEL, rps=1000, running=1000)
    for number in range(60):
        await world.create(str(number))
    heavy, light = asked_with(world).count("sk-first"), asked_with(world).count("sk-other")
    assert (heavy + light, 30 < heavy < 59) == (60, True)  # 45 are to be expected


async def test_an_account_without_weight_is_a_spare(world: World) -> None:
    await add(world, OTHER, key="sk-other")
    await change_account(world.res, OTHER, AccountChange(weight=0))
    await world.create()
    await at_fault(world)
    await world.create()
    assert asked_with(world) == ["sk-first", "sk-other"]
    assert [account.name for account in await all_accounts(world.res)] == [BEIJING, FAR, OTHER]
    assert RELAYED != MODEL
