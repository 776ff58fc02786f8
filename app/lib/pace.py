"""Calls a second inside one process: evenly spaced, burst one. Knows nothing of what is called."""

import asyncio
from collections.abc import Callable


class Pace:
    """Hands out slots 1/rate seconds apart to whoever asks, first come first served."""

    def __init__(self, calls_a_second: float, *, monotonic: Callable[[], float]) -> None:
        self._spacing_seconds = 1 / calls_a_second
        self._monotonic = monotonic
        self._next_at = 0.0

    async def take(self) -> None:
        """Wait for the next free slot. A slot that was waited for and cancelled is lost: slower, never faster."""
        now = self._monotonic()
        slot = max(now, self._next_at)
        self._next_at = slot + self._spacing_seconds
        if slot > now:
            await asyncio.sleep(slot - now)

    def hold(self, seconds: float) -> None:
        """Hand out nothing for the next seconds: the other side asked for less."""
        self._next_at = max(self._next_at, self._monotonic() + seconds)
