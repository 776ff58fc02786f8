"""Dispatch: send queued tasks as room appears, oldest first. Fairness over teams comes with a later part.

Owns which queued task goes next; the call itself is submit's.
"""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from app.lib.crypto import CryptoError, unpack
from app.lib.db import Session, reading, transaction
from app.lib.ids import new_id
from app.lib.loop import side_by_side
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, all_accounts
from app.tasks import store
from app.tasks.finish import finish_with_work
from app.tasks.submit import LEASE_MARGIN_SECONDS, Attempt, send

log = structlog.get_logger()

MOST_BYTES = 512 * 1024 * 1024  # the largest body any setting lets in
UNREADABLE = "The stored request cannot be read; nothing was sent and nothing is billed."


async def dispatch_due(res: Resources, *, limit: int = 20) -> int:
    """Send queued tasks of every model that has room; return how many were sent (0 means idle).

    For each (main account, region, model) with a queue:
    1. One transaction: lock due tasks with their work, then the model's limits; take room and send slots; mark as
       many tasks as there are slots `submitting`, each with a lease.
    2. Begin their calls (submit.send), which go on by themselves, each recording its own end: one slow region keeps
       nobody waiting.

    A crash after 1 leaves marked tasks: rescue calls them doubtful when their leases lapse.
    """
    async with reading(res) as session:
        queued = await store.read_queued_models_all_teams(session)
    return sum(await side_by_side(_dispatch_model(res, dict(row), limit=limit) for row in queued))


async def _dispatch_model(res: Resources, model_key: dict[str, str], *, limit: int) -> int:
    account = await _find_account(res, model_key)
    if account is None:
        return 0
    async with transaction(res) as session:
        marked = await _mark(session, res, account, model_key=model_key, limit=limit)
    for attempt in marked:
        res.calls.start(_send_marked(res, attempt))
    return len(marked)


async def _send_marked(res: Resources, sealed: Attempt) -> None:
    """Open the stored request and send it; one that does not open fails alone."""
    place = f"task_bodies.request:{sealed.task_id}"
    try:
        body = await asyncio.to_thread(lambda: unpack(res.keyring.open(sealed.body, place=place), max_bytes=MOST_BYTES))
    except CryptoError as error:
        log.error("task.unreadable", task=str(sealed.task_id), reason=str(error))
        async with transaction(res) as session:
            await finish_with_work(
                session,
                sealed.task_id,
                State.FAILED,
                attempt=sealed.number,
                at=res.clock.now(),
                code="InternalError",
                message=UNREADABLE,
            )
        return
    await send(res, replace(sealed, body=body))


async def _find_account(res: Resources, model_key: dict[str, str]) -> AccountInfo | None:
    """Return an account of that main account and region that is not paused."""
    for account in await all_accounts(res):
        belongs = (account.main_account, account.region) == (model_key["main_account"], model_key["region"])
        if belongs and (account.paused_until is None or account.paused_until <= res.clock.now()):
            return account
    return None


async def _mark(
    session: Session, res: Resources, account: AccountInfo, *, model_key: dict[str, str], limit: int
) -> list[Attempt]:
    claimed = await store.claim_queued_all_teams(session, model_key, limit=limit, now=res.clock.for_sql())
    if not claimed:
        return []
    free = await room.take(session, res, model_key, wanted=len(claimed), past_queue=True)
    pairs = zip(claimed, free.slots, strict=False)  # more tasks than slots: the others stay queued
    return [await _mark_one(session, res, account, claim=claim, slot=slot, now=free.now) for claim, slot in pairs]


async def _mark_one(
    session: Session, res: Resources, account: AccountInfo, *, claim: store.Claim, slot: datetime, now: datetime
) -> Attempt:
    settings = res.settings
    lease_seconds = settings.call_timeout_seconds + LEASE_MARGIN_SECONDS
    until = slot + timedelta(seconds=lease_seconds)
    epoch = await store.lease_submit(session, claim.key, lease_id=new_id(), until=until)
    task = await store.mark_submitting(
        session,
        claim.task_id,
        account_id=account.id,
        account_key_id=account.key_id,
        sent_at=slot,
        call_deadline_at=slot + timedelta(seconds=settings.call_timeout_seconds),
    )
    asked = await store.read_request_all_teams(session, claim.task_id)
    wait_seconds = (slot - now).total_seconds()
    return Attempt(
        task_id=claim.task_id,
        number=task["attempt"],
        epoch=epoch,
        model=task["model"],
        path=task["path"],
        account=account,
        body=asked["request"],  # still sealed: opening a large one must not hold the model's lock
        headers=asked["headers"],
        wait_seconds=wait_seconds,
        ends_monotonic=res.clock.monotonic() + wait_seconds + lease_seconds,
    )
