"""Submit: one attempt, from the committed mark "about to send" to its record.

Owns the call and everything its answer means for the task. The mark was made by accept (inline) or dispatch; what a
receipt means once it is written is poll's affair.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import structlog

from app.errors import AnswerLost, NotSent
from app.lib import leases
from app.lib.db import DatabaseAway, Duplicate, Session, direct_transaction, hold_on, transaction
from app.lib.ids import new_id
from app.lib.metrics import UPSTREAM_CALLS
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, upstream_of
from app.routing.store import pause_account
from app.tasks import store
from app.tasks.finish import finish
from app.upstream.answers import Accepted, Refused
from app.upstream.faults import MODEL_CODES, Fault

log = structlog.get_logger()

LEASE_MARGIN_SECONDS = 15.0  # beyond the call's own time limit: for the record, and a slow database
LATE_SECONDS = 5.0  # of that margin a sender may lose before it begins
LOST_ANSWER_PAUSE_SECONDS = 5.0  # so that send windows of one model do not overlap (design.md 3, doubtful)
NOT_SENT_PAUSE_SECONDS = 5.0
ACCOUNT_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A marked attempt: everything its sender needs, and until when it may act."""

    task_id: UUID
    number: int
    epoch: int
    model: str
    path: str
    account: AccountInfo
    body: bytes = field(repr=False)
    headers: dict[str, str]
    wait_seconds: float  # until its send slot
    ends_monotonic: float

    @property
    def lease(self) -> leases.Lease:
        """The lease on its work row."""
        return leases.Lease(
            "submit", str(self.task_id), self.epoch, self.number, self.account.id, None, None, self.ends_monotonic
        )


class InlineWait:
    """Whether the client still waits for the upstream's verdict. Decided once: by its leaving or by a refusal."""

    def __init__(self) -> None:
        self._present = True
        self._refused = False

    def leave(self) -> bool:
        """The client will be told PENDING; False: too late, a refusal is being recorded as its answer."""
        if self._refused:
            return False
        self._present = False
        return True

    def refuse(self) -> bool:
        """The refusal will be the client's answer; False: it left, so the task fails where it can be read."""
        self._refused = self._present
        return self._refused


Sent = Accepted | Refused | None


async def send(res: Resources, attempt: Attempt, *, inline: InlineWait | None = None) -> Sent:
    """Send one marked attempt and record what came of it.

    1. Wait for its slot; check by our own clock that the whole call still fits into the lease. A process that was
       paused meanwhile sends nothing, and the task goes back to the queue.
    2. Outside: the create call.
    3. One transaction, by attempt and not by lease: the receipt (`pending`), the refusal (`failed`, or back to
       `queued` when nothing was taken), or the loss of the answer (`doubtful`).

    A crash before 3 leaves the mark: rescue calls it doubtful when the lease lapses. Returns the answer, or None
    when nothing is certain.
    """
    await asyncio.sleep(attempt.wait_seconds)
    if _is_late(res, attempt):
        log.warning("task.send_skipped", task=str(attempt.task_id))
        await _hold_on(res, attempt, lambda: _record_not_taken(res, attempt, reason="sender was late", pause=0))
        return None
    try:
        answer = await upstream_of(res, attempt.account).create_task(
            attempt.path, attempt.body, headers=attempt.headers, timeout_seconds=res.settings.call_timeout_seconds
        )
    except NotSent:
        UPSTREAM_CALLS.labels("create", "not_sent").inc()
        await _hold_on(
            res, attempt, lambda: _record_not_taken(res, attempt, reason="not_sent", pause=NOT_SENT_PAUSE_SECONDS)
        )
        return None
    except AnswerLost as lost:
        UPSTREAM_CALLS.labels("create", "lost").inc()
        reason, request_id = lost.reason, lost.request_id
        log.warning("task.doubted", task=str(attempt.task_id), attempt=attempt.number, reason=reason)
        await _hold_on(res, attempt, lambda: record_doubtful(res, attempt, reason=reason, request_id=request_id))
        return None
    match answer:
        case Accepted():
            UPSTREAM_CALLS.labels("create", "accepted").inc()
            log.info("task.received", task=str(attempt.task_id), attempt=attempt.number, upstream_task=answer.task_id)
            await _hold_on(res, attempt, lambda: record_receipt(res, attempt, answer), upstream_task=answer.task_id)
            res.signals.wake("account")
        case Refused():
            UPSTREAM_CALLS.labels("create", answer.fault).inc()
            log.info("task.refused", task=str(attempt.task_id), status=answer.status, code=answer.code)
            await _hold_on(res, attempt, lambda: _record_refusal(res, attempt, refused=answer, inline=inline))
    return answer


def _is_late(res: Resources, attempt: Attempt) -> bool:
    """Tell whether a call begun now could outlast its lease."""
    needed = res.settings.call_timeout_seconds + LEASE_MARGIN_SECONDS - LATE_SECONDS
    return attempt.ends_monotonic - res.clock.monotonic() < needed


async def _hold_on(
    res: Resources, attempt: Attempt, record: Callable[[], Awaitable[object]], *, upstream_task: str | None = None
) -> None:
    """Record through an absence of the database; failing that, the log line is all that is left of the fact.

    Raises:
        DatabaseAway: it stayed away; rescue will call the task doubtful.
    """
    try:
        await hold_on(record, monotonic=res.clock.monotonic)
    except DatabaseAway:
        log.error("task.record_lost", task=str(attempt.task_id), attempt=attempt.number, upstream_task=upstream_task)
        raise


async def record_receipt(res: Resources, attempt: Attempt, receipt: Accepted) -> bool:
    """Record a receipt in one transaction; False: it became an orphan, because the task had moved on.

    A fact: matched by attempt, so a receipt that comes after the rescuer still settles the task.
    """
    values = {
        "id": attempt.task_id,
        "key": attempt.lease.key,
        "attempt": attempt.number,
        "epoch": attempt.epoch,
        "upstream_task_id": receipt.task_id,
        "upstream_request_id": receipt.request_id,
        "reason": None,
        "now": res.clock.for_sql(),
    }
    try:
        async with direct_transaction(res) as session:
            settled = await store.record_receipt(session, values)
        return settled or await _record_late(res, attempt, receipt)
    except Duplicate:
        # The id is already another task's: nobody can say whose it is.
        log.error("task.receipt_stolen", task=str(attempt.task_id), upstream_task=receipt.task_id)
        async with transaction(res) as session:
            account = attempt.account
            await store.mark_stolen(
                session,
                account.main_account,
                account.region,
                upstream_task_id=receipt.task_id,
                task_id=attempt.task_id,
            )
            await _record_orphan(session, attempt, receipt, reason="stolen id")
        return False


async def _record_late(res: Resources, attempt: Attempt, receipt: Accepted) -> bool:
    """A receipt that settled nothing: written before (a commit whose answer was lost), or its task had moved on."""
    async with transaction(res) as session:
        if await store.has_receipt(session, attempt.task_id, receipt.task_id):
            return True
        await _record_orphan(session, attempt, receipt, reason="late receipt")
    return False


async def _record_orphan(session: Session, attempt: Attempt, receipt: Accepted, *, reason: str) -> None:
    log.error("task.orphaned", task=str(attempt.task_id), upstream_task=receipt.task_id, reason=reason)
    values = {
        "id": new_id(),
        "main_account": attempt.account.main_account,
        "region": attempt.account.region,
        "upstream_task_id": receipt.task_id,
        "task_id": attempt.task_id,
        "attempt": attempt.number,
        "reason": reason,
    }
    await store.insert_orphan(session, values)


async def _record_refusal(res: Resources, attempt: Attempt, *, refused: Refused, inline: InlineWait | None) -> None:
    """Record a refusal: nothing was taken, so the task may wait or must fail, by whose fault it is."""
    if refused.fault is Fault.LOAD:
        await _record_throttled(res, attempt, refused)
        return
    if refused.fault is Fault.ACCOUNT:
        log.error("account.refused", account=attempt.account.name, code=refused.code, message=refused.message)
        await _pause(res, attempt, reason=refused.code)
        if inline is None or not inline.refuse():
            await _record_not_taken(res, attempt, reason=refused.code, pause=0)
            return
    is_answer = inline is not None and inline.refuse()
    shown = refused.fault is Fault.CALLER
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        await finish(
            session,
            attempt.task_id,
            State.FAILED,
            attempt=attempt.number,
            at=res.clock.now(),
            code=refused.code if shown else "Dashgate.UpstreamAccount",
            message=refused.message if shown else None,
            upstream_request_id=refused.request_id,
            refused_inline=is_answer,
        )


async def _record_throttled(res: Resources, attempt: Attempt, refused: Refused) -> None:
    """A 429: nothing was taken. The task waits, and so does its model, longer each time."""
    key = room.model_key(attempt.account, attempt.model)
    async with transaction(res) as session:
        is_ours = await leases.snooze(session, attempt.lease, seconds=0, failed=False, now=res.clock.for_sql())
        await _requeue(session, res, attempt, reason=refused.code, has_work=is_ours)
        await room.back_off(session, res, key, retry_after_seconds=refused.retry_after_seconds)


async def _record_not_taken(res: Resources, attempt: Attempt, *, reason: str, pause: float) -> None:
    """Certain that nothing was taken: back to the queue, due again after a pause."""
    async with transaction(res) as session:
        is_ours = await leases.snooze(session, attempt.lease, seconds=pause, now=res.clock.for_sql())
        await _requeue(session, res, attempt, reason=reason, has_work=is_ours)


async def _requeue(session: Session, res: Resources, attempt: Attempt, *, reason: str, has_work: bool) -> None:
    """Move a task back to the queue; its work is made anew where rescue had taken it away (a fact that came late)."""
    task = await store.move(session, attempt.task_id, State.QUEUED, attempt=attempt.number, reason=reason)
    if task is not None and not has_work:
        await leases.enqueue(
            session,
            "submit",
            key=attempt.lease.key,
            deadline_at=task["queue_deadline_at"],
            account_id=attempt.account.id,
            team_id=task["team_id"],
            epoch=attempt.epoch,
            now=res.clock.for_sql(),
        )


async def record_doubtful(res: Resources, attempt: Attempt, *, reason: str, request_id: str | None = None) -> None:
    """The answer was lost: nobody knows. Nothing is resent; the model pauses so that send windows stay apart."""
    key = room.model_key(attempt.account, attempt.model)
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        await store.move(
            session,
            attempt.task_id,
            State.DOUBTFUL,
            attempt=attempt.number,
            reason=reason[:200],
            upstream_request_id=request_id,
        )
        await room.pause(session, res, key, seconds=LOST_ANSWER_PAUSE_SECONDS)


async def _pause(res: Resources, attempt: Attempt, *, reason: str) -> None:
    """Send nothing more for a while to what is at fault: the account, or this model on it."""
    async with transaction(res) as session:
        if reason in MODEL_CODES:
            key = room.model_key(attempt.account, attempt.model)
            await room.pause(session, res, key, seconds=ACCOUNT_PAUSE_SECONDS)
        else:
            until = res.clock.now() + timedelta(seconds=ACCOUNT_PAUSE_SECONDS)
            await pause_account(session, attempt.account.id, until=until, reason=reason)
    res.accounts.clear()
