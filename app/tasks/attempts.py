"""Attempts: a call about to leave, and what is recorded when nothing was taken by it.

Owns what the two kinds of calls share: `submit` creates tasks upstream, `call` is answered on the connection. Knows
neither of them.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import structlog

from app.errors import InvalidParameter
from app.lib import leases
from app.lib.db import DatabaseAway, Session, hold_on, transaction
from app.models.tasks import Mode, State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.routing.accounts import AccountInfo, UpstreamKey
from app.settings import Settings
from app.tasks import store
from app.tasks.finish import finish
from app.tasks.keep import keep_answer
from app.upstream.answers import Refused
from app.upstream.faults import Fault

log = structlog.get_logger()

T = TypeVar("T")

LEASE_MARGIN_SECONDS = 15.0  # beyond the call's own time limit: for the record, and a slow database
LATE_SECONDS = 5.0  # of that margin a sender may lose before it begins
LOST_ANSWER_PAUSE_SECONDS = 5.0  # so that send windows of one model do not overlap (design.md 3, doubtful)
NOT_SENT_PAUSE_SECONDS = 5.0
NOT_SENT = "not_sent"  # why a task is back in the queue: no byte left the house
GREW_TOO_QUICKLY = ("Throttling.BurstRate", "limit_burst_rate")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A marked attempt: everything its sender needs, and until when it may act."""

    task_id: UUID
    team_id: UUID
    number: int
    epoch: int
    mode: Mode
    upstream_call: UpstreamCall
    model: str
    path: str
    place_id: UUID | None  # where the team's files go
    pinned: bool  # to its account
    account: AccountInfo
    key: UpstreamKey
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

    def __init__(self, *, holds: bool = False, regions: Collection[str] | None = None) -> None:
        self.holds = holds  # its team waits in the queue while every account is at fault
        self.regions = regions  # where else such a call may go; None: wherever there is an account
        self._present = True
        self._refused = False

    @property
    def refused(self) -> bool:
        """Whether a refusal is the client's answer."""
        return self._refused

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


def call_seconds(settings: Settings, upstream_call: UpstreamCall) -> float:
    """Return when a call of that kind is given up."""
    return settings.relay_timeout_seconds if upstream_call is UpstreamCall.SYNC else settings.call_timeout_seconds


def lease_seconds(settings: Settings, upstream_call: UpstreamCall) -> float:
    """Return how long a sender holds the work of such a call."""
    return call_seconds(settings, upstream_call) + LEASE_MARGIN_SECONDS


def is_late(res: Resources, attempt: Attempt) -> bool:
    """Tell whether a call begun now could outlast its lease: then it must not leave."""
    needed = lease_seconds(res.settings, attempt.upstream_call) - LATE_SECONDS
    return attempt.ends_monotonic - res.clock.monotonic() < needed


async def hold_on_to(
    res: Resources, attempt: Attempt, record: Callable[[], Awaitable[T]], *, upstream_task: str | None = None
) -> T:
    """Record through an absence of the database; failing that, the log line is all that is left of the fact.

    Raises:
        DatabaseAway: it stayed away; rescue will take the task up when its lease lapses.
    """
    try:
        recorded = await hold_on(record, monotonic=res.clock.monotonic)
    except DatabaseAway:
        log.error("task.record_lost", task=str(attempt.task_id), attempt=attempt.number, upstream_task=upstream_task)
        raise
    if attempt.mode is not Mode.RELAY:  # its own connection knows already
        res.signals.tell(attempt.task_id)
    return recorded


async def record_throttled(res: Resources, attempt: Attempt, refused: Refused) -> None:
    """A 429: nothing was taken. The task waits, and so does its model, longer each time."""
    key = room.model_key(attempt.account, attempt.model)
    async with transaction(res) as session:
        await _put_back(session, res, attempt, reason=refused.code)
        grew = refused.code in GREW_TOO_QUICKLY
        await room.back_off(session, res, key, retry_after_seconds=refused.retry_after_seconds, grew=grew)


async def record_not_taken(res: Resources, attempt: Attempt, *, reason: str, pause_seconds: float) -> None:
    """Certain that nothing was taken: back to the queue, due again after a pause."""
    async with transaction(res) as session:
        await _put_back(session, res, attempt, reason=reason, pause_seconds=pause_seconds)
        if reason == NOT_SENT:
            await room.slow_down(session, res, room.model_key(attempt.account, attempt.model))


async def record_refusal(res: Resources, attempt: Attempt, *, refused: Refused, inline: InlineWait | None) -> None:
    """The upstream's verdict on the request: the task ends, with the upstream's own words for its team."""
    shown = refused.fault is not Fault.ACCOUNT  # our account's details stay with the operator
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        task = await finish(
            session,
            attempt.task_id,
            State.FAILED,
            attempt=attempt.number,
            at=res.clock.now(),
            code=refused.code if shown else "Dashgate.UpstreamAccount",
            message=refused.message if shown else None,
            answer_status=refused.status if shown else None,
            upstream_request_id=refused.request_id,
            refused_inline=inline is not None and inline.refuse(),
        )
        if task is not None and shown:
            await keep_answer(session, res, attempt.task_id, body=refused.body)


async def record_bad_input(res: Resources, attempt: Attempt, problem: InvalidParameter) -> None:
    """An input that the team gave as one of our links is gone: its task fails before anything is sent."""
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        await finish(
            session,
            attempt.task_id,
            State.FAILED,
            attempt=attempt.number,
            at=res.clock.now(),
            code=problem.code,
            message=problem.message,
        )


async def _put_back(
    session: Session, res: Resources, attempt: Attempt, *, reason: str, pause_seconds: float = 0
) -> None:
    """Move a task back to the queue; its work is made anew where rescue had taken it away (a fact that came late).

    A relay has no queue: its connection tries again by itself, with a new row.
    """
    if attempt.mode is Mode.RELAY:
        await leases.finish(session, attempt.lease)
        at = res.clock.now()
        ending = {"code": reason, "refused_inline": True}
        await finish(session, attempt.task_id, State.FAILED, attempt=attempt.number, at=at, **ending)
        return
    has_work = await leases.snooze(
        session, attempt.lease, seconds=pause_seconds, failed=pause_seconds > 0, now=res.clock.for_sql()
    )
    task = await store.move(session, attempt.task_id, State.QUEUED, attempt=attempt.number, reason=reason)
    if task is not None and not has_work:
        await leases.enqueue(
            session,
            "submit",
            key=attempt.lease.key,
            due_at=res.clock.now() + timedelta(seconds=pause_seconds),
            deadline_at=task["queue_deadline_at"],
            account_id=attempt.account.id,
            team_id=task["team_id"],
            epoch=attempt.epoch,
            now=res.clock.for_sql(),
        )
