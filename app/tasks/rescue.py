"""Rescue: what dead processes left, and what waited too long. Decides by age; leaves its reason on the row."""

from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.lib import leases
from app.lib.db import Session, reading, transaction
from app.lib.metrics import DOUBTS_SETTLED, TASKS_POISONED, TASKS_RESCUED
from app.models.doubts import Verdict
from app.models.tasks import State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.tasks import store, store_doubts, store_resends
from app.tasks.attempts import LOST_ANSWER_PAUSE_SECONDS
from app.tasks.finish import finish, finish_with_work
from app.tasks.outcome import end_unknown
from app.tasks.settle import MOST_LOST_LEASES, SENDER_DIED

log = structlog.get_logger()

OVERDUE_BATCH = 200
FORGET_BATCH = 1_000
POISONED = "its workers died"
POISON_SECONDS = 900.0  # until a file is tried again that its workers die of
QUEUE_TIMEOUT = "The task waited longer than its queue deadline; nothing was sent and nothing is billed."


async def rescue_due(res: Resources, *, limit: int = 50) -> int:
    """Take up tasks whose sender died after its mark; return how many.

    One transaction: take the lapsed work away; an asynchronous create becomes `doubtful`, and its model pauses; a
    synchronous call ends as unknown, because no list shows it. Whoever waited for the dead sender may ask again and
    gets this task. Never resends: a call may be on the wire. The sender, should it live, still records its receipt.
    """
    now = res.clock.for_sql()
    async with transaction(res) as session:
        lapsed = await store.claim_lapsed_all_teams(session, limit=limit, now=now)
        await store_resends.mark_unanswered_if_waited(session, [task["id"] for task in lapsed], now=now)
        for task in lapsed:
            await _give_up_sender(session, res, task)
        doubted = {
            (task["main_account"], task["region"], task["model"])
            for task in lapsed
            if task["upstream_call"] == UpstreamCall.ASYNC
        }
        for main_account, region, model in sorted(doubted):
            model_key = {"main_account": main_account, "region": region, "model": model}
            await room.pause(session, res, model_key, seconds=LOST_ANSWER_PAUSE_SECONDS)
    for task in lapsed:
        log.warning("task.rescued", task=str(task["id"]))
        res.signals.tell(task["id"])
    TASKS_RESCUED.inc(len(lapsed))
    return len(lapsed)


async def _give_up_sender(session: Session, res: Resources, task: RowMapping) -> None:
    if task["upstream_call"] == UpstreamCall.SYNC:
        await end_unknown(session, res, task["id"], attempt=task["attempt"])
    else:
        await store.move(session, task["id"], State.DOUBTFUL, reason=SENDER_DIED)
        await store_doubts.open_doubt(session, task["id"], was_seen=False, now=res.clock.for_sql())


async def mark_unanswered(res: Resources) -> int:
    """Mark calls whose waiting process died: the same request gets their task for ten minutes; return how many."""
    async with transaction(res) as session:
        return await store_resends.mark_unanswered_all_teams(session, now=res.clock.for_sql())


async def end_overdue(res: Resources) -> int:
    """End what waited too long: queued past its deadline, doubtful for a day; return how many.

    Each ending is its own transaction; a crash between two leaves the second for the next round.
    """
    queued = await _overdue(res, State.QUEUED)
    for task in queued:
        await _end_queued(res, task["id"], task["attempt"])
    doubtful = await _overdue(res, State.DOUBTFUL, seconds=res.settings.doubtful_deadline_seconds)
    for task in doubtful:
        await _end_doubtful(res, task["id"], task["attempt"])
    return len(queued) + len(doubtful)


def is_poison(lease: leases.Lease) -> bool:
    """Tell whether work has cost so many processes in a row that it may be what they died of."""
    return lease.was_lost and lease.attempts > MOST_LOST_LEASES


async def hold_poison(res: Resources, lease: leases.Lease) -> None:
    """Push a file away whose copying has cost five processes, before it costs a sixth, and ask for an operator.

    Its link streams from the upstream as before, and the copy is tried again after a while.
    """
    async with transaction(res) as session:
        await leases.snooze(session, lease, seconds=POISON_SECONDS, now=res.clock.for_sql())
        task_id = await store.mark_poisoned(session, UUID(lease.key), reason=POISONED)
    TASKS_POISONED.inc()
    log.error("task.poisoned", task=str(task_id), lost_leases=MOST_LOST_LEASES)


async def close_doubts(res: Resources) -> int:
    """Close doubts that a late receipt has settled, so that nobody goes on looking; return how many."""
    async with transaction(res) as session:
        closed = await store_doubts.close_answered_all_teams(session, now=res.clock.for_sql())
    DOUBTS_SETTLED.labels(str(Verdict.ANSWERED)).inc(closed)
    return closed


async def end_grace(res: Resources) -> int:
    """End tasks whose files take longer than the grace: they are made, the rest is delivery's; return how many."""
    overdue = await _overdue(res, State.DELIVERING)
    for task in overdue:
        async with transaction(res) as session:
            await finish(session, task["id"], State.SUCCEEDED, attempt=task["attempt"], at=res.clock.now())
        res.signals.tell(task["id"])
    return len(overdue)


async def forget_requests(res: Resources) -> int:
    """Delete what was asked a day after its task ended: prompts and pictures are not ours to keep; return how many."""
    forgotten, batch = 0, FORGET_BATCH
    while batch == FORGET_BATCH:
        async with transaction(res) as session:
            batch = await store.forget_requests_all_teams(session, before=res.clock.now(), limit=FORGET_BATCH)
        forgotten += batch
    return forgotten


async def _end_queued(res: Resources, task_id: UUID, attempt: int) -> None:
    async with transaction(res) as session:
        await finish_with_work(
            session,
            task_id,
            State.FAILED,
            attempt=attempt,
            at=res.clock.now(),
            code="Dashgate.QueueTimeout",
            message=QUEUE_TIMEOUT,
        )
    res.signals.tell(task_id)


async def _end_doubtful(res: Resources, task_id: UUID, attempt: int) -> None:
    async with transaction(res) as session:
        if await store.lock_if_still_all_teams(session, task_id, State.DOUBTFUL):
            # else a receipt came in the last moment: the attempt is the same, and it lives
            at = res.clock.now()
            await store_doubts.close_doubt(session, task_id, attempt=attempt, verdict=Verdict.UNKNOWN, at=at)
            await end_unknown(session, res, task_id, attempt=attempt)
            DOUBTS_SETTLED.labels(str(Verdict.UNKNOWN)).inc()
    res.signals.tell(task_id)


async def _overdue(res: Resources, state: State, *, seconds: float = 0) -> Sequence[RowMapping]:
    async with reading(res) as session:
        return await store.read_overdue_all_teams(
            session, state, before=res.clock.for_sql(), seconds=seconds, limit=OVERDUE_BATCH
        )
