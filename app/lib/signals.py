"""What processes tell each other, and answers that may be one second old. Nothing that we cannot lose.

Two kinds of telling: `wake` says that work of a kind may be due, `tell` that a row has changed that somebody may be
waiting for (lib/changes.py). Redis away (lib/redis.py): loops of other processes find due work at their next idle
tick; answers are kept in this process alone, for the same second.

Keys: `dashgate:status:<key>` life 1 s, owner `put_status`. Channels: `dashgate:wake:<kind>`, one per kind of work.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Protocol, Self
from uuid import UUID

from app.lib.changes import Changes
from app.lib.db import Database
from app.lib.redis import RedisAway, RedisDoor
from app.lib.ttl import TtlCache

STATUS_LIFE_MS = 1_000
MOST_STATUSES = 10_000
_CHANNEL = "dashgate:wake:"
_STATUS = "dashgate:status:"


class Wakeable(Protocol):
    """An asyncio.Event, or several as one."""

    def set(self) -> None:
        """Wake whoever waits."""
        ...


class Signals:
    """Wake-ups within this process always, between processes where Redis is configured."""

    def __init__(self, redis: RedisDoor, db: Database) -> None:
        self._redis = redis
        self._changes = Changes(redis, db)
        self._listeners: list[Mapping[str, Wakeable]] = []
        self._to_wake: set[str] = set()
        self._has_wakes = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._statuses: TtlCache[str, bytes] = TtlCache(
            life_seconds=STATUS_LIFE_MS / 1000, most=MOST_STATUSES, monotonic=time.monotonic
        )

    async def __aenter__(self) -> Self:
        self._changes.open()
        if self._redis.is_configured:
            self._sender = asyncio.create_task(self._send_wakes())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._changes.close()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    def tell(self, key: UUID) -> None:
        """Say that a row has changed; call it after the commit. Costs the caller nothing.

        Redis away, or without it Postgres: other processes see it at their next look, within a second.
        """
        self._changes.tell(key)

    def hear_changes(self, heard: Callable[[Collection[UUID]], None]) -> None:
        """Call `heard` with the keys of rows that changed, here or elsewhere, from now on until closed."""
        self._changes.hear(heard)

    def wake(self, kind: str) -> None:
        """Say that work of a kind may be due; call it after the commit. Costs the caller nothing.

        Redis away: only loops of this process hear it.
        """
        self._wake_here(kind)
        if self._redis.is_configured:
            self._to_wake.add(kind)
            self._has_wakes.set()

    async def listen(self, wakes: Mapping[str, Wakeable], stop: asyncio.Event) -> None:
        """Set the event of each kind that is woken, here or elsewhere, until `stop`.

        Redis away: hears this process only, and tries to subscribe again every second.
        """
        self._listeners.append(wakes)
        try:
            async with asyncio.TaskGroup() as group:
                hearing = group.create_task(self._hear_wakes(wakes))
                await stop.wait()
                hearing.cancel()
        finally:
            self._listeners.remove(wakes)

    async def find_status(self, key: str) -> bytes | None:
        """Return an answer at most one second old, or None. Redis away: what this process kept."""
        if not self._redis.may_ask():
            return self._statuses.find_fresh(key)
        try:
            found = await self._redis.ask(lambda redis: redis.get(_STATUS + key))
        except RedisAway:
            return None
        return found if isinstance(found, bytes) else None

    async def put_status(self, key: str, answer: bytes) -> None:
        """Keep an answer for one second. Redis away: in this process."""
        if not self._redis.may_ask():
            self._statuses.put(key, answer)
            return
        with contextlib.suppress(RedisAway):
            await self._redis.ask(lambda redis: redis.set(_STATUS + key, answer, px=STATUS_LIFE_MS))

    async def check(self) -> str:
        """Make one real call, for `doctor`. Redis away: raises what redis-py raised."""
        return await self._redis.check()

    def _wake_here(self, kind: str) -> None:
        for wakes in self._listeners:
            if kind in wakes:
                wakes[kind].set()

    async def _send_wakes(self) -> None:
        """Publish the kinds to wake, however many asked meanwhile, in one call each."""
        while True:
            await self._has_wakes.wait()
            self._has_wakes.clear()
            kinds, self._to_wake = self._to_wake, set()
            with contextlib.suppress(RedisAway):
                for kind in kinds:
                    await self._wake_elsewhere(kind)

    async def _wake_elsewhere(self, kind: str) -> None:
        await self._redis.ask(lambda redis: redis.publish(_CHANNEL + kind, b""))

    async def _hear_wakes(self, wakes: Mapping[str, Wakeable]) -> None:
        def began() -> None:
            for event in wakes.values():
                event.set()  # what was said while we were not listening

        def heard(channel: str, _: bytes) -> None:
            wakes[channel.removeprefix(_CHANNEL)].set()

        await self._redis.hear([_CHANNEL + kind for kind in wakes], heard, began=began)
