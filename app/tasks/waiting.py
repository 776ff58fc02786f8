"""Waiting for a task to change: the one reader that all of a process's waiters share (lib/waiters.py).

Knows what of a row they look at, and nothing of why they wait; whose task it is was judged before.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from app.lib.db import hold_on, reading, transaction
from app.models.tasks import State
from app.resources import Resources
from app.tasks import store_resends
from app.tasks.accept import WAIT_LIFE_SECONDS
from app.tasks.states import is_terminal
from app.tasks.store_reads import find_own, read_waited_all_teams


async def wait_for_task(
    res: Resources,
    task_id: UUID,
    *,
    is_over: Callable[[Mapping[Any, Any]], bool],
    timeout_seconds: float,
    lasting: bool = False,
) -> RowMapping | None:
    """Wait until a task is as wanted; return it as it was last seen, None when it is gone. Holds no session.

    `lasting` waits go on while the process is ending; others then end with the present state.

    Raises:
        DatabaseAway: it could not be read even once.
    """

    async def read(task_ids: Sequence[UUID]) -> Mapping[UUID, RowMapping]:
        async with reading(res) as session:
            return await read_waited_all_teams(session, task_ids)

    return await res.waiters.wait(task_id, is_over, read=read, timeout_seconds=timeout_seconds, lasting=lasting)


async def wait_for_end(res: Resources, task_id: UUID, *, left: asyncio.Event, timeout_seconds: float) -> bool:
    """Wait on a connection until a task has ended; False: it has not, and time is up or its caller left.

    While it is waited for, this process says so (say_still_waiting): should it die, the same request finds the task.

    Raises:
        DatabaseAway: it could not be read even once.
    """
    res.awaited.add(task_id)
    waiting = asyncio.ensure_future(
        wait_for_task(res, task_id, is_over=_has_ended, timeout_seconds=timeout_seconds, lasting=True)
    )
    leaving = asyncio.ensure_future(left.wait())
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return False
        row = await waiting
        return row is not None and _has_ended(row)
    finally:
        res.awaited.discard(task_id)
        waiting.cancel()
        leaving.cancel()


async def wait_for_verdict(res: Resources, team_id: UUID, task_id: UUID) -> bool:
    """Wait until a create is off the wire, at most as long as its first caller did; False: it was refused at once,
    and is no task to its team.

    Raises:
        DatabaseAway: it could not be read.
    """
    seconds = res.settings.inline_wait_seconds
    await wait_for_task(res, task_id, is_over=_is_off_the_wire, timeout_seconds=seconds)
    async with reading(res) as session:
        return await find_own(session, team_id, task_id) is not None


async def say_still_waiting(res: Resources) -> int:
    """Say of every task that is waited for on a connection here that it still is; return how many. One statement."""
    awaited = list(res.awaited)
    if awaited:
        async with transaction(res) as session:
            await store_resends.wait_on(session, awaited, seconds=WAIT_LIFE_SECONDS, now=res.clock.for_sql())
    return len(awaited)


async def mark_answered(res: Resources, task_id: UUID) -> None:
    """Say that a call which ran as a task has its answer; through an absence of the database, or it would be given
    to the next equal request, too."""

    async def write() -> None:
        async with transaction(res) as session:
            await store_resends.mark_answered(session, [task_id])

    await hold_on(write, monotonic=res.clock.monotonic)


def _has_ended(task: Mapping[Any, Any]) -> bool:
    return is_terminal(State(task["state"]))


def _is_off_the_wire(task: Mapping[Any, Any]) -> bool:
    return bool(task["state"] != State.SUBMITTING)
