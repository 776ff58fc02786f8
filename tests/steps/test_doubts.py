"""Doubts: attempts whose answer was lost are settled by evidence, or not at all. No task is ever given on a guess."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.errors import CommandRefused
from app.lib.db import reading
from app.lib.metrics import TASKS_POISONED
from app.routing.changes import AccountChange, change_account
from app.simulator import BEIJING
from app.simulator.options import SimulatorKey
from app.tasks.keep import open_request
from app.tasks.poll import poll_due
from app.tasks.rescue import end_overdue, rescue_due
from app.tasks.settle import MOST_LOST_LEASES, settle_by_operator
from app.tasks.store_doubts import read_requests_all_teams
from app.tasks.submit import record_receipt
from app.teams.teams import change_team
from app.upstream.answers import Accepted
from tests.steps.parts import (
    DAY,
    allow,
    attempt_of,
    hanging_create,
    let_go,
    queued,
    sent,
    states,
    task,
    until,
    works,
)
from tests.world import World

ECHOING = "aigc/text2image/image-synthesis"
PROOF_SECONDS = 125  # after the call's deadline, with the world's short time-out: the list may prove absence


async def exclusive(world: World) -> None:
    """Nobody else uses the account, and one receipt has told the upstream's id of its key."""
    await change_account(world.res, BEIJING, AccountChange(exclusive=True))
    await allow(world)
    await world.create("a receipt")


async def lost(world: World, prompt: str = "lost", *, taken: bool = True, **more: Any) -> str:
    """Create a task whose answer is lost."""
    kind, details = ("lost_answer", {}) if taken else ("garbage", {"body": "<html>", "status": 502})
    world.sim.fail_next("create", kind, **details)
    return await world.create(prompt, **more)


async def look(world: World, seconds: float) -> None:
    """Let time pass in steps, so that everything that becomes due meanwhile is done."""
    while seconds > 0:
        await world.advance(min(seconds, 20))
        seconds -= 20


async def doubt(world: World, task_id: str) -> dict[str, Any]:
    return await world.row("SELECT * FROM doubts WHERE task_id = $1::uuid ORDER BY attempt DESC LIMIT 1", task_id)


async def reason(world: World, task_id: str, state: str) -> str | None:
    query = "SELECT reason FROM task_events WHERE task_id = $1::uuid AND state = $2 ORDER BY attempt DESC LIMIT 1"
    return (await world.row(query, task_id, state))["reason"]


async def stranger(world: World, path: str = "aigc/image-generation/generation", order: Any = None) -> str:
    """Somebody else makes a task with the same key; return its upstream id."""
    headers = {"Authorization": f"Bearer {world.sim.key(BEIJING)}", "X-DashScope-Async": "enable"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{world.sim.base_url(BEIJING)}/services/{path}", json=order or world.order("theirs"), headers=headers
        )
    return str(answer.json()["output"]["task_id"])


async def text_to_image(world: World, team: str, prompt: str) -> str:
    """Create a task of a family that echoes its prompt."""
    headers = {**world.headers(team), "X-DashScope-Async": "enable"}
    answer = await world.http.post(f"/api/v1/services/{ECHOING}", json=echoing_order(prompt), headers=headers)
    return str(answer.json()["output"]["task_id"])


def echoing_order(prompt: str) -> dict[str, Any]:
    return {"model": "wan2.2-t2i-flash", "input": {"prompt": prompt}, "parameters": {"n": 1}}


def upstream_id(world: World, prompt: str) -> str:
    (made,) = (made.id for made in world.sim.truth.tasks if made.prompt == prompt)
    return made


async def lines(world: World, task_id: str) -> list[str]:
    return [
        row["kind"] for row in await world.rows("SELECT kind FROM ledger_entries WHERE task_id = $1::uuid", task_id)
    ]


# --- what decides --------------------------------------------------------------------------------------------------


async def test_the_request_id_of_a_5xx_finds_its_task_on_any_account(world: World) -> None:
    world.sim.fail_next("create", "5xx", processed=True)
    task_id = await world.create("lost")
    await look(world, 20)
    row = await task(world, task_id)
    assert (row["upstream_task_id"], row["state"]) == (upstream_id(world, "lost"), "succeeded")
    assert await reason(world, task_id, "pending") == "adopted: request id"
    assert await lines(world, task_id) == ["usage"]


async def test_where_nobody_else_calls_a_row_made_in_time_is_the_lost_ones(world: World) -> None:
    await exclusive(world)
    task_id = await lost(world)
    await look(world, 20)
    row = await task(world, task_id)
    assert (row["upstream_task_id"], row["state"]) == (upstream_id(world, "lost"), "succeeded")
    assert await reason(world, task_id, "pending") == "adopted: the only candidate"
    assert (await doubt(world, task_id))["verdict"] == "adopted"


async def test_an_adopted_task_is_as_old_as_the_upstream_says(world: World) -> None:
    await exclusive(world)
    world.sim.set_durations(500, 500)
    task_id, sent_at = await lost(world), world.res.clock.now()
    await look(world, 20)
    row = await task(world, task_id)
    assert row["state"] == "running"
    assert abs((row["submitted_at"] - sent_at).total_seconds()) < 0.01


async def test_where_others_may_call_a_row_made_in_time_decides_nothing(world: World) -> None:
    await allow(world)
    await world.create("a receipt")
    task_id = await lost(world)
    await look(world, 400)
    assert (await task(world, task_id))["state"] == "doubtful"
    (kept,) = json.loads((await doubt(world, task_id))["candidates"])
    assert kept["task_id"] == upstream_id(world, "lost")


async def test_before_a_receipt_has_told_our_key_nothing_is_adopted(world: World) -> None:
    await change_account(world.res, BEIJING, AccountChange(exclusive=True))
    task_id = await lost(world)
    await look(world, 20)
    assert (await task(world, task_id))["state"] == "doubtful"
    await world.create("a receipt")
    await look(world, 40)
    assert (await task(world, task_id))["upstream_task_id"] == upstream_id(world, "lost")


async def test_the_upstreams_id_of_a_key_is_learned_from_a_receipt(world: World) -> None:
    await exclusive(world)
    await lost(world)
    await look(world, 20)
    (key,) = await world.rows("SELECT upstream_key_id FROM account_keys")
    assert key["upstream_key_id"] == world.sim.truth.tasks[0].key.api_key_id


async def test_a_row_that_two_lost_calls_can_have_made_is_neithers(world: World) -> None:
    await exclusive(world)
    first, second = await overlapping(world, taken=(False, True))
    await look(world, 600)
    assert [(await task(world, one))["state"] for one in (first, second)] == ["doubtful", "doubtful"]


async def test_calls_that_overlap_are_told_apart_by_what_only_one_can_have_made(world: World) -> None:
    await exclusive(world)
    first, second = await overlapping(world, taken=(True, True))
    await look(world, 20)
    assert (await task(world, first))["upstream_task_id"] == upstream_id(world, "first 1")
    assert (await task(world, second))["upstream_task_id"] == upstream_id(world, "second 2")


async def test_a_row_that_a_call_on_the_wire_can_have_made_decides_nothing(hasty: World) -> None:
    await exclusive(hasty)
    hanging, creating = await hanging_create(hasty)
    await hasty.rows("UPDATE account_models SET paused_until = NULL")
    task_id = await lost(hasty)
    hasty.sim.advance(12)
    await poll_due(hasty.res, watches=hasty.watches)
    assert [(await task(hasty, one))["state"] for one in (hanging, task_id)] == ["submitting", "doubtful"]
    assert len(json.loads((await doubt(hasty, task_id))["candidates"])) == 2
    let_go(hasty)
    await asyncio.gather(creating, return_exceptions=True)


async def test_a_strangers_row_beside_ours_is_nobodys(world: World) -> None:
    await exclusive(world)  # or so the operator says
    task_id = await lost(world)
    await stranger(world)
    await look(world, 400)
    assert (await task(world, task_id))["state"] == "doubtful"


async def test_an_echoed_prompt_finds_a_lost_task_among_others(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    mine = await text_to_image(world, "alpha", "a lost boat")
    await text_to_image(world, "beta", "another boat")
    await stranger(world, ECHOING, echoing_order("a stranger's boat"))
    await look(world, 40)
    row = await task(world, mine)
    assert row["upstream_task_id"] == upstream_id(world, "a lost boat")
    assert await reason(world, mine, "pending") == "adopted: echoed prompt"


async def test_an_echoed_prompt_that_two_lost_tasks_share_decides_nothing(world: World) -> None:
    world.sim.fail_next("create", "hang", times=2, seconds=60)
    creating = [asyncio.create_task(text_to_image(world, team, "the same")) for team in ("alpha", "beta")]
    await until(lambda: len(world.sim.truth.tasks) == 2)
    let_go(world)
    await asyncio.gather(*creating)
    await look(world, 200)
    assert await states(world) == ["doubtful", "doubtful"]


# --- what is proven absent -----------------------------------------------------------------------------------------


async def test_a_call_that_was_not_taken_fails_after_two_lists_and_costs_nothing(world: World) -> None:
    task_id = await lost(world, taken=False)
    await look(world, PROOF_SECONDS)
    row = await doubt(world, task_id)
    assert ((await task(world, task_id))["state"], row["verdict"]) == ("doubtful", None)
    assert row["absent_at"] >= row["call_deadline_at"] + timedelta(seconds=120)
    await look(world, 62)
    row = await task(world, task_id)
    assert (row["state"], row["code"], row["attempt"]) == ("failed", "Dashgate.NotAccepted", 1)
    assert await lines(world, task_id) == []
    assert len(sent(world)) == 1
    event = await world.row("SELECT type FROM webhook_events WHERE task_id = $1::uuid", task_id)
    assert event["type"] == "task.failed"


async def test_a_call_that_was_not_taken_is_sent_again_where_its_team_chose_so(world: World) -> None:
    await change_team(world.res, "alpha", {"resubmit": True})
    task_id = await lost(world, taken=False)
    await look(world, PROOF_SECONDS + 80)
    row = await task(world, task_id)
    assert (row["state"], row["attempt"]) == ("succeeded", 2)
    assert await reason(world, task_id, "queued") == "proven absent upstream"
    assert await lines(world, task_id) == ["usage"]


async def test_what_was_taken_is_never_sent_again(world: World) -> None:
    await change_team(world.res, "alpha", {"resubmit": True})
    await lost(world)
    await look(world, 1_000)
    assert await states(world) == ["doubtful"]
    assert len(sent(world)) == 1


async def test_a_strangers_row_that_could_be_it_keeps_a_task_in_doubt(world: World) -> None:
    await world.create("a receipt")
    task_id = await lost(world, taken=False)
    await stranger(world)
    await look(world, 400)
    assert (await task(world, task_id))["state"] == "doubtful"


async def test_a_list_that_is_not_answered_proves_nothing(world: World) -> None:
    task_id = await lost(world, taken=False)
    await look(world, PROOF_SECONDS - 20)
    world.sim.fail_next("list", "5xx", times=1_000)
    await look(world, 300)
    assert (await task(world, task_id))["state"] == "doubtful"


async def test_a_receipt_that_comes_late_ends_the_doubt(world: World) -> None:
    task_id = await lost(world)
    attempt, (made,) = await attempt_of(world, task_id), world.sim.truth.tasks
    assert await record_receipt(world.res, attempt, Accepted(made.id, made.request_id))
    await look(world, 400)
    assert (await task(world, task_id))["state"] == "succeeded"
    assert (await doubt(world, task_id))["verdict"] == "answered"


async def test_a_dead_senders_task_is_looked_for_too(world: World) -> None:
    await exclusive(world)
    task_id, creating = await hanging_create(world)
    for call in list(world.res.calls._under_way):
        call.cancel()
    let_go(world)
    await asyncio.gather(creating, return_exceptions=True)
    await look(world, 60)
    row = await task(world, task_id)
    assert (row["state"], row["upstream_task_id"]) == ("succeeded", world.sim.truth.tasks[-1].id)


async def test_a_doubt_that_is_given_up_says_so_on_its_row(world: World) -> None:
    task_id = await lost(world)
    world.sim.advance(DAY + 1)
    await end_overdue(world.res)
    assert (await doubt(world, task_id))["verdict"] == "unknown"


# --- by whom, and how often -----------------------------------------------------------------------------------------


async def died(world: World, task_id: str) -> None:
    """The process that sends a task dies, and nothing was taken."""
    world.sim.fail_next("create", "hang", processed=False, seconds=60)
    before = len(world.sim.truth.journal.read(operation="create"))
    dispatching = asyncio.create_task(world.dispatch())
    await until(lambda: len(world.sim.truth.journal.read(operation="create")) > before)
    for call in list(world.res.calls._under_way):
        call.cancel()
    let_go(world)
    await asyncio.gather(dispatching, return_exceptions=True)
    assert (await task(world, task_id))["state"] == "submitting"


async def test_a_task_that_took_five_processes_with_it_is_not_sent_again(world: World) -> None:
    await change_team(world.res, "alpha", {"resubmit": True})
    (task_id,) = await queued(world, 1)
    before = TASKS_POISONED._value.get()
    for number in range(MOST_LOST_LEASES):
        await died(world, task_id)
        world.sim.advance(60)
        await rescue_due(world.res)
        assert (await task(world, task_id))["state"] == "doubtful"
        world.sim.advance(PROOF_SECONDS)
        await poll_due(world.res, watches=world.watches)
        world.sim.advance(70)
        await poll_due(world.res, watches=world.watches)
        again = number + 1 < MOST_LOST_LEASES
        assert (await task(world, task_id))["state"] == ("queued" if again else "failed")
    row = await task(world, task_id)
    assert (row["code"], row["attempt"], row["needs_operator"]) == ("Dashgate.NotAccepted", MOST_LOST_LEASES, True)
    assert await works(world, "submit") == []
    assert TASKS_POISONED._value.get() == before + 1


async def test_a_row_that_nobody_can_have_made_is_an_orphan_and_given_to_nobody(world: World) -> None:
    await exclusive(world)
    theirs = await stranger(world)
    world.sim.advance(300)
    task_id = await lost(world, taken=False)
    await look(world, PROOF_SECONDS + 80)
    (orphan,) = await world.rows("SELECT upstream_task_id, task_id, reason FROM upstream_orphans")
    assert orphan == {"upstream_task_id": theirs, "task_id": None, "reason": "listed"}
    assert (await task(world, task_id))["state"] == "failed"


async def test_where_others_may_call_only_rows_of_our_keys_are_orphans(world: World) -> None:
    await world.create("a receipt")
    other = SimulatorKey("sk-sim-another", BEIJING)
    world.sim.truth.add_task(other, world.sim.truth.tasks[0].order, request_id="r-theirs")
    world.sim.advance(300)
    await lost(world, taken=False)
    await look(world, PROOF_SECONDS + 80)
    assert await world.rows("SELECT 1 FROM upstream_orphans") == []


async def test_a_row_of_another_key_cannot_be_a_lost_call(world: World) -> None:
    await allow(world)
    await world.create("a receipt")
    task_id = await lost(world, taken=False)
    other = SimulatorKey("sk-sim-another", BEIJING)
    world.sim.truth.add_task(other, world.sim.truth.tasks[0].order, request_id="r-theirs")
    await look(world, PROOF_SECONDS + 80)
    assert (await task(world, task_id))["code"] == "Dashgate.NotAccepted"


async def test_an_operator_settles_what_evidence_cannot(world: World) -> None:
    await allow(world)
    task_id = await lost(world)
    await settle_by_operator(world.res, (await task(world, task_id))["id"], upstream_task_id=upstream_id(world, "lost"))
    assert await reason(world, task_id, "pending") == "adopted: operator"
    await look(world, 20)
    assert (await task(world, task_id))["state"] == "succeeded"


async def test_an_operator_cannot_settle_what_is_settled(world: World) -> None:
    task_id = await world.create()
    with pytest.raises(CommandRefused, match="not in doubt"):
        await settle_by_operator(world.res, (await task(world, task_id))["id"], upstream_task_id=None)


# --- many ----------------------------------------------------------------------------------------------------------


async def overlapping(world: World, *, taken: tuple[bool, bool]) -> list[str]:
    """Two calls of which the second leaves before the first is lost; both are, in the end. Return their tasks."""
    creating = []
    for prompt, was_taken in zip(("first", "second"), taken, strict=True):
        world.sim.fail_next("create", "hang", processed=was_taken, seconds=60)
        before = len(world.sim.truth.journal.read(operation="create"))
        creating.append(asyncio.create_task(world.create(f"{prompt} {before}")))
        await until(lambda so_far=before: len(world.sim.truth.journal.read(operation="create")) > so_far)
        world.sim.advance(0.2)
    let_go(world)
    return await asyncio.gather(*creating)


async def test_lost_calls_that_overlap_in_pairs_bring_no_wrong_verdict(world: World) -> None:
    await exclusive(world)
    luck = random.Random(7)
    for _ in range(25):
        await overlapping(world, taken=(luck.random() < 0.5, luck.random() < 0.5))
        await world.rows("UPDATE account_models SET slowed_to = NULL")
        await world.advance(20)
    await look(world, 400)
    assert await settled_rightly(world) >= 0.6  # where only the second was taken, nobody can tell


async def test_of_a_hundred_lost_answers_nearly_all_are_settled_and_none_wrongly(world: World) -> None:
    await change_account(world.res, BEIJING, AccountChange(exclusive=True))
    await queued(world, 101)
    await world.dispatch(limit=1)  # a receipt
    luck = random.Random(11)
    for _ in range(100):
        kind = luck.choice(["lost_answer", "garbage", "5xx"])
        was_taken = luck.random() < 0.5
        if kind == "lost_answer" and not was_taken:
            world.sim.fail_next("create", "garbage", body="<html>", status=502)
        else:
            more = {"body": "<html>", "status": 502} if kind == "garbage" else {}
            world.sim.fail_next("create", kind, processed=was_taken, **more)
    for _ in range(300):
        world.sim.advance(2.6)
        await world.dispatch(limit=1)
    await look(world, 400)
    assert len(sent(world)) == 101
    assert await settled_rightly(world) >= 0.95


async def settled_rightly(world: World) -> float:
    """Compare every task with what the upstream made of it; return the share that is not in doubt any more."""
    made = {one.prompt: one.id for one in world.sim.truth.tasks}
    asked = await prompts(world)
    rows = await world.rows("SELECT id, state, code, upstream_task_id FROM tasks")
    for row in rows:
        match row["state"]:
            case "succeeded":
                assert row["upstream_task_id"] == made[asked[str(row["id"])]]
            case "failed":
                assert (row["code"], made.get(asked[str(row["id"])])) == ("Dashgate.NotAccepted", None)
            case state:
                assert state == "doubtful"
    return sum(row["state"] != "doubtful" for row in rows) / len(rows)


async def prompts(world: World) -> dict[str, str]:
    ids = [row["id"] for row in await world.rows("SELECT id FROM tasks")]
    async with reading(world.res) as session:
        rows = await read_requests_all_teams(session, ids)
    bodies = {str(row["task_id"]): await open_request(world.res, row["task_id"], row["request"]) for row in rows}
    return {key: json.loads(body)["input"]["messages"][0]["content"][0]["text"] for key, body in bodies.items()}
