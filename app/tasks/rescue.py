"""Rescue: what dead processes left, and what waited too long. Decides by age; leaves its reason on the row."""

from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.ledger.entries import record_uncertain
from app.lib.db import reading, transaction
from app.lib.metrics import TASKS_RESCUED
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.catalogue import load_catalogue, unit_of
from app.tasks import store
from app.tasks.finish import finish, finish_with_work
from app.tasks.submit import LOST_ANSWER_PAUSE_SECONDS

log = structlog.get_logger()

OVERDUE_BATCH = 200
FORGET_BATCH = 1_000
QUEUE_TIMEOUT = "The task waited longer than its queue deadline; nothing was sent and nothing is billed."
OUTCOME_UNKNOWN = "The upstream's answer to the submission was lost and its outcome could not be found out."


async def rescue_due(res: Resources, *, limit: int = 50) -> int:
    """Call tasks doubtful whose sender died after its mark; return how many.

    One transaction: take the lapsed work away, move its task to `doubtful`, pause its model. Never resends: a call
    may be on the wire. The sender, should it live, still records its receipt by attempt.
    """
    now = res.clock.for_sql()
    async with transaction(res) as session:
        lapsed = await store.claim_lapsed_all_teams(session, limit=limit, now=now)
        doubted = [await store.move(session, task_id, State.DOUBTFUL, reason="sender died") for task_id in lapsed]
        for main_account, region, model in sorted({(t["main_account"], t["region"], t["model"]) for t in doubted if t}):
            model_key = {"main_account": main_account, "region": region, "model": model}
            await room.pause(session, res, model_key, seconds=LOST_ANSWER_PAUSE_SECONDS)
    for task_id in lapsed:
        log.warning("task.rescued", task=str(task_id))
    TASKS_RESCUED.inc(len(lapsed))
    return len(lapsed)


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


async def end_grace(res: Resources) -> int:
    """End tasks whose files take longer than the grace: they are made, the rest is delivery's; return how many."""
    overdue = await _overdue(res, State.DELIVERING)
    for task in overdue:
        async with transaction(res) as session:
            await finish(session, task["id"], State.SUCCEEDED, attempt=task["attempt"], at=res.clock.now())
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


async def _end_doubtful(res: Resources, task_id: UUID, attempt: int) -> None:
    """Give up: the task fails honestly, and what it may have cost stands apart from the bill."""
    at = res.clock.now()
    async with transaction(res) as session:
        if not await store.lock_if_still_all_teams(session, task_id, State.DOUBTFUL):
            return  # a receipt came in the last moment: the attempt is the same, and it lives
        task = await finish(
            session,
            task_id,
            State.FAILED,
            attempt=attempt,
            at=at,
            code="Dashgate.OutcomeUnknown",
            message=OUTCOME_UNKNOWN,
        )
        if task is not None:
            unit = unit_of(load_catalogue(res.settings.catalogue_file), task["model"])
            await record_uncertain(session, task, unit=unit, at=at, zone=res.settings.billing_zone)


async def _overdue(res: Resources, state: State, *, seconds: float = 0) -> Sequence[RowMapping]:
    async with reading(res) as session:
        return await store.read_overdue_all_teams(
            session, state, before=res.clock.for_sql(), seconds=seconds, limit=OVERDUE_BATCH
        )
