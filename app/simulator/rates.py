"""Counting calls per second over a sliding window. Knows no accounts: the caller chooses the key."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

WINDOW_SECONDS = 1.0


class RateWindows:
    """One sliding second per key. Refused calls do not count, so a client that backs off gets through at once."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, deque[float]] = {}

    def admit(self, key: Hashable, *, limit: int, now: float) -> bool:
        """Count a call at `now` and return True, or return False when `limit` calls are in the second before it."""
        calls = self._calls.setdefault(key, deque())
        while calls and calls[0] <= now - WINDOW_SECONDS:
            calls.popleft()
        if len(calls) >= limit:
            return False
        calls.append(now)
        return True
