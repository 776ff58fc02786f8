"""Call: one synchronous attempt, answered on its connection; made for a relay, or by a worker for an async task.

Owns the call and what its end means for the row. The upstream's list never shows such a call, so a lost answer is
lost for good: the task ends honestly, nothing is ever sent twice.
"""

import contextlib

import structlog

from app.errors import AnswerLost, NotSent
from app.lib import leases
from app.lib.db import DatabaseAway, direct_transaction, transaction
from app.lib.metrics import UPSTREAM_CALLS
from app.models.tasks import State
from app.resources import Resources
from app.routing.accounts import upstream_of
from app.tasks import store
from app.tasks.attempts import (
    NOT_SENT,
    NOT_SENT_PAUSE_SECONDS,
    Attempt,
    InlineWait,
    hold_on_to,
    record_refusal,
    record_throttled,
)
from app.tasks.blame import find_another_key, has_another_account, pause_what_is_at_fault, tell_of_refusal
from app.tasks.outcome import Made, end_unknown, record_made
from app.tasks.prepare import NothingTaken, Prepared, hand_back, prepare
from app.upstream import calls
from app.upstream.answers import Refused
from app.upstream.faults import Fault

log = structlog.get_logger()


Ended = Made | Refused | NothingTaken | None


async def make_call(res: Resources, attempt: Attempt, *, inline: InlineWait | None = None) -> Ended:
    """Make one marked synchronous call and record what came of it.

    1. Wait for its slot, make it ready (prepare).
    2. Outside: the call, at most `relay_timeout_seconds`; refused because of its key, once more with each other.
    3. One transaction: what was made, with assets and ledger line; or the refusal; or the end that says that nobody
       knows (`Dashgate.OutcomeUnknown`), since a lost answer cannot be found again.

    A crash before 3 leaves the mark: rescue ends the task as unknown when the lease lapses. Returns what was made,
    the refusal, that nothing was taken, or None when its row alone tells how it ended.
    """
    prepared = await prepare(res, attempt)
    if not isinstance(prepared, Prepared):
        return prepared
    try:
        answer = await _call(res, attempt, prepared)
    except NotSent:
        return await not_sent(res, attempt)
    except AnswerLost as lost:
        await lose(res, attempt, lost)
        return None
    if isinstance(answer, Refused):
        return await refuse(res, attempt, answer, inline=inline)
    UPSTREAM_CALLS.labels("sync", "succeeded").inc()
    return await hold_on_to(res, attempt, lambda: record_made(res, attempt, answer))


async def begin(res: Resources, attempt: Attempt) -> None:
    """The first byte of the answer is in: the upstream works on it."""
    async with direct_transaction(res) as session:
        await store.move(session, attempt.task_id, State.RUNNING, attempt=attempt.number, started_at=res.clock.now())
    res.signals.tell(attempt.task_id)


async def refuse(res: Resources, attempt: Attempt, refused: Refused, *, inline: InlineWait | None) -> Ended:
    """Record a refusal, by whose fault it is."""
    UPSTREAM_CALLS.labels("sync", refused.fault).inc()
    tell_of_refusal(res, attempt, refused)
    if refused.fault is Fault.LOAD:
        await hold_on_to(res, attempt, lambda: record_throttled(res, attempt, refused))
        return NothingTaken(refused.code, Fault.LOAD, refused.retry_after_seconds)
    if refused.fault is Fault.ACCOUNT:
        await hold_on_to(res, attempt, lambda: pause_what_is_at_fault(res, attempt, refused))
        if inline is None or await has_another_account(res, attempt):
            return await hand_back(res, attempt, reason=refused.code, fault=Fault.ACCOUNT)
    await hold_on_to(res, attempt, lambda: record_refusal(res, attempt, refused=refused, inline=inline))
    return refused


async def not_sent(res: Resources, attempt: Attempt) -> NothingTaken:
    """No byte left the house."""
    UPSTREAM_CALLS.labels("sync", "not_sent").inc()
    return await hand_back(res, attempt, reason=NOT_SENT, pause_seconds=NOT_SENT_PAUSE_SECONDS)


async def lose(res: Resources, attempt: Attempt, lost: AnswerLost) -> None:
    """Bytes left and no verdict came: the task ends as unknown, and what it may have cost stands apart."""
    UPSTREAM_CALLS.labels("sync", "lost").inc()
    log.warning("task.lost", task=str(attempt.task_id), attempt=attempt.number, reason=lost.reason)
    await hold_on_to(res, attempt, lambda: _end_unknown(res, attempt, lost))


async def _end_unknown(res: Resources, attempt: Attempt, lost: AnswerLost) -> None:
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        await end_unknown(session, res, attempt.task_id, attempt=attempt.number, request_id=lost.request_id)


async def _call(res: Resources, attempt: Attempt, prepared: Prepared) -> calls.Called:
    key, outgoing = attempt.key, outgoing_of(res, attempt, prepared)

    async def began() -> None:
        with contextlib.suppress(DatabaseAway):  # only a sign: the answer must be read on
            await begin(res, attempt)

    while True:
        upstream = upstream_of(res, attempt.account, key=key)
        answer = await calls.call(upstream, outgoing, began=began)
        other = await find_another_key(res, attempt, key=key, answer=answer)
        if other is None:
            return answer
        key = other


def outgoing_of(res: Resources, attempt: Attempt, prepared: Prepared) -> calls.Outgoing:
    """Return a prepared call as the upstream is given it."""
    return calls.Outgoing(attempt.path, prepared.body, prepared.headers, res.settings.relay_timeout_seconds)
