"""Lines to stand in: of all who want the same thing, only the first asks for it. In this process, in order of arrival.

Knows nothing of what is asked for.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lines(Generic[K]):
    """The lines of this process, one per key; a line that nobody stands in is forgotten."""

    def __init__(self) -> None:
        self._locks: dict[K, asyncio.Lock] = {}
        self._standing: Counter[K] = Counter()

    def __len__(self) -> int:
        return len(self._locks)

    @contextlib.asynccontextmanager
    async def first_in(self, key: K, *, timeout_seconds: float) -> AsyncIterator[None]:
        """Wait to be the first in a line, and be it for as long as the block lasts.

        Raises:
            TimeoutError: others stood in front for so long.
        """
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._standing[key] += 1
        try:
            async with asyncio.timeout(timeout_seconds):
                await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            self._standing[key] -= 1
            if not self._standing[key]:
                del self._locks[key], self._standing[key]
