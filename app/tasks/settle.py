"""Settle: how a doubt ends. Given its task, refused, or proven absent; by evidence (doubts.py) or by the operator.

Owns what each verdict means for the task; knows no list. Everything is compare-and-set on the attempt that is in
doubt: a receipt that comes in the same moment wins.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import CommandRefused
from app.lib import leases
from app.lib.db import Duplicate, Session, reading, transaction
from app.lib.metrics import DOUBTS_SETTLED, TASKS_POISONED
from app.models.doubts import Verdict
from app.models.tasks import Mode, State
from app.resources import Resources
from app.tasks import store, store_doubts
from app.tasks.accept import WAITED_PRIORITY
from app.tasks.evidence import Name
from app.tasks.finish import finish
from app.tasks.store_reads import find_task_all_teams

log = structlog.get_logger()

SENDER_DIED = "sender died"  # the reason in task_events
MOST_LOST_LEASES = 5  # a task that took so many processes with it is not sent again
NOT_ACCEPTED = "The upstream did not take this task; nothing was made and nothing is billed."
BY_OPERATOR = "operator"
UPSTREAM_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")  # it stands in a path


@dataclass(frozen=True, slots=True)
class Found:
    """The upstream task that an attempt in doubt had made, and how that is known."""

    upstream_task_id: str
    why: str
    request_id: str = ""
    made_at: datetime | None = None  # by the upstream's clock


async def adopt(res: Resources, name: Name, found: Found) -> bool:
    """Give an attempt in doubt its upstream task: it is `pending`, and polled like any other. One transaction.

    False: it is in doubt no more, or the upstream task is another's.
    """
    task_id, attempt = name
    values: dict[str, Any] = {
        "task_id": task_id,
        "attempt": attempt,
        "upstream_task_id": found.upstream_task_id,
        "request_id": found.request_id,
        "made_at": found.made_at,
        "reason": f"adopted: {found.why}",
        "now": res.clock.for_sql(),
    }
    try:
        async with transaction(res) as session:
            adopted = await store_doubts.adopt(session, values)
    except Duplicate:
        log.warning("task.adoption_refused", task=str(task_id), upstream_task=found.upstream_task_id)
        return False
    if adopted:
        DOUBTS_SETTLED.labels(str(Verdict.ADOPTED)).inc()
        log.info("task.adopted", task=str(task_id), upstream_task=found.upstream_task_id, why=found.why)
        res.signals.tell(task_id)
        res.signals.wake("account")
    return adopted


async def end_not_taken(res: Resources, name: Name, verdict: Verdict, *, reason: str) -> bool:
    """End a doubt whose call the upstream did not take; False: it is in doubt no more. One transaction.

    The task fails and costs nothing; where its team chose so, it is sent again. One that has taken five processes with
    it fails in any case, and the operator is told: something in it may be what they died of.
    """
    task_id, attempt = name
    async with transaction(res) as session:
        task = await store_doubts.lock_doubtful_all_teams(session, task_id, attempt=attempt)
        if task is None:
            return False
        await store_doubts.close_doubt(session, task_id, attempt=attempt, verdict=verdict, at=res.clock.now())
        lost = await store_doubts.count_lost_senders(session, task_id, reason=SENDER_DIED)
        is_poison = lost >= MOST_LOST_LEASES
        if task["resubmit"] and not is_poison:
            await _send_again(session, res, task, reason=reason)
        else:
            at = res.clock.now()
            ending = {"code": "Dashgate.NotAccepted", "message": NOT_ACCEPTED, "reason": reason}
            await finish(session, task_id, State.FAILED, attempt=attempt, at=at, needs_operator=is_poison, **ending)
    DOUBTS_SETTLED.labels(str(verdict)).inc()
    log.info("task.not_taken", task=str(task_id), verdict=str(verdict), reason=reason)
    if is_poison:
        TASKS_POISONED.inc()
        log.error("task.poisoned", task=str(task_id), lost_leases=MOST_LOST_LEASES)
    res.signals.tell(task_id)
    res.signals.wake("submit")
    return True


async def _send_again(session: Session, res: Resources, task: RowMapping, *, reason: str) -> None:
    """Queue a task anew; epochs go on where they were."""
    moved = await store.move(session, task["id"], State.QUEUED, attempt=task["attempt"], reason=reason)
    if moved is None:
        return
    await leases.enqueue(
        session,
        "submit",
        key=str(task["id"]),
        deadline_at=task["queue_deadline_at"],
        account_id=task["account_id"],
        team_id=task["team_id"],
        priority=WAITED_PRIORITY if task["mode"] == Mode.DURABLE else 0,
        epoch=task["attempt"],
        now=res.clock.for_sql(),
    )


async def settle_by_operator(res: Resources, task_id: UUID, *, upstream_task_id: str | None) -> None:
    """Settle a task in doubt by the operator's word: it has made this upstream task, or (None) was refused.

    Raises:
        CommandRefused: it is not in doubt, or the upstream task is another task's, or no id at all.
    """
    if upstream_task_id is not None and not UPSTREAM_ID.fullmatch(upstream_task_id):
        raise CommandRefused("An upstream task id has letters, digits, dashes and underscores.")
    async with reading(res) as session:
        task = await find_task_all_teams(session, task_id)
        doubts = await store_doubts.read_doubts_all_teams(session, task_id)
    if task is None or task["state"] != State.DOUBTFUL:
        state = task["state"] if task is not None else "gone"
        raise CommandRefused(f"Task {task_id} is not in doubt; it is {state}.")
    name = (task_id, task["attempt"])
    if upstream_task_id is None:
        settled = await end_not_taken(res, name, Verdict.REFUSED, reason=f"{BY_OPERATOR}: refused")
    else:
        listed = [one for doubt in doubts for one in doubt["candidates"] if one["task_id"] == upstream_task_id]
        made_at = listed[0]["created_at"] if listed else None
        found = Found(
            upstream_task_id,
            BY_OPERATOR,
            request_id=listed[0]["request_id"] if listed else "",
            made_at=datetime.fromisoformat(made_at) if made_at else None,
        )
        settled = await adopt(res, name, found)
    if not settled:
        raise CommandRefused("It was not settled: the upstream task is another's, or its receipt has just come.")
