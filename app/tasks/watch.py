"""Watch: what the owner of one main account and region holds while its lease lasts, and how a call is made under it.

Every call under the upstream's `/tasks` goes through `call`, in a slot that the owner's round (owner.py) has granted:
there is one pace, one count of what is on the wire and one place that hears a 429. Knows nothing of what is called.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import structlog

from app.errors import CouldNotFindOut
from app.lib import leases
from app.lib.db import DatabaseAway
from app.lib.metrics import UPSTREAM_CALLS
from app.lib.pace import Pace, Wire
from app.resources import Resources
from app.routing.accounts import AccountInfo, upstream_of
from app.routing.keys import leave_refused_key
from app.tasks.picture import Picture
from app.tasks.schedule import SHARES, Kind, Situation
from app.tasks.sweep import Sweeps
from app.upstream.client import Upstream

log = structlog.get_logger()

T = TypeVar("T")

THROTTLED_PAUSE_SECONDS = 1.0
THROTTLED_HALF_SECONDS = 60.0
NEWS_SECONDS = 0.25  # the longest a round waits without looking around
HIT_LEARNING_RATE = 0.1
NOT_OURS = "the account is not ours to ask"
MOST_TOLD = 20_000


@dataclass(slots=True, eq=False, weakref_slot=True)
class Watch:
    """What the owner remembers. Lost with the process, never needed."""

    lease: leases.Lease
    pace: Pace
    wire: Wire
    picture: Picture
    sweeps: Sweeps = field(default_factory=Sweeps)
    asked: deque[asyncio.Future[None]] = field(default_factory=deque)  # who waits for a slot
    told: set[UUID] = field(default_factory=set)  # rows that have changed, here or elsewhere
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    since: Counter[Kind] = field(default_factory=lambda: Counter(SHARES))  # calls since the last of a kind
    round: asyncio.Task[None] | None = None  # the round under way: a slow account delays no other
    round_began_at: float = 0.0  # by the loop's own clock
    begin_round: Callable[[], None] = lambda: None
    read_at: float | None = None  # when all rows were last read
    hit_share: float = 0.5  # of the last looks, how many found an end
    learned: int = 0  # outcomes since somebody asked
    is_refused: bool = False  # the upstream answers with our account's trouble: said once
    is_listing: bool = False
    is_reading: bool = False
    is_settling: bool = False
    settled_at: float | None = None  # when doubts were last looked for
    is_stopping: bool = False
    away: DatabaseAway | None = None  # the database went away: the round ends, and says so

    def may_act(self, res: Resources) -> bool:
        """Tell whether the account is still ours."""
        return not self.is_stopping and res.clock.monotonic() < self.lease.ends_monotonic

    def situation(self, res: Resources) -> Situation:
        """Return what the next call depends on."""
        now, at = res.clock.monotonic(), res.clock.now().timestamp()
        self.picture.ripen(now=now, at=at)
        return Situation(
            lines=self.picture.lines(at=at),
            wish=self.picture.find_wish(now=now),
            asked=sum(not turn.done() for turn in self.asked),
            plausible=self.picture.plausible_count,
            hit_share=self.hit_share,
            sweep_pages=self.sweeps.pages(now, unfinished_count=self.picture.unfinished_count),
            may_list=not self.is_listing and self.sweeps.may_list(now),
            since=self.since,
        )

    def note_call(self, kind: Kind) -> None:
        """Count a slot that was used."""
        for each in SHARES:
            self.since[each] += 1
        self.since[kind] = 0

    def note_look(self, *, found_end: bool) -> None:
        """Learn how often looks find an end."""
        self.hit_share += HIT_LEARNING_RATE * (found_end - self.hit_share)

    def start(self, work: Awaitable[None]) -> None:
        """Do something beside the round; it ends before the round does."""
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self._end)

    async def until_news(self, *, most_seconds: float = NEWS_SECONDS) -> None:
        """Wait until something under way has ended, or something new is to be done, at most so long."""
        self.news.clear()
        try:
            async with asyncio.timeout(min(NEWS_SECONDS, most_seconds)):
                await self.news.wait()
        except TimeoutError:
            return  # nothing: look around all the same

    async def ask(self, res: Resources, account: AccountInfo, *, call: Callable[[Upstream], Awaitable[T]]) -> T:
        """Make a call for somebody else, in a slot of the account's pace. See listing_upstream.py.

        Raises:
            CouldNotFindOut: unanswered, or the account is not ours to ask any more.
        """
        await self.turn()
        return await self.call(res, account, operation="list", call=call)

    async def turn(self) -> None:
        """Wait for a slot. Raises: CouldNotFindOut: there will be none."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append(turn)
        self.begin_round()
        self.news.set()
        await turn

    def grant(self) -> None:
        """Give the slot that was just taken to whoever has waited for one the longest."""
        while self.asked:
            turn = self.asked.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def refuse_asked(self) -> None:
        """There will be no more slots."""
        while self.asked:
            turn = self.asked.popleft()
            if not turn.done():
                turn.set_exception(CouldNotFindOut(NOT_OURS))

    async def call(
        self, res: Resources, account: AccountInfo, *, operation: str, call: Callable[[Upstream], Awaitable[T]]
    ) -> T:
        """Make one call in a slot that was granted, while the lease lasts. `operation`: as the metrics name it.

        Raises:
            CouldNotFindOut: unanswered, or the account is not ours to ask any more.
            UpstreamAccountAtFault: it has no key.
        """
        if not self.may_act(res):
            raise CouldNotFindOut(NOT_OURS)  # a successor may be asking
        key = account.any_key(res.clock.now())
        number = self.wire.begin()
        try:
            answer = await call(upstream_of(res, account, key=key))
            self.is_refused = False
            return answer
        except CouldNotFindOut as error:
            UPSTREAM_CALLS.labels(operation, "unanswered").inc()
            if error.throttled:
                self.pace.hold(THROTTLED_PAUSE_SECONDS)
                self.pace.halve(THROTTLED_HALF_SECONDS)
            another_asks = False
            if key is not None and error.reason.startswith("401"):
                another_asks = await leave_refused_key(res, account, key, reason=error.reason)
            if error.account_at_fault and not another_asks and not self.is_refused:
                self.is_refused = True
                log.error("account.refused", account=account.name, operation=operation, reason=error.reason)
            raise
        finally:
            self.wire.end(number)
            self.news.set()

    def hear(self, keys: Collection[UUID]) -> None:
        """Take in which rows have changed."""
        self.told.update(keys)
        if len(self.told) > MOST_TOLD:
            self.told.clear()
            self.read_at = None  # too many to ask for one by one: all are read
        self.news.set()

    def _end(self, task: asyncio.Task[None]) -> None:
        """Look at how something under way has ended."""
        self.under_way.discard(task)
        self.news.set()
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, DatabaseAway):
            self.away = error
        else:
            log.error("account.call_failed", account=self.lease.key, exc_info=error)
