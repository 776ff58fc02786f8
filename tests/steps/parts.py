"""What the tests of steps look at, and how they bring a task to where a step finds it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import httpx

from app.lib.db import reading
from app.models.tasks import Mode, UpstreamCall
from app.routing.accounts import all_accounts, limit_model
from app.simulator import BEIJING
from app.tasks.attempts import Attempt
from app.tasks.store_polled import read_polled_all_teams
from tests.world import World

MODEL = "wan2.6-image"
DAY = 86_400


async def task(world: World, task_id: str) -> dict[str, Any]:
    """The row of a task."""
    return await world.row("SELECT * FROM tasks WHERE id = $1::uuid", task_id)


async def states(world: World) -> list[str]:
    """The state of every task, oldest first."""
    return [row["state"] for row in await world.rows("SELECT state FROM tasks ORDER BY created_at, id")]


async def works(world: World, kind: str) -> list[dict[str, Any]]:
    """The work of one kind, oldest first."""
    return await world.rows("SELECT * FROM work WHERE kind = $1 ORDER BY due_at", kind)


async def seconds_until_due(world: World, kind: str) -> float:
    """How far off the only work of a kind is, by the world's clock."""
    (work,) = await works(world, kind)
    return float((work["due_at"] - world.res.clock.now()).total_seconds())


async def model_limits(world: World) -> dict[str, Any]:
    """The row that holds pace and pauses of the one model."""
    return await world.row("SELECT * FROM account_models")


async def allow(world: World, *, rps: float = 1000, running: int = 5) -> None:
    """Give the model other limits; its buffer stays 2."""
    await limit_model(world.res, BEIJING, MODEL, rps=rps, running=running)


async def queued(world: World, count: int, *, running: int = 100) -> list[str]:
    """Accept tasks that must wait, a moment apart; then let so many run that dispatch is free to send them."""
    await world.rows("UPDATE accounts SET paused_until = NULL")
    await allow(world, running=1)
    await world.rows("UPDATE account_models SET paused_until = $1", world.res.clock.now().replace(year=2100))
    ids = []
    for number in range(count):
        ids.append(await world.create(f"boat {number}"))
        world.sim.advance(0.001)
    await world.rows("UPDATE account_models SET paused_until = NULL, next_submit_at = NULL")
    await allow(world, running=running)
    assert await states(world) == ["queued"] * count
    return ids


async def attempt_of(world: World, task_id: str) -> Attempt:
    """The attempt that a task's row stands at, as its sender holds it."""
    row = await task(world, task_id)
    (account,) = await all_accounts(world.res)
    return Attempt(
        task_id=row["id"],
        team_id=row["team_id"],
        number=row["attempt"],
        epoch=row["attempt"],
        mode=Mode(row["mode"]),
        upstream_call=UpstreamCall(row["upstream_call"]),
        model=row["model"],
        path=row["path"],
        place_id=row["place_id"],
        pinned=row["pinned"],
        account=account,
        key=account.keys[0],
        body=b"{}",
        headers={},
        wait_seconds=0.0,
        ends_monotonic=world.res.clock.monotonic() + 60,
    )


async def polled(world: World) -> Sequence[Any]:
    """The open tasks as their owner reads them."""
    async with reading(world.res) as session:
        return await read_polled_all_teams(session, BEIJING, region=BEIJING)


def sent(world: World) -> list[str | None]:
    """The prompts of the creates that the simulator read, in order: a refused one it did not read is None."""
    bodies = [entry.body for entry in world.sim.truth.journal.read(operation="create")]
    return [body and body["input"]["messages"][0]["content"][0]["text"] for body in bodies]


async def hanging_create(world: World) -> tuple[str, asyncio.Task[httpx.Response]]:
    """Begin a create that the upstream takes and never answers; return the task's id once the upstream has it."""
    world.sim.fail_next("create", "hang", seconds=60)
    before = len(world.sim.truth.tasks)
    creating = asyncio.create_task(world.post(world.order()))
    await until(lambda: len(world.sim.truth.tasks) > before)
    (row,) = await world.rows("SELECT id FROM tasks WHERE state = 'submitting'")
    return str(row["id"]), creating


def let_go(world: World) -> None:
    """Break off everything that hangs at the simulator."""
    world.sim._exchange.release()


@contextlib.asynccontextmanager
async def locked(world: World, statement: str, *args: Any) -> AsyncIterator[asyncpg.Connection]:
    """Run a statement in a transaction of another process, held open while the block runs, then committed."""
    connection = await asyncpg.connect(world.database_url)
    try:
        async with connection.transaction():
            await connection.execute(statement, *args)
            yield connection
    finally:
        await connection.close()


async def until(happened: Callable[[], bool]) -> None:
    """Let everything else go on until something has happened: what travels over sockets takes its own time."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 -- the simulator has no event for it
            await asyncio.sleep(0.002)


async def until_blocked(world: World, *, statements: int = 1) -> None:
    """Let everything else go on until so many statements wait for a lock."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(10):
        while len(await world.rows(waiting)) < statements:  # noqa: ASYNC110 -- the database has no event for it
            await asyncio.sleep(0.002)
