"""Submit: one asynchronous create, from the committed mark "about to send" to its record.

Owns the call and everything its answer means for the task. The mark was made by accept (inline) or dispatch; what a
receipt means once it is written is poll's affair.
"""

import structlog

from app.errors import AnswerLost, NotSent
from app.lib import leases
from app.lib.db import Duplicate, Session, direct_transaction, transaction
from app.lib.ids import new_id
from app.lib.metrics import UPSTREAM_CALLS
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.accounts import upstream_of
from app.tasks import store, store_doubts
from app.tasks.attempts import (
    LOST_ANSWER_PAUSE_SECONDS,
    NOT_SENT,
    NOT_SENT_PAUSE_SECONDS,
    Attempt,
    InlineWait,
    hold_on_to,
    record_not_taken,
    record_refusal,
    record_throttled,
)
from app.tasks.blame import find_another_key, has_another_account, pause_what_is_at_fault, tell_of_refusal
from app.tasks.prepare import Prepared, hand_back, prepare
from app.upstream.answers import Accepted, Refused
from app.upstream.faults import Fault

log = structlog.get_logger()

Sent = Accepted | Refused | None


async def send(res: Resources, attempt: Attempt, *, inline: InlineWait | None = None) -> Sent:
    """Send one marked attempt and record what came of it.

    1. Wait for its slot, make it ready (prepare); what must not leave goes back to the queue.
    2. Outside: the create call; refused because of its key, once more with each other.
    3. One transaction, by attempt and not by lease: the receipt (`pending`), the refusal (`failed`, or back to
       `queued` when nothing was taken), or the loss of the answer (`doubtful`).

    A crash before 3 leaves the mark: rescue calls it doubtful when the lease lapses. Returns the answer, or None
    when nothing is certain or nothing was sent.
    """
    prepared = await prepare(res, attempt)
    if not isinstance(prepared, Prepared):
        return None
    try:
        answer = await _create(res, attempt, prepared)
    except NotSent:
        UPSTREAM_CALLS.labels("create", "not_sent").inc()
        await hand_back(res, attempt, reason=NOT_SENT, pause_seconds=NOT_SENT_PAUSE_SECONDS)
        return None
    except AnswerLost as error:
        UPSTREAM_CALLS.labels("create", "lost").inc()
        lost = error
        log.warning("task.doubted", task=str(attempt.task_id), attempt=attempt.number, reason=lost.reason)
        await hold_on_to(
            res, attempt, lambda: record_doubtful(res, attempt, reason=lost.reason, request_id=lost.request_id)
        )
        return None
    await _record(res, attempt, answer, inline=inline)
    return answer


async def _create(res: Resources, attempt: Attempt, prepared: Prepared) -> Accepted | Refused:
    key = attempt.key
    while True:
        answer = await upstream_of(res, attempt.account, key=key).create_task(
            attempt.path, prepared.body, headers=prepared.headers, timeout_seconds=res.settings.call_timeout_seconds
        )
        other = await find_another_key(res, attempt, key=key, answer=answer)
        if other is None:
            return answer
        key = other


async def _record(res: Resources, attempt: Attempt, answer: Accepted | Refused, *, inline: InlineWait | None) -> None:
    match answer:
        case Accepted():
            UPSTREAM_CALLS.labels("create", "accepted").inc()
            log.info("task.received", task=str(attempt.task_id), attempt=attempt.number, upstream_task=answer.task_id)
            await hold_on_to(res, attempt, lambda: record_receipt(res, attempt, answer), upstream_task=answer.task_id)
            res.signals.wake("account")
        case Refused(fault=fault):
            UPSTREAM_CALLS.labels("create", fault).inc()
            tell_of_refusal(res, attempt, answer)
            await hold_on_to(res, attempt, lambda: _record_refused(res, attempt, refused=answer, inline=inline))


async def _record_refused(res: Resources, attempt: Attempt, *, refused: Refused, inline: InlineWait | None) -> None:
    """Nothing was taken, so the task may wait or must fail, by whose fault it is."""
    if refused.fault is Fault.LOAD:
        await record_throttled(res, attempt, refused)
        return
    if refused.fault is Fault.ACCOUNT:
        await pause_what_is_at_fault(res, attempt, refused)
        may_wait = inline is None or inline.holds or await has_another_account(res, attempt, regions=inline.regions)
        if may_wait or not (inline and inline.refuse()):
            await record_not_taken(res, attempt, reason=refused.code, pause_seconds=0)
            return
    await record_refusal(res, attempt, refused=refused, inline=inline)


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


async def record_doubtful(res: Resources, attempt: Attempt, *, reason: str, request_id: str | None = None) -> None:
    """The answer was lost: nobody knows. Nothing is resent; the model pauses so that send windows stay apart."""
    key = room.model_key(attempt.account, attempt.model)
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        moved = await store.move(
            session,
            attempt.task_id,
            State.DOUBTFUL,
            attempt=attempt.number,
            reason=reason[:200],
            upstream_request_id=request_id,
        )
        if moved is not None:
            await store_doubts.open_doubt(session, attempt.task_id, was_seen=True, now=res.clock.for_sql())
        await room.pause(session, res, key, seconds=LOST_ANSWER_PAUSE_SECONDS)
