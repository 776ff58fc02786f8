"""Finish: the only place that ends a task. The final state and what follows from it are one transaction.

Called inside the transaction of the fact that ends the task; knows nothing of how that fact was learned.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from app.lib import leases
from app.lib.db import AnySession, Session
from app.lib.metrics import TASKS_FINISHED
from app.models.tasks import State
from app.tasks import store
from app.tasks.states import is_terminal
from app.webhooks.events import tell_end

log = structlog.get_logger()

REQUEST_LIFE_SECONDS = 86_400  # what was asked is kept for a day after the end, for the operator


async def finish(
    session: AnySession, task_id: UUID, to: State, *, attempt: int, at: datetime, **values: Any
) -> Mapping[str, Any] | None:
    """End a task: final state, event, and the team's webhook event; None: it had ended or moved on already.

    A task that was refused in the create's own answer (`refused_inline`) is told to nobody: the caller knows. Its event
    gives `reason`, or its code.
    """
    if not is_terminal(to):
        raise ValueError(f"{to} is not an ending")
    reason = values.pop("reason", values.get("code"))
    task = await store.move(session, task_id, to, attempt=attempt, reason=reason, finished_at=at, **values)
    if task is None:
        return None
    await store.forget_later(session, task_id, at=at + timedelta(seconds=REQUEST_LIFE_SECONDS))
    if not task["refused_inline"]:
        await tell_end(session, task, at=at)
    TASKS_FINISHED.labels(str(to)).inc()
    log.info("task.finished", task=str(task_id), state=str(to), code=task["code"])
    return task


async def finish_with_work(
    session: Session, task_id: UUID, to: State, *, attempt: int, at: datetime, **values: Any
) -> Mapping[str, Any] | None:
    """End a task that still has `submit` work, whoever holds it; None, and the work stays, as with `finish`."""
    work = await store.lock_work(session, "submit", str(task_id))
    task = await finish(session, task_id, to, attempt=attempt, at=at, **values)
    if task is not None and work is not None:
        await leases.finish(session, work)
    return task
