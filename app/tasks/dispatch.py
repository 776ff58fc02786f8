"""Dispatch: send queued tasks as room appears, fairly over teams.

Owns which queued task goes next; the call itself is submit's. At each model the teams that wait take turns: each send
moves its team 1 / weight further in the queue's virtual time, and who is least far goes first. A team that comes
begins where the queue is, so that its first task waits for one send and not for the hundred thousand of another team.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.lib.crypto import CryptoError
from app.lib.db import Session, reading, transaction
from app.lib.ids import new_id
from app.lib.loop import side_by_side
from app.models.accounts import Serving
from app.models.tasks import Mode, State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, UpstreamKey, all_accounts
from app.routing.choice import pick
from app.tasks import store_queue as store
from app.tasks.accept import as_candidate
from app.tasks.attempts import Attempt, call_seconds, lease_seconds
from app.tasks.call import make_call
from app.tasks.finish import finish_with_work
from app.tasks.keep import open_request
from app.tasks.rehome import move_queue
from app.tasks.submit import send

log = structlog.get_logger()

UNREADABLE = "The stored request cannot be read; nothing was sent and nothing is billed."


@dataclass(frozen=True, slots=True)
class Queue:
    """The teams that wait at one model of one main account in one region."""

    model_key: dict[str, str]
    teams: Sequence[UUID]


@dataclass(frozen=True, slots=True)
class Departure:
    """A claimed task, and where and when it leaves."""

    claim: store.Claim
    account: AccountInfo
    key: UpstreamKey
    leaves_at: datetime


async def dispatch_due(res: Resources, *, limit: int = store.MOST_AT_ONCE) -> int:
    """Send queued tasks of every model that has room; return how many were sent (0 means idle).

    For each (main account, region, model) with a queue:
    1. Look whether there is room, without a lock; no room, no claim.
    2. One transaction: lock as many due tasks as there is room for, with their work, then the model's limits; take
       room and send slots; mark as many tasks as there are slots `submitting`, each with a lease; note the turns.
    3. Begin their calls (submit.send, call.make_call), which go on by themselves, each recording its own end: one slow
       region keeps nobody waiting.
    Where no account takes calls, the queue moves to one that does (rehome), unless an operator has paused it.

    A crash after 2 leaves marked tasks: rescue calls them doubtful when their leases lapse.
    """
    async with reading(res) as session:
        rows = await store.read_queues_all_teams(session)
    queues = [Queue({name: row[name] for name in ("main_account", "region", "model")}, row["teams"]) for row in rows]
    return sum(await side_by_side(_dispatch_queue(res, queue, limit=limit) for queue in queues))


async def _dispatch_queue(res: Resources, queue: Queue, *, limit: int) -> int:
    accounts = await _accounts(res, queue.model_key)
    usable = [account for account in accounts if _is_usable(res, account, queue.model_key["model"])]
    if not usable:
        waits = any(account.serving is Serving.PAUSED for account in accounts)
        return 0 if waits else await move_queue(res, queue.model_key, teams=queue.teams, limit=limit)
    async with reading(res) as session:
        places = await room.places(session, res, queue.model_key)
    if not places:
        return 0
    async with transaction(res) as session:
        marked = await _mark(session, res, queue, accounts=usable, limit=min(limit, places))
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
    session: Session, res: Resources, queue: Queue, *, accounts: Sequence[AccountInfo], limit: int
) -> list[Attempt]:
    """Claim whose turn it is, take room for them, and mark those that have a slot; the others stay queued."""
    lanes = await store.read_turns_all_teams(session, queue.model_key, queue.teams)
    claimed = await store.claim_queued_all_teams(
        session,
        queue.model_key,
        lanes=lanes,
        accounts=[account.id for account in accounts],
        limit=limit,
        now=res.clock.for_sql(),
    )
    if not claimed:
        return []
    free = await room.take(session, res, queue.model_key, wanted=len(claimed), past_queue=True)
    pairs = zip(claimed, free.slots, strict=False)  # more tasks than slots: the others stay queued
    departures = [_departure(claim, accounts, leaves_at=slot, now=free.now) for claim, slot in pairs]
    if not departures:
        return []
    sent = [departure.claim for departure in departures]
    costs = costs_of(sent)
    turn = max(claim.turn for claim in sent)
    await store.charge_turns_all_teams(session, queue.model_key, costs=costs, base=lanes[0]["base"], turn=turn)
    rows = {row["id"]: row for row in await store.mark_submitting(session, [_mark_of(res, one) for one in departures])}
    return [_attempt(res, one, rows[one.claim.task_id], now=free.now) for one in departures]


def costs_of(claims: Sequence[store.Claim]) -> dict[UUID, float]:
    """Return how far each team moves in the queue's virtual time for its sends: 1 / weight each.

    >>> def claim(team, weight):
    ...     return store.Claim("k", UUID(int=9), UUID(int=team), UUID(int=8), False, "async", "m", weight, 0.0)
    >>> [cost for team, cost in costs_of([claim(1, 2), claim(2, 1), claim(1, 2)]).items()]
    [1.0, 1.0]
    """
    costs: dict[UUID, float] = defaultdict(float)
    for claim in claims:
        costs[claim.team_id] += 1 / claim.weight
    return dict(costs)


def _departure(claim: store.Claim, accounts: Sequence[AccountInfo], *, leaves_at: datetime, now: datetime) -> Departure:
    account = _home_of(claim, accounts)
    return Departure(claim, account, account.key_for(claim.model, now) or account.keys[0], leaves_at)


def _home_of(claim: store.Claim, accounts: Sequence[AccountInfo]) -> AccountInfo:
    """Return the account that sends a task: its own where an input pins it, else one by weight."""
    if claim.pinned:
        return next(account for account in accounts if account.id == claim.account_id)
    draw = random.random()  # noqa: S311 -- spreads load
    picked = pick([as_candidate(account) for account in accounts], draw)
    return next(account for account in accounts if account.id == picked.id)


def _mark_of(res: Resources, departure: Departure) -> dict[str, Any]:
    upstream_call = UpstreamCall(departure.claim.upstream_call)
    return {
        "ids": departure.claim.task_id,
        "account_ids": departure.account.id,
        "key_ids": departure.key.id,
        "lease_ids": new_id(),
        "sent_at": departure.leaves_at,
        "call_seconds": float(call_seconds(res.settings, upstream_call)),
        "lease_seconds": float(lease_seconds(res.settings, upstream_call)),
    }


def _attempt(res: Resources, departure: Departure, row: RowMapping, *, now: datetime) -> Attempt:
    upstream_call = UpstreamCall(departure.claim.upstream_call)
    wait_seconds = (departure.leaves_at - now).total_seconds()
    return Attempt(
        task_id=row["id"],
        team_id=row["team_id"],
        number=row["attempt"],
        epoch=row["epoch"],
        mode=Mode(row["mode"]),
        upstream_call=upstream_call,
        model=departure.claim.model,
        path=row["path"],
        place_id=row["place_id"],
        pinned=departure.claim.pinned,
        account=departure.account,
        key=departure.key,
        body=row["request"],  # still sealed: opening a large one must not hold the model's lock
        headers=row["headers"],
        wait_seconds=wait_seconds,
        ends_monotonic=res.clock.monotonic() + wait_seconds + lease_seconds(res.settings, upstream_call),
    )
