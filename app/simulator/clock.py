"""The simulator's own time: real time, scaled and moved. The only place here that reads a real clock."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable


class SimulatorClock:
    """Seconds since the epoch, as simulated. It never runs backwards."""

    def __init__(
        self,
        scale: float = 1.0,
        offset_seconds: float = 0.0,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._scale = _not_negative("scale", scale)
        self._anchor_real = monotonic()
        self._anchor_simulated = epoch() + offset_seconds
        self._moved = asyncio.Event()

    @property
    def scale(self) -> float:
        """Simulated seconds per real second; 0 means the clock stands still."""
        return self._scale

    def now(self) -> float:
        """Return the simulated instant in epoch seconds."""
        return self._anchor_simulated + (self._monotonic() - self._anchor_real) * self._scale

    def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`. Raises `ValueError` for a negative number."""
        self._anchor_simulated += _not_negative("seconds", seconds)
        self._tell()

    def set_scale(self, scale: float) -> None:
        """Run `scale` times as fast from now on. Raises `ValueError` for a negative number."""
        _not_negative("scale", scale)
        now = self.now()
        self._anchor_real, self._anchor_simulated, self._scale = self._monotonic(), now, scale
        self._tell()

    async def reach(self, instant: float) -> None:
        """Wait until a simulated instant has come, by itself or because somebody moves the clock."""
        while (missing := instant - self.now()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), missing / self._scale if self._scale else None)

    def _tell(self) -> None:
        """Wake whoever waits; whoever comes later waits for the next move."""
        self._moved.set()
        self._moved = asyncio.Event()


def real_monotonic() -> float:
    """Return the machine's monotonic seconds, which other processes of the same machine share."""
    return time.monotonic()


def _not_negative(name: str, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be 0 or more")
    return value
