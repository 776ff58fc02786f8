"""Accept: from a team's request to a durable task. The first step of every life.

Owns the decision inline or queued and the first commit; `submit` owns the call and the second commit. Knows no HTTP of
ours: it is given a parsed request and a caller.
"""

import asyncio
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog

from app.errors import InvalidParameter, ModelNotFound, UpstreamAccountAtFault, UpstreamRefused
from app.lib.crypto import pack
from app.lib.db import DatabaseAway, DirectSession, direct_transaction, hold_on, transaction
from app.lib.ids import new_id
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, all_accounts, get_account
from app.routing.catalogue import Offer, load_catalogue, most_units
from app.routing.choice import Candidate, choose
from app.tasks import store
from app.tasks.finish import finish_with_work
from app.tasks.submit import LEASE_MARGIN_SECONDS, Attempt, InlineWait, Sent, send
from app.teams.authenticate import Caller, check_model
from app.upstream.answers import Refused
from app.upstream.faults import Fault

log = structlog.get_logger()

TAG_MAX_CHARS = 100
LARGE_BYTES = 256 * 1024  # packing more than this would keep everybody waiting


@dataclass(frozen=True, slots=True)
class Call:
    """A team's create, parsed as far as we act on it. `body` travels on byte for byte."""

    path: str
    body: bytes
    model: str
    parameters: dict[str, Any]
    headers: dict[str, str]  # the few that the upstream acts on
    region: str | None
    tag: str
    request_id: str


@dataclass(frozen=True, slots=True)
class NewTask:
    """A call about to become a row: where it goes is chosen, its request is sealed."""

    id: UUID
    caller: Caller
    call: Call
    offer: Offer
    account: AccountInfo
    sealed: bytes = field(repr=False)


async def accept(res: Resources, caller: Caller, call: Call) -> UUID:
    """Make a task of a call and send it at once when there is room; return its id.

    1. Choose region and account; pack and seal the request.
    2. One transaction: lock the model's limits, count room; insert task, body, event and work, as `submitting` with
       its lease when there is room and nothing waits in front, else as `queued`.
    3. Outside: the call itself (submit.send), which records its own end; waited for at most `inline_wait_seconds`.

    When the commit of 2 breaks off, nobody knows whether the row is there: it is withdrawn (a later commit), so that
    the caller may try again without paying twice. A crash after 2 leaves a queued task, which dispatch sends, or a
    marked one, which rescue calls doubtful when its lease lapses. A client that hangs up changes nothing.

    Raises:
        AccessDenied, ModelNotFound, InvalidParameter: nothing was stored.
        UpstreamAccountAtFault: no account can take it now; nothing was stored, or the row is `refused_inline`.
        UpstreamRefused: the upstream refused it while we waited; the row is `refused_inline`.
        DatabaseAway: nothing was sent.
    """
    check_model(caller, call.model)
    offer = _offer(res, call)
    account = await _account(res, caller, call=call, offer=offer)
    task_id = new_id()
    new = NewTask(task_id, caller, call, offer, account, await _seal(res, task_id, call.body))
    attempt = await _commit(res, new)
    log.info("task.accepted", task=str(new.id), model=call.model, region=account.region, inline=attempt is not None)
    if attempt is None:
        res.signals.wake("submit")
        return new.id
    await _send_and_wait(res, attempt)
    return new.id


def _offer(res: Resources, call: Call) -> Offer:
    offer = load_catalogue(res.settings.catalogue_file).find(call.model)
    if offer is None:
        raise ModelNotFound()
    if call.path.strip("/") != offer.path:
        raise InvalidParameter(f"url error, please check url: this model is called at /api/v1/services/{offer.path}.")
    return offer


async def _account(res: Resources, caller: Caller, *, call: Call, offer: Offer) -> AccountInfo:
    accounts = await all_accounts(res)
    candidates = [Candidate(a.id, a.name, a.region, a.main_account, a.paused_until) for a in accounts]
    chosen = choose(offer, candidates, allowed=caller.regions, wanted=call.region, now=res.clock.now())
    return await get_account(res, chosen.id)


async def _seal(res: Resources, task_id: UUID, body: bytes) -> bytes:
    """Pack and encrypt a body before any row is locked; a large one in a thread."""
    place = f"task_bodies.request:{task_id}"
    if len(body) <= LARGE_BYTES:
        return res.keyring.seal(pack(body), place=place)
    return await asyncio.to_thread(lambda: res.keyring.seal(pack(body), place=place))


async def _commit(res: Resources, new: NewTask) -> Attempt | None:
    """Make the task's row durable; return its marked attempt, or None when it is queued."""
    written = False
    attempt: Attempt | None = None
    try:
        async with direct_transaction(res) as session:
            attempt = await _record(session, res, new)
            written = True
    except DatabaseAway:
        if written:  # the commit itself broke off
            res.calls.start(_withdraw(res, new.id, number=attempt.number if attempt else 0))
        raise
    return attempt


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


async def _record(session: DirectSession, res: Resources, new: NewTask) -> Attempt | None:
    settings, call, account = res.settings, new.call, new.account
    free = await room.take(session, res, room.model_key(account, call.model), wanted=1)
    slot = free.slots[0] if free.slots and not free.has_queue else None
    lease_seconds = settings.call_timeout_seconds + LEASE_MARGIN_SECONDS
    values: dict[str, Any] = {
        "id": new.id,
        "key": str(new.id),
        "team_id": new.caller.team_id,
        "api_key_id": new.caller.api_key_id,
        "state": str(State.SUBMITTING if slot else State.QUEUED),
        "attempt": 1 if slot else 0,
        "model": call.model,
        "path": new.offer.path,
        "region": account.region,
        "account_id": account.id,
        "main_account": account.main_account,
        "account_key_id": account.key_id if slot else None,
        "tag": call.tag,
        "most": most_units(new.offer, call.parameters),
        "request_id": call.request_id,
        "queue_seconds": float(settings.queue_deadline_seconds),
        "sent_at": slot,
        "call_seconds": float(settings.call_timeout_seconds),
        "headers": json.dumps(call.headers),
        "request": new.sealed,
        "lease_id": new_id() if slot else None,
        "lease_until": slot + timedelta(seconds=lease_seconds) if slot else None,
        "now": res.clock.for_sql(),
    }
    await store.insert_task(session, values)
    if slot is None:
        return None
    wait_seconds = (slot - free.now).total_seconds()
    return Attempt(
        task_id=new.id,
        number=1,
        epoch=1,
        model=call.model,
        path=new.offer.path,
        account=account,
        body=call.body,
        headers=call.headers,
        wait_seconds=wait_seconds,
        ends_monotonic=res.clock.monotonic() + wait_seconds + lease_seconds,
    )


async def _send_and_wait(res: Resources, attempt: Attempt) -> None:
    """Send inline: the client waits a little, the call goes on without it.

    The mark is committed, so trouble on our side is not the client's: it gets its task, and rescue looks after it.
    """
    inline = InlineWait()
    sending: asyncio.Task[Sent] = res.calls.start(send(res, attempt, inline=inline))
    done, _ = await asyncio.wait({sending}, timeout=res.settings.inline_wait_seconds)
    if not done and inline.leave():
        return
    await asyncio.wait({sending})
    if sending.exception() is not None:  # logged by res.calls
        return
    match sending.result():
        case Refused(fault=Fault.ACCOUNT):
            raise UpstreamAccountAtFault()
        case Refused(fault=Fault.CALLER, status=status, body=body):
            raise UpstreamRefused(status, body, task_id=str(attempt.task_id))
