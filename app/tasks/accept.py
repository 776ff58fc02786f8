"""Accept: from a team's request to a durable task. The first step of every life.

Owns where a call goes, the decision inline or queued, and the first commit; `submit` and `call` own what leaves the
house. Knows no HTTP of ours: it is given a parsed request and a caller.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import structlog

from app.errors import InvalidParameter, ModelNotFound, Throttled, UpstreamAccountAtFault, UpstreamRefused
from app.lib.db import DatabaseAway, DirectSession, direct_transaction, hold_on, transaction
from app.lib.ids import new_id
from app.models.tasks import Mode, State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, UpstreamKey, all_accounts
from app.routing.catalogue import Offer, load_catalogue, most_units, unlisted_offer
from app.routing.choice import Candidate, Wish, choose
from app.routing.ways import Asked, Way, find_way, serves_path
from app.tasks import store, store_queue
from app.tasks.attempts import Attempt, InlineWait, call_seconds, lease_seconds
from app.tasks.finish import finish_with_work
from app.tasks.keep import LARGE_BYTES, seal_request
from app.tasks.leaving import Leaving, marked_when_left, settle_marks
from app.tasks.resend import Resent, Twin, find_twin, hash_of, take_twin
from app.tasks.submit import Sent, send
from app.teams.authenticate import Caller, check_model
from app.upstream.answers import Refused
from app.upstream.faults import Fault

log = structlog.get_logger()

TAG_MAX_CHARS = 100
WAITED_PRIORITY = 10  # of queued work that somebody waits for on a connection
FULL_RETRY_SECONDS = 5.0  # told to a team whose queue is full
WAIT_LIFE_SECONDS = 60.0  # a waiting process says so again before this (waiting.py)


@dataclass(frozen=True)
class Call:
    """A team's call, parsed as far as we act on it. `body` travels on byte for byte."""

    asked: Asked
    body: bytes = field(repr=False)
    model: str
    parameters: dict[str, Any] = field(repr=False)
    headers: dict[str, str]  # the few that the upstream acts on
    request_id: str
    region: str | None = None
    tag: str = ""
    durable: bool = True  # a synchronous call may run as a task
    idempotency_key: str | None = None
    pinned_account: UUID | None = None  # holds an oss:// input of this call

    @cached_property
    def resent(self) -> Resent:
        """What this call is recognised by when it comes again."""
        return Resent(hash_of(self.asked, self.body), self.idempotency_key)


@dataclass(frozen=True, slots=True)
class NewTask:
    """A call about to become a row: where it goes is chosen, its request is sealed."""

    id: UUID
    caller: Caller
    call: Call
    offer: Offer
    way: Way
    account: AccountInfo
    key: UpstreamKey | None  # None: nothing can be sent now, the task is held
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What a call became: a task, or a task that it was already. A relay's attempt is its caller's to make."""

    task_id: UUID
    mode: Mode
    is_twin: bool = False
    attempt: Attempt | None = None


class NoRoom(Exception):
    """A relay found no room upstream; nothing was written."""


async def accept(res: Resources, caller: Caller, call: Call, *, left: Leaving | None = None) -> Accepted:
    """Make a task of a call, and send it at once when there is room.

    1. Choose region, account and way; pack and seal the request.
    2. One transaction: is it a resend? Else lock the model's limits, count room; insert task, body, event and work, as
       `submitting` with its lease when there is room and nothing waits in front, else as `queued`. A relay without
       room writes nothing.
    3. Outside: an asynchronous create itself (submit.send), which records its own end; waited for at most
       `inline_wait_seconds`. What the upstream answers on the connection is not made here: a relay's attempt is
       handed to its caller, and a worker makes the call of a task whose model knows no other form.

    When the commit of 2 breaks off, nobody knows whether the row is there: it is withdrawn (a later commit), so that
    the caller may try again without paying twice. A crash after 2 leaves a queued task, which dispatch sends, or a
    marked one, which rescue takes up when its lease lapses. A client that hangs up changes nothing; where `left` tells
    of it, the task is marked at once, and the same request gets it.

    Raises:
        AccessDenied, ModelNotFound, InvalidParameter, IdempotencyMismatch: nothing was stored.
        UpstreamAccountAtFault: no account can take it now; nothing was stored, or the row is `refused_inline`.
        UpstreamRefused: the upstream refused it while we waited; the row is `refused_inline`.
        NoRoom: a relay, and no room upstream; nothing was stored.
        Throttled: it would have to wait, and its team has as much waiting as it may; nothing was stored.
        DatabaseAway: nothing was sent.
    """
    check_model(caller, call.model)
    offer = _offer(res, caller, call)
    if len(call.body) > LARGE_BYTES:
        await asyncio.to_thread(lambda: call.resent)  # hashed apart: it would keep everybody waiting
    try:
        account, way, key = await _choose(res, caller, call=call, offer=offer)
    except UpstreamAccountAtFault:
        twin = await find_twin(res, caller, call.resent)
        if twin is None:
            raise
        return Accepted(twin.task_id, twin.mode, is_twin=True)
    task_id = new_id()
    new = NewTask(task_id, caller, call, offer, way, account, key, await seal_request(res, task_id, call.body))
    await settle_marks(res, call.resent)
    made = await _commit(res, new)
    if isinstance(made, Twin):
        log.info("task.resent", task=str(made.task_id), by_key=call.idempotency_key is not None)
        return Accepted(made.task_id, made.mode, is_twin=True)
    log.info("task.accepted", task=str(new.id), model=call.model, region=account.region, inline=made is not None)
    if way.mode is Mode.RELAY:
        return Accepted(new.id, way.mode, attempt=made)
    if made is None:
        res.signals.wake("submit")
    async with marked_when_left(res, new.id, request=call.resent, left=left or Leaving()):
        if made is not None:
            await _send_and_wait(res, new, made)
    return Accepted(new.id, way.mode)


def _offer(res: Resources, caller: Caller, call: Call) -> Offer:
    offer = load_catalogue(res.settings.catalogue_file).find(call.model)
    if offer is None:
        if caller.allow_unlisted_models:
            return unlisted_offer(call.asked.path.strip("/"), is_async=call.asked.is_async)
        raise ModelNotFound()
    if not serves_path(offer, call.asked.path):
        known = dict.fromkeys(path for path in (offer.path, offer.sync_path) if path)
        paths = " or ".join(f"/api/v1/services/{path}" for path in known)
        raise InvalidParameter(f"url error, please check url: this model is called at {paths}.")
    return offer


async def _choose(
    res: Resources, caller: Caller, *, call: Call, offer: Offer
) -> tuple[AccountInfo, Way, UpstreamKey | None]:
    """Return where a call goes, with the key to call with; without one for a team that holds what cannot leave now."""
    accounts = await all_accounts(res)
    now = res.clock.now()
    wish = Wish(
        allowed=caller.regions,
        asked=call.asked,
        wanted=call.region,
        durable=call.durable and caller.durable,
        pinned_account=call.pinned_account,
        draw=random.random(),  # noqa: S311 -- spreads load
    )
    try:
        chosen = choose(offer, candidates_for(accounts, call.model, now=now), wish=wish, now=now)
    except UpstreamAccountAtFault:
        if not (caller.hold and accounts and call.asked.is_async):
            raise
        held = [replace(one, paused_until=None, takes_calls=True) for one in map(as_candidate, accounts)]
        chosen = choose(offer, held, wish=wish, now=now)
        account = next(account for account in accounts if account.id == chosen.candidate.id)
        return account, chosen.way, None
    account = next(account for account in accounts if account.id == chosen.candidate.id)
    return account, chosen.way, account.key_for(call.model, now)


def candidates_for(accounts: Sequence[AccountInfo], model: str, *, now: datetime) -> list[Candidate]:
    """Return the accounts as the choice sees them; one without a usable key for the model takes no calls of it."""
    return [
        replace(as_candidate(account), takes_calls=account.takes_calls(now) and account.key_for(model, now) is not None)
        for account in accounts
    ]


def as_candidate(account: AccountInfo) -> Candidate:
    """Return an account as the choice sees it."""
    return Candidate(
        id=account.id,
        name=account.name,
        region=account.region,
        main_account=account.main_account,
        paused_until=account.paused_until,
        weight=account.weight,
    )


async def _commit(res: Resources, new: NewTask) -> Twin | Attempt | None:
    """Make the task's row durable; return its twin, its marked attempt, or None when it is queued."""
    written = False
    made: Twin | Attempt | None = None
    try:
        async with direct_transaction(res) as session:
            made = await _record(session, res, new)
            written = not isinstance(made, Twin)
    except DatabaseAway:
        if written:  # the commit itself broke off
            res.calls.start(_withdraw(res, new.id, number=made.number if isinstance(made, Attempt) else 0))
        raise
    return made


async def _withdraw(res: Resources, task_id: UUID, *, number: int) -> None:
    """Take back a task that may have been committed and was certainly not sent by us; its caller was told to retry.

    What a dispatcher has taken up meanwhile is at a later attempt and goes on.
    """

    async def end_unsent() -> None:
        async with transaction(res) as session:
            await finish_with_work(
                session,
                task_id,
                State.FAILED,
                attempt=number,
                at=res.clock.now(),
                code="Dashgate.NotAccepted",
                refused_inline=True,
            )

    await hold_on(end_unsent, monotonic=res.clock.monotonic)


async def _record(session: DirectSession, res: Resources, new: NewTask) -> Twin | Attempt | None:
    twin = await take_twin(session, res, new.caller, request=new.call.resent, task_id=new.id)
    if twin is not None:
        return twin
    slot, now = await _take_slot(session, res, new)
    if slot is None and new.way.mode is Mode.RELAY:
        raise NoRoom()
    if slot is None and new.caller.max_queued is not None:
        await _refuse_when_full(session, new.caller, most=new.caller.max_queued)
    place_id = await store.insert_task(session, _row(res, new, slot=slot, now=now))
    if slot is None or new.key is None or now is None:
        return None
    wait_seconds = (slot - now).total_seconds()
    return Attempt(
        task_id=new.id,
        team_id=new.caller.team_id,
        number=1,
        epoch=1,
        mode=new.way.mode,
        upstream_call=new.way.upstream_call,
        model=new.call.model,
        path=new.way.path,
        place_id=place_id,
        pinned=new.call.pinned_account is not None,
        account=new.account,
        key=new.key,
        body=new.call.body,
        headers=new.call.headers,
        wait_seconds=wait_seconds,
        ends_monotonic=res.clock.monotonic() + wait_seconds + lease_seconds(res.settings, new.way.upstream_call),
    )


async def _refuse_when_full(session: DirectSession, caller: Caller, *, most: int) -> None:
    """Refuse what would wait longer in line than its team's cap; where a model's lock is held, the count is exact."""
    if await store_queue.is_full(session, caller.team_id, most=most):
        raise Throttled(FULL_RETRY_SECONDS)


async def _take_slot(session: DirectSession, res: Resources, new: NewTask) -> tuple[datetime | None, datetime | None]:
    """Take a send slot for a call that can leave from here, now; return it with the database's time.

    A relay passes the queue: somebody waits for it on a connection, and it has no place in the queue.
    """
    is_relay = new.way.mode is Mode.RELAY
    if new.key is None or (new.way.upstream_call is UpstreamCall.SYNC and not is_relay):
        return None, None
    free = await room.take(session, res, room.model_key(new.account, new.call.model), wanted=1, past_queue=is_relay)
    waits_behind = free.has_queue and not is_relay
    return (free.slots[0] if free.slots and not waits_behind else None), free.now


def _row(res: Resources, new: NewTask, *, slot: datetime | None, now: datetime | None) -> dict[str, Any]:
    call, way, account = new.call, new.way, new.account
    lease_until = slot + timedelta(seconds=lease_seconds(res.settings, way.upstream_call)) if slot else None
    is_durable = way.mode is Mode.DURABLE
    return {
        "id": new.id,
        "key": str(new.id),
        "team_id": new.caller.team_id,
        "api_key_id": new.caller.api_key_id,
        "mode": str(way.mode),
        "upstream_call": str(way.upstream_call),
        "state": str(State.SUBMITTING if slot else State.QUEUED),
        "attempt": 1 if slot else 0,
        "model": call.model,
        "path": way.path,
        "request_hash": call.resent.hash,
        "pinned": call.pinned_account is not None,
        "region": account.region,
        "account_id": account.id,
        "main_account": account.main_account,
        "account_key_id": new.key.id if slot and new.key else None,
        "tag": call.tag,
        "most": most_units(new.offer, call.parameters),
        "request_id": call.request_id,
        "queue_seconds": float(new.caller.queue_deadline_seconds or res.settings.queue_deadline_seconds),
        "sent_at": slot,
        "call_seconds": float(call_seconds(res.settings, way.upstream_call)),
        "headers": json.dumps(call.headers),
        "request": new.sealed,
        "priority": WAITED_PRIORITY if is_durable else 0,
        "lease_id": new_id() if slot else None,
        "lease_until": lease_until,
        "waited_seconds": WAIT_LIFE_SECONDS if is_durable else None,
        "now": res.clock.for_sql(),
    }


async def _send_and_wait(res: Resources, new: NewTask, attempt: Attempt) -> None:
    """Send inline: the client waits a little, the call goes on without it.

    The mark is committed, so trouble on our side is not the client's: it gets its task, and rescue looks after it.
    """
    inline = InlineWait(holds=new.caller.hold and new.call.asked.is_async, regions=_regions_for(new))
    sending: asyncio.Task[Sent] = res.calls.start(send(res, attempt, inline=inline))
    done, _ = await asyncio.wait({sending}, timeout=res.settings.inline_wait_seconds)
    if not done and inline.leave():
        return
    await asyncio.wait({sending})
    if sending.exception() is not None:  # logged by res.calls
        return
    if not inline.refused:
        return
    match sending.result():
        case Refused(fault=Fault.ACCOUNT):
            raise UpstreamAccountAtFault()
        case Refused(fault=Fault.CALLER, status=status, body=body):
            raise UpstreamRefused(status, body, task_id=str(attempt.task_id))


def _regions_for(new: NewTask) -> list[str]:
    """Return the team's regions in which the call could go the same way: where it may move from the queue."""
    asked, durable = new.call.asked, new.call.durable and new.caller.durable
    ways = {region: find_way(new.offer, region, asked=asked, durable=durable) for region in new.caller.regions}
    return [region for region, way in ways.items() if way is not None and way.upstream_call is new.way.upstream_call]
