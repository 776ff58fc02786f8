"""Dispatch: send queued tasks as room appears, oldest first. Fairness over teams comes with a later part.

Owns which queued task goes next; the call itself is submit's.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from app.lib.crypto import CryptoError
from app.lib.db import Session, reading, transaction
from app.lib.ids import new_id
from app.lib.loop import side_by_side
from app.models.accounts import Serving
from app.models.tasks import Mode, State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, all_accounts
from app.routing.choice import pick
from app.tasks import store
from app.tasks.accept import as_candidate
from app.tasks.attempts import Attempt, call_seconds, lease_seconds
from app.tasks.call import make_call
from app.tasks.finish import finish_with_work
from app.tasks.keep import open_request
from app.tasks.rehome import move_queue
from app.tasks.submit import send

log = structlog.get_logger()

UNREADABLE = "The stored request cannot be read; nothing was sent and nothing is billed."


async def dispatch_due(res: Resources, *, limit: int = 20) -> int:
    """Send queued tasks of every model that has room; return how many were sent (0 means idle).

    For each (main account, region, model) with a queue:
    1. One transaction: lock due tasks with their work, then the model's limits; take room and send slots; mark as
       many tasks as there are slots `submitting`, each with a lease.
    2. Begin their calls (submit.send, call.make_call), which go on by themselves, each recording its own end: one slow
       region keeps nobody waiting.
    Where no account takes calls, the queue moves to one that does (rehome), unless an operator has paused it.

    A crash after 1 leaves marked tasks: rescue calls them doubtful when their leases lapse.
    """
    async with reading(res) as session:
        queued = await store.read_queued_models_all_teams(session)
    return sum(await side_by_side(_dispatch_model(res, dict(row), limit=limit) for row in queued))


async def _dispatch_model(res: Resources, model_key: dict[str, str], *, limit: int) -> int:
    accounts = await _accounts(res, model_key)
    usable = [account for account in accounts if _is_usable(res, account, model_key["model"])]
    if not usable:
        waits = any(account.serving is Serving.PAUSED for account in accounts)
        return 0 if waits else await move_queue(res, model_key, limit=limit)
    async with transaction(res) as session:
        marked = await _mark(session, res, usable, model_key=model_key, limit=limit)
    for attempt in marked:
        res.calls.start(_send_marked(res, attempt))
    return len(marked)


async def _send_marked(res: Resources, sealed: Attempt) -> None:
    """Open the stored request and send it; one that does not open fails alone."""
    try:
        body = await open_request(res, sealed.task_id, sealed.body)
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
        res.signals.tell(sealed.task_id)
        return
    attempt = replace(sealed, body=body)
    if attempt.upstream_call is UpstreamCall.SYNC:
        await make_call(res, attempt)
    else:
        await send(res, attempt)


async def _accounts(res: Resources, model_key: dict[str, str]) -> list[AccountInfo]:
    """Return the accounts that share a main account's limits in a region."""
    home = (model_key["main_account"], model_key["region"])
    return [account for account in await all_accounts(res) if (account.main_account, account.region) == home]


def _is_usable(res: Resources, account: AccountInfo, model: str) -> bool:
    now = res.clock.now()
    return account.takes_calls(now) and account.key_for(model, now) is not None


async def _mark(
    session: Session, res: Resources, accounts: Sequence[AccountInfo], *, model_key: dict[str, str], limit: int
) -> list[Attempt]:
    claimed = await store.claim_queued_all_teams(session, model_key, limit=limit, now=res.clock.for_sql())
    homes = [(claim, home) for claim in claimed if (home := _home_of(claim, accounts)) is not None]
    if not homes:
        return []
    free = await room.take(session, res, model_key, wanted=len(homes), past_queue=True)
    pairs = zip(homes, free.slots, strict=False)  # more tasks than slots: the others stay queued
    return [await _mark_one(session, res, claim, home=home, slot=(slot, free.now)) for (claim, home), slot in pairs]


def _home_of(claim: store.Claim, accounts: Sequence[AccountInfo]) -> AccountInfo | None:
    """Return the account that sends a task: its own where an input pins it, else one by weight."""
    if claim.pinned:
        return next((account for account in accounts if account.id == claim.account_id), None)
    draw = random.random()  # noqa: S311 -- spreads load
    picked = pick([as_candidate(account) for account in accounts], draw)
    return next(account for account in accounts if account.id == picked.id)


async def _mark_one(
    session: Session, res: Resources, claim: store.Claim, *, home: AccountInfo, slot: tuple[datetime, datetime]
) -> Attempt:
    leaves_at, now = slot
    upstream_call = UpstreamCall(claim.upstream_call)
    seconds = lease_seconds(res.settings, upstream_call)
    epoch = await store.lease_submit(
        session, claim.key, lease_id=new_id(), until=leaves_at + timedelta(seconds=seconds)
    )
    key = home.key_for(claim.model, now) or home.keys[0]
    task = await store.mark_submitting(
        session,
        claim.task_id,
        account_id=home.id,
        account_key_id=key.id,
        sent_at=leaves_at,
        call_deadline_at=leaves_at + timedelta(seconds=call_seconds(res.settings, upstream_call)),
        submitted_at=leaves_at if upstream_call is UpstreamCall.SYNC else None,
    )
    asked = await store.read_request_all_teams(session, claim.task_id)
    wait_seconds = (leaves_at - now).total_seconds()
    return Attempt(
        task_id=claim.task_id,
        team_id=task["team_id"],
        number=task["attempt"],
        epoch=epoch,
        mode=Mode(task["mode"]),
        upstream_call=upstream_call,
        model=task["model"],
        path=task["path"],
        place_id=task["place_id"],
        pinned=claim.pinned,
        account=home,
        key=key,
        body=asked["request"],  # still sealed: opening a large one must not hold the model's lock
        headers=asked["headers"],
        wait_seconds=wait_seconds,
        ends_monotonic=res.clock.monotonic() + wait_seconds + seconds,
    )
