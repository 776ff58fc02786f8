"""All that we ask of Redis: wake-ups of loops, and answers that may be one second old. Nothing that we cannot lose.

Redis away (not configured, down, or slow): loops of other processes find due work at their next idle tick; answers are
kept in this process alone, for the same second. After a failure Redis is left alone for a second, so that its absence
costs one short wait a second, not one per request.

Keys: `dashgate:status:<key>` life 1 s, owner `put_status`. Channels: `dashgate:wake:<kind>`, one per kind of work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import structlog

from app.lib.ttl import TtlCache

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = structlog.get_logger()

CALL_SECONDS = 0.25
LEFT_ALONE_SECONDS = 1.0
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

    def __init__(self, url: str | None) -> None:
        self._redis: Redis | None = None
        self._away: tuple[type[Exception], ...] = (OSError, TimeoutError)
        if url is not None:
            # eight megabytes that a process without Redis need not hold
            import redis.asyncio  # noqa: PLC0415

            self._away = (redis.RedisError, *self._away)
            self._redis = redis.asyncio.Redis.from_url(
                url, socket_timeout=CALL_SECONDS, socket_connect_timeout=CALL_SECONDS
            )
        self._listeners: list[Mapping[str, Wakeable]] = []
        self._to_wake: set[str] = set()
        self._has_wakes = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._left_alone_until = 0.0
        self._statuses: TtlCache[str, bytes] = TtlCache(
            life_seconds=STATUS_LIFE_MS / 1000, most=MOST_STATUSES, monotonic=time.monotonic
        )

    async def __aenter__(self) -> Self:
        if self._redis is not None:
            self._sender = asyncio.create_task(self._send_wakes(self._redis))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    def wake(self, kind: str) -> None:
        """Say that work of a kind may be due; call it after the commit. Costs the caller nothing.

        Redis away: only loops of this process hear it.
        """
        self._wake_here(kind)
        if self._redis is not None:
            self._to_wake.add(kind)
            self._has_wakes.set()

    async def listen(self, wakes: Mapping[str, Wakeable], stop: asyncio.Event) -> None:
        """Set the event of each kind that is woken, here or elsewhere, until `stop`.

        Redis away: hears this process only, and tries to subscribe again every second.
        """
        self._listeners.append(wakes)
        try:
            while not stop.is_set():
                if self._redis is None:
                    await stop.wait()
                    continue
                with contextlib.suppress(*self._away):
                    await self._hear(self._redis, wakes, stop=stop)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), LEFT_ALONE_SECONDS)
        finally:
            self._listeners.remove(wakes)

    async def find_status(self, key: str) -> bytes | None:
        """Return an answer at most one second old, or None. Redis away: what this process kept."""
        if not self._may_ask() or self._redis is None:
            return self._statuses.find_fresh(key)
        try:
            found = await self._redis.get(_STATUS + key)
        except self._away as error:
            self._leave_alone(error)
            return None
        return found if isinstance(found, bytes) else None

    async def put_status(self, key: str, answer: bytes) -> None:
        """Keep an answer for one second. Redis away: in this process."""
        if not self._may_ask() or self._redis is None:
            self._statuses.put(key, answer)
            return
        try:
            await self._redis.set(_STATUS + key, answer, px=STATUS_LIFE_MS)
        except self._away as error:
            self._leave_alone(error)

    async def check(self) -> str:
        """Make one real call, for `doctor`. Redis away: raises what redis-py raised."""
        if self._redis is None:
            return "not configured"
        await self._redis.ping()
        return "answers PING"

    def _wake_here(self, kind: str) -> None:
        for wakes in self._listeners:
            if kind in wakes:
                wakes[kind].set()

    async def _send_wakes(self, redis: Redis) -> None:
        """Publish the kinds to wake, however many asked meanwhile, in one call each."""
        while True:
            await self._has_wakes.wait()
            self._has_wakes.clear()
            kinds, self._to_wake = self._to_wake, set()
            for kind in kinds:
                if not self._may_ask():
                    break
                try:
                    await redis.publish(_CHANNEL + kind, b"")
                except self._away as error:
                    self._leave_alone(error)

    async def _hear(self, redis: Redis, wakes: Mapping[str, Wakeable], *, stop: asyncio.Event) -> None:
        async with redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(*(_CHANNEL + kind for kind in wakes))
            for event in wakes.values():
                event.set()  # what was said while we were not listening
            while not stop.is_set():
                heard = await channel.get_message(timeout=CALL_SECONDS)
                if heard is not None:
                    kind = bytes(heard["channel"]).decode().removeprefix(_CHANNEL)
                    wakes[kind].set()

    def _may_ask(self) -> bool:
        return time.monotonic() >= self._left_alone_until

    def _leave_alone(self, error: BaseException) -> None:
        self._left_alone_until = time.monotonic() + LEFT_ALONE_SECONDS
        log.warning("redis.missed", error=type(error).__name__)
