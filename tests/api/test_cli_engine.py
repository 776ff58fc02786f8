"""The commands of the engine: what teams and accounts chose, and a task in doubt that an operator settles."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.test_cli import Done, run
from tests.steps.parts import allow, states, task
from tests.world import SECRET_KEY, World


async def dashgate(world: World, *arguments: str) -> Done:
    settings = {
        "DASHGATE_DATABASE_URL": world.database_url,
        "DASHGATE_SECRET_KEY": SECRET_KEY,
        "DASHGATE_STATE_DIR": str(world.folder),
    }
    return await run(*arguments, "--json", **settings)


async def doubtful(world: World) -> tuple[str, str]:
    """A task in doubt that the list was looked through for; return it with the upstream's task."""
    await allow(world)
    await world.create("a receipt")
    world.sim.fail_next("create", "lost_answer")
    task_id = await world.create("lost")
    await world.advance(20)
    assert await states(world) == ["succeeded", "doubtful"]
    (made,) = (made.id for made in world.sim.truth.tasks if made.prompt == "lost")
    return task_id, made


async def test_team_set_tells_what_a_team_chose(world: World) -> None:
    options = ("--weight", "3", "--max-queued", "500", "--queue-deadline", "0.5", "--resubmit", "on")
    chosen = (await dashgate(world, "team", "set", "alpha", *options)).document
    told = {name: chosen[name] for name in ("weight", "max_queued", "queue_deadline_hours", "resubmit")}
    assert told == {"weight": 3, "max_queued": 500, "queue_deadline_hours": 0.5, "resubmit": True}
    options = ("--max-queued", "none", "--queue-deadline", "none", "--resubmit", "off")
    chosen = (await dashgate(world, "team", "set", "alpha", *options)).document
    assert (chosen["max_queued"], chosen["queue_deadline_hours"], chosen["resubmit"]) == (None, None, False)
    assert (await dashgate(world, "team", "show", "alpha")).document["weight"] == 3


@pytest.mark.parametrize(
    "options", [("--weight", "0"), ("--max-queued", "0"), ("--max-queued", "1.5"), ("--queue-deadline", "-1")], ids=str
)
async def test_team_set_refuses_what_makes_no_sense(world: World, options: tuple[str, str]) -> None:
    refused = await dashgate(world, "team", "set", "alpha", *options)
    assert refused.error["code"] == "CommandRefused"
    row = await world.row("SELECT weight, max_queued, queue_deadline_seconds FROM teams WHERE slug = 'alpha'")
    assert tuple(row.values()) == (1, None, None)


async def test_account_set_says_that_nobody_else_uses_an_account(world: World) -> None:
    assert (await dashgate(world, "account", "set", "cn-beijing", "--exclusive", "on")).document["exclusive"] is True
    (listed,) = (await dashgate(world, "account", "list")).document["accounts"]
    assert listed["exclusive"] is True
    assert (await dashgate(world, "account", "set", "cn-beijing", "--exclusive", "off")).document["exclusive"] is False


async def test_settle_shows_the_evidence(world: World) -> None:
    task_id, made = await doubtful(world)
    shown = (await dashgate(world, "task", "settle", task_id)).document
    (doubt,) = shown["doubts"]
    assert (shown["state"], [one["task_id"] for one in doubt["candidates"]]) == ("doubtful", [made])
    assert doubt["looked_at"] is not None
    assert (await dashgate(world, "task", "show", task_id)).document["doubts"] == shown["doubts"]


async def test_an_operator_gives_a_task_in_doubt_its_upstream_task(world: World) -> None:
    task_id, made = await doubtful(world)
    settled = (await dashgate(world, "task", "settle", task_id, "--adopt", made)).document
    assert (settled["state_before"], settled["state"]) == ("doubtful", "pending")
    shown = (await dashgate(world, "task", "show", task_id)).document
    assert [event["reason"] for event in shown["events"] if event["state"] == "pending"] == ["adopted: operator"]
    world.res.signals.tell((await task(world, task_id))["id"])
    await world.advance(2)
    assert await states(world) == ["succeeded", "succeeded"]


async def test_an_operator_says_that_a_task_was_refused(world: World) -> None:
    task_id, _ = await doubtful(world)
    assert (await dashgate(world, "task", "settle", task_id, "--refused")).document["state"] == "failed"
    row = await task(world, task_id)
    assert (row["code"], await why_failed(world, task_id)) == ("Dashgate.NotAccepted", "operator: refused")
    assert (await world.row("SELECT verdict FROM doubts"))["verdict"] == "refused"
    assert await world.rows("SELECT 1 FROM ledger_entries WHERE task_id = $1::uuid", task_id) == []


async def why_failed(world: World, task_id: str) -> Any:
    row = await world.row("SELECT reason FROM task_events WHERE task_id = $1::uuid AND state = 'failed'", task_id)
    return row["reason"]


@pytest.mark.parametrize("choice", [("--adopt", "a/b"), ("--adopt", "x", "--refused")], ids=["id", "both"])
async def test_settle_refuses_what_makes_no_sense(world: World, choice: tuple[str, ...]) -> None:
    task_id, _ = await doubtful(world)
    assert (await dashgate(world, "task", "settle", task_id, *choice)).error["code"] == "CommandRefused"
    assert (await task(world, task_id))["state"] == "doubtful"


async def test_the_upstream_task_of_another_is_never_given_away(world: World) -> None:
    task_id, _ = await doubtful(world)
    owned = (await world.row("SELECT upstream_task_id FROM tasks WHERE upstream_task_id IS NOT NULL"))[
        "upstream_task_id"
    ]
    assert (await dashgate(world, "task", "settle", task_id, "--adopt", owned)).error["code"] == "CommandRefused"
    assert (await task(world, task_id))["state"] == "doubtful"


async def test_only_what_is_in_doubt_is_settled(world: World) -> None:
    task_id = await world.create()
    assert (await dashgate(world, "task", "settle", task_id, "--refused")).error["code"] == "CommandRefused"
    assert (await task(world, task_id))["state"] == "pending"
