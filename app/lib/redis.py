"""The one door to Redis: its client, one word for all the ways in which it is away, and a second of peace after each.

Away is not configured, down, or slow. After a failure Redis is left alone for a second, so that its absence costs one
short wait a second, not one per request. Knows no key and no channel; who uses it says what happens without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import structlog

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = structlog.get_logger()

T = TypeVar("T")

CALL_SECONDS = 0.25
LEFT_ALONE_SECONDS = 1.0


class RedisAway(Exception):
    """Redis is not configured, did not answer, or is left alone after it did not."""


class RedisDoor:
    """A client that may always be away; `None` for a URL is the same as away for ever."""

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
        self._left_alone_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def is_configured(self) -> bool:
        """Tell whether there is a Redis to ask at all."""
        return self._redis is not None

    def may_ask(self) -> bool:
        """Tell whether it is worth asking now: configured, and not left alone."""
        return self._redis is not None and time.monotonic() >= self._left_alone_until

    async def ask(self, call: Callable[[Redis], Awaitable[T]]) -> T:
        """Make one call, bounded in time.

        Raises:
            RedisAway: it was not asked or did not answer; whether the call took effect is unknown.
        """
        if self._redis is None or not self.may_ask():
            raise RedisAway
        try:
            return await call(self._redis)
        except self._away as error:
            self._left_alone_until = time.monotonic() + LEFT_ALONE_SECONDS
            log.warning("redis.missed", error=type(error).__name__)
            raise RedisAway from error

    async def hear(
        self, channels: Sequence[str], heard: Callable[[str, bytes], None], *, began: Callable[[], None]
    ) -> None:
        """Pass on what is said on channels, until cancelled; `began` is called when hearing begins, each time anew.

        Redis away: tries to subscribe again every second; what was said meanwhile is never heard. Not configured:
        returns at once.
        """
        while self._redis is not None:
            with contextlib.suppress(*self._away):
                await _hear(self._redis, channels, heard=heard, began=began)
            await asyncio.sleep(LEFT_ALONE_SECONDS)

    async def check(self) -> str:
        """Make one real call, for `doctor`. Redis away: raises what redis-py raised."""
        if self._redis is None:
            return "not configured"
        await self._redis.ping()
        return "answers PING"


async def _hear(
    redis: Redis, channels: Sequence[str], *, heard: Callable[[str, bytes], None], began: Callable[[], None]
) -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(*channels)
        began()
        while True:
            said = await subscription.get_message(timeout=CALL_SECONDS)
            if said is not None:
                heard(bytes(said["channel"]).decode(), bytes(said["data"]))
