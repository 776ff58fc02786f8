"""Which rows have changed, told among processes: by Redis where it is configured, by Postgres' NOTIFY where not.

A hint and never the truth: whoever waits for a row looks by itself, too, if more seldom (lib/waiters.py). So telling
is never part of a transaction, and nothing is told twice. What is told within a moment goes out as one message.

Channels: `dashgate:changed` (Redis) and `dashgate_changed` (Postgres), both with `<teller>:<key>,<key>,…`. A pooler in
front of Postgres that lends a connection per transaction lets nothing through: then the look every second is all.
"""

import asyncio
import contextlib
import contextvars
import secrets
from collections.abc import Callable, Collection, Coroutine
from itertools import islice
from typing import Any
from uuid import UUID

import structlog

from app.lib.db import Database, DatabaseAway
from app.lib.redis import RedisAway, RedisDoor

log = structlog.get_logger()

Heard = Callable[[Collection[UUID]], None]

REDIS_CHANNEL = "dashgate:changed"
POSTGRES_CHANNEL = "dashgate_changed"
MOST_KEYS = 200  # in one message: Postgres takes 8,000 bytes
MOST_UNTOLD = 20_000  # waiting to be told; more would be old news
GATHER_SECONDS = 0.01  # between two messages: at most a hundred a second, since Postgres commits them one by one


class Changes:
    """Tells what changed here, and hears what changed elsewhere once somebody wants to know."""

    def __init__(self, redis: RedisDoor, db: Database) -> None:
        self._redis = redis
        self._db = db
        self._teller = secrets.token_hex(4)
        self._listeners: list[Heard] = []
        self._untold: dict[UUID, None] = {}
        self._has_news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begin to tell; hearing begins with the first listener."""
        self._start(self._tell_others())

    async def close(self) -> None:
        """Stop telling and hearing; news that nobody was told yet is left to their next look."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def tell(self, key: UUID) -> None:
        """Say that a row has changed, here at once and elsewhere soon."""
        for heard in self._listeners:
            heard((key,))
        if len(self._untold) < MOST_UNTOLD:
            self._untold[key] = None
            self._has_news.set()

    def hear(self, heard: Heard) -> None:
        """Call `heard` for every change from now on; the first time, begin to listen to other processes."""
        if not self._listeners:
            self._start(self._hear_others())
        self._listeners.append(heard)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin what outlives the request that began it, whose context is none of its business."""
        task = asyncio.create_task(work, context=contextvars.Context())
        task.add_done_callback(_say_if_lost)
        self._tasks.append(task)

    async def _tell_others(self) -> None:
        while True:
            await self._has_news.wait()
            keys = list(islice(self._untold, MOST_KEYS))
            for key in keys:
                del self._untold[key]
            if not self._untold:
                self._has_news.clear()
            message = f"{self._teller}:{','.join(key.hex for key in keys)}"
            with contextlib.suppress(RedisAway, DatabaseAway):  # whoever waits looks every second
                await self._say(message)
            await asyncio.sleep(GATHER_SECONDS)

    async def _say(self, message: str) -> None:
        if self._redis.is_configured:
            await self._redis.ask(lambda redis: redis.publish(REDIS_CHANNEL, message))
        else:
            await self._db.notify(POSTGRES_CHANNEL, message)

    async def _hear_others(self) -> None:
        if self._redis.is_configured:
            await self._redis.hear([REDIS_CHANNEL], self._pass_on_bytes, began=_nothing)
        else:
            await self._db.listen(POSTGRES_CHANNEL, self._pass_on)

    def _pass_on_bytes(self, _: str, message: bytes) -> None:
        self._pass_on(message.decode("ascii", "replace"))

    def _pass_on(self, message: str) -> None:
        """Pass on what another process said; what we said ourselves was heard when we said it."""
        teller, _, told = message.partition(":")
        if teller == self._teller:
            return
        try:
            keys = [UUID(hex=key) for key in told.split(",")]
        except ValueError:  # a stranger on the channel, or another version of us
            return
        for heard in self._listeners:
            heard(keys)


def _say_if_lost(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("changes.lost", error=type(error).__name__, exc_info=error)


def _nothing() -> None:
    """Do nothing about what was said before we listened: it is found at the next look."""
