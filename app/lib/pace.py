"""Calls a second inside one process, and how many may be on the wire. Knows nothing of what is called.

A pace hands out slots evenly spaced, one at a time. A caller that always has something to call and comes late (a
busy process, a full wire) may make up for it, a little closer together, but never beyond the rate in any one second;
a caller that had nothing to call may not.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf

WINDOW_SECONDS = 1.0
CLOSEST = 0.75  # of the usual spacing: how close together missed slots are made up for
MOST_BEHIND_SECONDS = 0.5  # what a stall may leave to be made up for
SLOW_SECONDS = 1.0  # an answer that takes longer than this is slow
SPARE_ON_WIRE = 2  # beyond what the pace needs: what a link that stalls can let loose at once
ANSWERS_REMEMBERED = 20


class Pace:
    """Hands out slots to one caller: `reach` waits for the next, `spend` takes it. Or both at once: `take`."""

    def __init__(self, calls_a_second: float, *, monotonic: Callable[[], float]) -> None:
        self._calls_a_second = calls_a_second
        self._monotonic = monotonic
        self._reached = 0.0  # waiting is time passed, even by a clock that stands still
        self._next_at = 0.0
        self._held_until = 0.0
        self._slow_until = 0.0
        self._is_resting = True
        self._spent: deque[float] = deque()  # the slots of the last second

    async def take(self) -> None:
        """Wait for the next slot and take it."""
        while self.free_in() > 0:
            await self.reach()
        self.spend()

    async def reach(self, *, most_seconds: float = 1.0) -> None:
        """Wait until a slot is free, at most so long."""
        before, wait_seconds = self._now(), min(self.free_in(), most_seconds)
        if wait_seconds > 0:
            await asyncio.sleep(wait_seconds)
            self._reached = max(self._reached, before + wait_seconds)

    def free_in(self) -> float:
        """Return the seconds until the next slot; 0: it is free."""
        rate, now = self._rate(), self._now()
        slot = max(self._next_at, self._held_until)
        if self._spent:
            slot = max(slot, self._spent[-1] + CLOSEST / rate)
        most = max(1, int(rate * WINDOW_SECONDS))
        if len(self._spent) >= most:
            slot = max(slot, self._spent[-most] + WINDOW_SECONDS)
        return max(0.0, slot - now)

    def spend(self) -> None:
        """Take the slot that is free now."""
        now = self._now()
        begins = now if self._is_resting else max(self._next_at, now - MOST_BEHIND_SECONDS)
        self._next_at = begins + 1 / self._rate()
        self._is_resting = False
        self._spent.append(now)
        while self._spent[0] <= now - WINDOW_SECONDS:
            self._spent.popleft()

    def rest(self) -> None:
        """Say that there is nothing to call: the slots that go by now are not made up for."""
        self._is_resting = True

    def hold(self, seconds: float) -> None:
        """Hand out nothing for the next seconds: the other side asked for less."""
        self._held_until = max(self._held_until, self._now() + seconds)
        self._next_at = max(self._next_at, self._held_until)

    def halve(self, seconds: float) -> None:
        """Go at half the rate for the next seconds."""
        self._slow_until = max(self._slow_until, self._now() + seconds)

    def _rate(self) -> float:
        return self._calls_a_second / (2 if self._now() < self._slow_until else 1)

    def _now(self) -> float:
        return max(self._monotonic(), self._reached)


class Wire:
    """Counts calls on the wire, and how many the other side may have received within a second.

    While answers take over a second, two are the most on the wire; else what the pace needs, and two. A link that
    stalls lets loose at once what it held back: so a call that was answered later than the quickest counts as received
    late, and one that was not answered as not received yet. Two more than the rate may be, in any one second.
    """

    def __init__(self, calls_a_second: float, *, monotonic: Callable[[], float]) -> None:
        self._calls_a_second = calls_a_second
        self._monotonic = monotonic
        self._since: dict[int, float] = {}
        self._seconds: deque[float] = deque(maxlen=ANSWERS_REMEMBERED)
        self._received: deque[float] = deque()  # by when at the latest, of the last second
        self._number = 0

    def free_in(self) -> float:
        """Return the seconds until one more call may leave; 0: now; infinite: when one has come back."""
        if len(self._since) >= self._most():
            return inf
        now, most = self._monotonic(), int(self._calls_a_second) + SPARE_ON_WIRE
        while self._received and self._received[0] <= now - WINDOW_SECONDS:
            self._received.popleft()
        too_many = len(self._since) + len(self._received) + 1 - most
        return max(0.0, self._received[too_many - 1] + WINDOW_SECONDS - now) if too_many > 0 else 0.0

    def begin(self) -> int:
        """Count a call that leaves; its number is what `end` takes."""
        self._number += 1
        self._since[self._number] = self._monotonic()
        return self._number

    def end(self, number: int) -> None:
        """Count a call that came back, or was given up."""
        now = self._monotonic()
        self._seconds.append(now - self._since.pop(number))
        self._received.append(max(now - self._quickest(), self._received[-1] if self._received else 0.0))

    def _most(self) -> int:
        oldest = min(self._since.values(), default=None)
        waits = oldest is not None and self._monotonic() - oldest > SLOW_SECONDS
        if waits or (self._seconds and self._seconds[-1] > SLOW_SECONDS):
            return SPARE_ON_WIRE
        return SPARE_ON_WIRE + int(self._calls_a_second * self._quickest())

    def _quickest(self) -> float:
        """Return what the link takes: the quickest of the last answers, as a stall must not make room for more."""
        return min(self._seconds, default=0.0)
