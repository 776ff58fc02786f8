"""Finish: a task ends once, and what follows from its end is in the same commit."""

import asyncio
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from app.lib.db import transaction
from app.models.tasks import State
from app.tasks.finish import finish
from tests.steps.parts import task
from tests.world import World


async def end(world: World, task_id: str, to: State = State.FAILED, *, attempt: int = 1, **values: Any) -> bool:
    async with transaction(world.res) as session:
        row = await finish(session, UUID(task_id), to, attempt=attempt, at=world.res.clock.now(), **values)
    return row is not None


async def told(world: World) -> list[dict[str, Any]]:
    return await world.rows("SELECT type, payload FROM webhook_events")


async def test_an_end_has_its_instant_its_event_and_its_word_to_the_team(world: World) -> None:
    task_id = await world.create()
    assert await end(world, task_id, code="Some.Code")
    row = await task(world, task_id)
    assert (row["state"], row["code"], row["finished_at"]) == ("failed", "Some.Code", world.res.clock.now())
    assert (await world.events(task_id))[-1] == "failed"
    assert [event["type"] for event in await told(world)] == ["task.failed"]


async def test_the_word_to_the_team_has_ids_and_state_and_no_prompt_or_link(world: World) -> None:
    answer = await world.post(world.order("CANARY"), **{"X-Dashgate-Tag": "boats"})
    task_id = answer.json()["output"]["task_id"]
    await world.finish(task_id)
    (event,) = await told(world)
    payload = json.loads(event["payload"])
    assert payload.pop("finished_at")
    assert payload == {
        "task_id": task_id,
        "state": "succeeded",
        "model": "wan2.6-image",
        "region": "cn-beijing",
        "code": None,
        "tag": "boats",
    }


async def test_a_task_ends_once(world: World) -> None:
    task_id = await world.create()
    assert await end(world, task_id)
    for to in (State.FAILED, State.SUCCEEDED, State.CANCELED, State.EXPIRED):
        assert not await end(world, task_id, to)
    assert len(await told(world)) == 1


async def test_of_many_who_end_a_task_at_once_one_does(world: World) -> None:
    task_id = await world.create()
    assert sum(await asyncio.gather(*(end(world, task_id) for _ in range(4)))) == 1
    assert len(await told(world)) == 1


async def test_an_earlier_attempt_cannot_end_the_present_one(world: World) -> None:
    task_id = await world.create()
    assert not await end(world, task_id, attempt=0)
    assert not await end(world, task_id, attempt=2)
    assert await told(world) == []


async def test_a_state_that_is_no_ending_is_a_mistake(world: World) -> None:
    task_id = await world.create()
    with pytest.raises(ValueError, match="is not an ending"):
        await end(world, task_id, State.DELIVERING)


async def test_a_task_that_is_made_cannot_fail_any_more(world: World) -> None:
    task_id = await world.create()
    await world.rows("UPDATE tasks SET state = 'delivering'")
    for to in (State.FAILED, State.CANCELED, State.EXPIRED):
        assert not await end(world, task_id, to)


async def test_an_end_and_its_word_to_the_team_are_one_commit(world: World) -> None:
    task_id = await world.create()
    with pytest.raises(RuntimeError, match="crash"):
        async with transaction(world.res) as session:
            await finish(session, UUID(task_id), State.FAILED, attempt=1, at=world.res.clock.now())
            raise RuntimeError("crash")
    assert (await task(world, task_id))["state"] == "pending"
    assert await told(world) == []


async def test_the_database_itself_refuses_an_end_without_an_instant(world: World) -> None:
    await world.create()
    for nonsense in ("state = 'failed'", "finished_at = now()", "state = 'nonsense'", "attempt = 0"):
        with pytest.raises(asyncpg.CheckViolationError):
            await world.rows(f"UPDATE tasks SET {nonsense}")  # noqa: S608


async def test_the_database_itself_refuses_to_change_the_ledger(world: World) -> None:
    await world.finish(await world.create())
    for change in ("UPDATE ledger_entries SET quantity = 0", "DELETE FROM ledger_entries", "TRUNCATE ledger_entries"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await world.rows(change)
