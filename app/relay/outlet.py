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

Waiting = asyncio.Future[bool]


class Outlet:
    """A pipe for bytes, from one pump to one reader."""

    def __init__(
        self,
        *,
        most_bytes: int = MOST_BYTES,
        stall_seconds: float = STALL_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._most_bytes = most_bytes
        self._stall_seconds = stall_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_read = True
        self._is_done = False
        self._has_given = False
        self._loop = asyncio.get_running_loop()
        self._filled: Waiting | None = None  # what the reader waits for; False: not yet, but a heartbeat is due
        self._taken: Waiting | None = None  # what the pump waits for
        self._beating: asyncio.TimerHandle | None = None
        self._silent_since = 0.0

    @property
    def held_bytes(self) -> int:
        """How much waits for the reader now, with what it is taking."""
        return self._held_bytes

    @property
    def has_given(self) -> bool:
        """Whether the reader has taken anything but heartbeats."""
        return self._has_given

    async def put(self, chunk: bytes) -> None:
        """Hand a chunk over, waiting while too much waits already. A reader that is gone is not waited for.

        A chunk that is larger than all that may wait passes alone.
        """
        while self._is_read and self._held_bytes and self._held_bytes + len(chunk) > self._most_bytes:
            await self._wait_for_reader()
        if self._is_read:
            self._chunks.append(chunk)
            self._held_bytes += len(chunk)
            _resolve(self._filled)

    def end(self) -> None:
        """Say that nothing more comes."""
        self._is_done = True
        _resolve(self._filled)

    async def emptied(self) -> None:
        """Wait until the reader has taken everything, or is gone."""
        while self._is_read and self._held_bytes:
            await self._wait_for_reader()

    def leave(self) -> None:
        """The reader is gone: what comes is dropped."""
        self._is_read = False
        self._chunks.clear()
        self._held_bytes = 0
        _resolve(self._taken)
        self.end()

    async def read(self) -> AsyncIterator[bytes]:
        """Yield what was put, and a heartbeat where nothing comes for long.

        A chunk is held until the next is asked for: before that nobody knows whether it has left the process.
        """
        self._silent_since = self._loop.time()
        self._beat()
        try:
            while True:
                if self._chunks:
                    chunk = self._chunks.popleft()
                    yield chunk
                    self._has_given = True
                    self._held_bytes = max(0, self._held_bytes - len(chunk))  # none are held for one that has left
                    self._silent_since = self._loop.time()
                    _resolve(self._taken)
                elif self._is_done:
                    return
                else:
                    self._filled = self._loop.create_future()
                    if not await self._filled:
                        yield HEARTBEAT
        finally:
            if self._beating is not None:
                self._beating.cancel()

    def _beat(self) -> None:
        """Wake a reader that has waited for long. One timer for the whole stream: one for every chunk costs more."""
        silent_seconds = self._loop.time() - self._silent_since
        if silent_seconds >= self._heartbeat_seconds:
            _resolve(self._filled, False)
            self._silent_since += silent_seconds
            silent_seconds = 0.0
        self._beating = self._loop.call_later(self._heartbeat_seconds - silent_seconds, self._beat)

    async def _wait_for_reader(self) -> None:
        """Wait until the reader takes something; one that takes nothing for long is gone."""
        self._taken = self._loop.create_future()
        await asyncio.wait({self._taken}, timeout=self._stall_seconds)
        if not self._taken.done():
            self.leave()


def _resolve(waiting: Waiting | None, happened: bool = True) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(happened)
