"""Cancel: a team's wish that a task should not be made. At once where it waits here; upstream by the account's owner.

Owns the wish and the wait for what comes of it; poll carries it out. Calls nothing cancelled before it is so: a task
may start upstream in the last moment, and is then made and billed.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from uuid import UUID

import structlog

from app.lib.db import DatabaseAway, Session, transaction
from app.models.tasks import State
from app.resources import Resources
from app.tasks import store
from app.tasks.finish import finish_with_work
from app.tasks.store_reads import find_own
from app.tasks.waiting import wait_for_task

log = structlog.get_logger()

VERDICT_SECONDS = 5.0  # how long a caller waits for what the upstream says


class Cancel(StrEnum):
    """What came of the wish."""

    CANCELED = "canceled"  # it has ended so
    REQUESTED = "requested"  # written down; no verdict yet, the final state will tell
    REFUSED = "refused"  # the task does not wait any more, or is not this team's


async def cancel(res: Resources, team_id: UUID, task_id: UUID, *, verdict_seconds: float = VERDICT_SECONDS) -> Cancel:
    """Cancel a team's task, if it still waits, here or upstream.

    1. One transaction: a `queued` task ends, with its work; on a `pending` one the wish is written. Compare-and-set,
       both: a task that is sent or starts at the same moment is not cancelled.
    2. For a wish: wake the owner of the account, who asks the upstream and then looks (poll.py), and wait for the
       verdict, at most `verdict_seconds`.

    A crash after 1 leaves the wish: the owner goes on asking until a look says what became of the task.

    Raises:
        DatabaseAway: nothing was written, or nobody knows.
    """
    async with transaction(res) as session:
        judged = await _judge(session, res, team_id, task_id=task_id)
    log.info("task.cancel_asked", task=str(task_id), judged=str(judged))
    if judged is Cancel.CANCELED:
        res.signals.tell(task_id)
    if judged is Cancel.REQUESTED:
        res.signals.tell(task_id)
        res.signals.wake("account")
        return await _verdict(res, task_id, seconds=verdict_seconds)
    return judged


async def _judge(session: Session, res: Resources, team_id: UUID, *, task_id: UUID) -> Cancel:
    """End a task that waits here, or write the wish down on one that waits upstream.

    A queued task that is sent before we have locked it is at its next attempt then, and may wait upstream by now.
    """
    task, now = await find_own(session, team_id, task_id), res.clock.now()
    if task is None:
        return Cancel.REFUSED
    if task["state"] == State.QUEUED and await finish_with_work(
        session, task_id, State.CANCELED, attempt=task["attempt"], at=now
    ):
        return Cancel.CANCELED
    return Cancel.REQUESTED if await store.request_cancel(session, team_id, task_id, at=now) else Cancel.REFUSED


async def _verdict(res: Resources, task_id: UUID, *, seconds: float) -> Cancel:
    """Wait for what comes of a wish. Without a verdict in time it is still a wish, and durable."""
    try:
        task = await wait_for_task(res, task_id, is_over=_is_decided, timeout_seconds=seconds, lasting=True)
    except DatabaseAway:
        return Cancel.REQUESTED
    if task is not None and not _is_decided(task):
        return Cancel.REQUESTED
    return Cancel.CANCELED if task is not None and task["state"] == State.CANCELED else Cancel.REFUSED


def _is_decided(task: Mapping[Any, Any]) -> bool:
    """Tell whether a wish has been fulfilled, refused, or overtaken by the task's start."""
    return task["state"] != State.PENDING or task["cancel_requested_at"] is None
