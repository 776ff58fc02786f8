"""Outlet: what stands between the pump that reads the upstream and the reader that may be slow, or gone.

Holds a bounded number of bytes: a slow reader slows the upstream down. Knows no event and no task.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

MOST_BYTES = 256 * 1024
STALL_SECONDS = 60.0  # a reader that takes nothing for so long is gone
HEARTBEAT_SECONDS = 15.0
HEARTBEAT = b":still here\n\n"


class Outlet:
    """A pipe for bytes, from one pump to one reader."""

    def __init__(self, *, most_bytes: int = MOST_BYTES, stall_seconds: float = STALL_SECONDS) -> None:
        self._most_bytes = most_bytes
        self._stall_seconds = stall_seconds
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_read = True
        self._is_done = False
        self._filled, self._drained = asyncio.Event(), asyncio.Event()

    @property
    def held_bytes(self) -> int:
        """How much waits for the reader now."""
        return self._held_bytes

    async def put(self, chunk: bytes) -> None:
        """Hand a chunk over, waiting while too much waits already. A reader that is gone is not waited for."""
        while self._is_read and self._held_bytes and self._held_bytes + len(chunk) > self._most_bytes:
            self._drained.clear()
            try:
                async with asyncio.timeout(self._stall_seconds):
                    await self._drained.wait()
            except TimeoutError:
                self.leave()
        if self._is_read:
            self._chunks.append(chunk)
            self._held_bytes += len(chunk)
            self._filled.set()

    def end(self) -> None:
        """Say that nothing more comes."""
        self._is_done = True
        self._filled.set()

    def leave(self) -> None:
        """The reader is gone: what comes is dropped."""
        self._is_read = False
        self._chunks.clear()
        self._held_bytes = 0
        self._drained.set()
        self.end()

    async def read(self) -> AsyncIterator[bytes]:
        """Yield what was put, and a heartbeat where nothing comes for long."""
        try:
            while self._chunks or not self._is_done:
                if not self._chunks:
                    self._filled.clear()
                    try:
                        async with asyncio.timeout(HEARTBEAT_SECONDS):
                            await self._filled.wait()
                    except TimeoutError:
                        yield HEARTBEAT
                    continue
                chunk = self._chunks.popleft()
                self._held_bytes -= len(chunk)
                self._drained.set()
                yield chunk
        finally:
            self.leave()
