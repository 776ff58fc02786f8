"""Whoever waits for a row to change, however many: one registry per process, no session held, one reader for all.

A waiter is one future and a few words of memory. A key is looked at when somebody begins to wait for it, when its
change is heard of (lib/changes.py), and once a second as long as it is waited for, which is what makes it sure: what
is heard only makes it quick. Looks are taken one after another, many keys in each. Knows no table: it is handed the
reader.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar
from uuid import UUID

import structlog

from app.lib.db import DatabaseAway, in_transaction

log = structlog.get_logger()

Row = TypeVar("Row")

Read = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, Row]]]
Listen = Callable[[Callable[[Collection[UUID]], None]], None]

EVERY_SECONDS = 1.0
GATHER_SECONDS = 0.005  # between two looks: a change that is heard of meanwhile waits for so long at most
MOST_AT_ONCE = 1_000


@dataclass(slots=True, eq=False)
class _Waiter(Generic[Row]):
    """Somebody who waits for a key. `is_leaving` takes whatever comes of the next look, or what is there already."""

    is_over: Callable[[Row], bool]
    lasting: bool
    ended: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    row: Row | None = None
    was_read: bool = False
    was_missed: bool = False  # a look failed
    is_leaving: bool = False

    def see(self, row: Row | None) -> None:
        """Take in what a look found; a key without a row is nothing to wait for."""
        self.row, self.was_read = row, True
        try:
            if row is None or self.is_leaving or self.is_over(row):
                self.end()
        except Exception as error:  # noqa: BLE001 -- the waiter's own question failed: it is told, the others go on
            self.fail(error)

    def miss(self) -> None:
        """Take in that a look failed: the next may not, unless there is no time left for one."""
        self.was_missed = True
        if self.is_leaving:
            self.end()

    def leave(self) -> None:
        """End with what is known, or as soon as something is."""
        self.is_leaving = True
        if self.was_read or self.was_missed:
            self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


class Waiters(Generic[Row]):
    """The waiters of this process. `listen` is called once, with what to call when rows have changed."""

    def __init__(self, listen: Listen, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._listen = listen
        self._every_seconds = every_seconds
        self._waiting: dict[UUID, list[_Waiter[Row]]] = {}
        self._to_read: dict[UUID, None] = {}
        self._asked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._listens = False
        self._is_ending = False
        self._is_blind = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def is_ending(self) -> bool:
        """Tell whether waits that are not lasting end at once now: a loop around one had better end, too."""
        return self._is_ending

    async def wait(
        self,
        key: UUID,
        is_over: Callable[[Row], bool],
        *,
        read: Read[Row],
        timeout_seconds: float,
        lasting: bool = False,
    ) -> Row | None:
        """Wait until a row is as wanted; return it, or as it was last seen when time is up. None: there is no row.

        All callers pass the same reader; it is given many keys and leaves out those without a row. `lasting` waits
        also go on while the process is ending. Time that is up before the first look still gets that look.

        Raises:
            DatabaseAway: the row could not be read even once.
            RuntimeError: a session is lent here, which would be held for as long as the wait.
            Exception: whatever else the reader or `is_over` raised.
        """
        if in_transaction():
            raise RuntimeError("nobody waits with a transaction open")
        waiter = _Waiter(is_over, lasting, is_leaving=self._is_ending and not lasting)
        self._waiting.setdefault(key, []).append(waiter)
        self._ask((key,))
        self._open_eyes(read)
        time_up = asyncio.get_running_loop().call_later(timeout_seconds, waiter.leave)
        try:
            await waiter.ended
        finally:
            time_up.cancel()
            self._forget(key, waiter)
        if not waiter.was_read:
            raise DatabaseAway("no look succeeded")
        return waiter.row

    def hear(self, keys: Collection[UUID]) -> None:
        """Look soon at those of the keys that are waited for: they have changed."""
        self._ask(key for key in keys if key in self._waiting)

    def end_all(self) -> None:
        """End every wait that is not lasting, with the present state; those that begin later end after one look."""
        self._is_ending = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.lasting:
                    waiter.leave()

    async def close(self) -> None:
        """End every wait, and look no more."""
        self._is_ending = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.end()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def _ask(self, keys: Iterable[UUID]) -> None:
        for key in keys:
            self._to_read[key] = None
            self._asked.set()

    def _forget(self, key: UUID, waiter: _Waiter[Row]) -> None:
        self._waiting[key].remove(waiter)
        if not self._waiting[key]:
            del self._waiting[key]
            self._to_read.pop(key, None)

    def _open_eyes(self, read: Read[Row]) -> None:
        """See to it that somebody looks and listens while there are waiters."""
        if not self._listens:
            self._listens = True
            self._listen(self.hear)
        if self._looking is None:
            # it outlives the request that began it, whose context is none of its business
            self._looking = asyncio.create_task(self._look_around(read), context=contextvars.Context())

    async def _look_around(self, read: Read[Row]) -> None:
        """Look at what was asked for, and from time to time at everything, until nobody waits."""
        now = asyncio.get_running_loop().time
        all_at = now() + self._every_seconds
        try:
            while self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(all_at):
                        await self._asked.wait()
                is_time_for_all = now() >= all_at
                if is_time_for_all:
                    self._ask(self._waiting)
                await self._look(read)
                if is_time_for_all:
                    all_at = now() + self._every_seconds
                await asyncio.sleep(GATHER_SECONDS)
        finally:
            self._looking = None

    async def _look(self, read: Read[Row]) -> None:
        """Read the keys that have gathered, as many as one query takes, and show each waiter its row."""
        keys = list(islice(self._to_read, MOST_AT_ONCE))
        for key in keys:
            del self._to_read[key]
        if not self._to_read:
            self._asked.clear()
        # who comes while the query is under way has asked for the next one, and may need a later row
        lookers = [(key, waiter) for key in keys for waiter in self._waiting.get(key, ())]
        if not lookers:
            return
        try:
            rows = await read(keys)
        except DatabaseAway:
            self._miss(lookers)
        except Exception as error:  # noqa: BLE001 -- the waiters' to handle, each on its own
            for _, waiter in lookers:
                waiter.fail(error)
        else:
            self._is_blind = False
            for key, waiter in lookers:
                waiter.see(rows.get(key))

    def _miss(self, lookers: Iterable[tuple[UUID, _Waiter[Row]]]) -> None:
        """Give a look up; the next one, at everything, comes within a second."""
        if not self._is_blind:
            log.warning("waiters.blind", waiting=len(self))
        self._is_blind = True
        self._to_read.clear()
        self._asked.clear()
        for _, waiter in lookers:
            waiter.miss()
