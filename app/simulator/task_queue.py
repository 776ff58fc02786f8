"""One waiting line per account, region and model: who runs, who waits, when each begins and ends.

Knows no wall clock and has no background job: whoever looks calls `settle(now)`, and everything that should have
happened by then happens, in order, at its own instant. That is what lets tests move time.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count

from app.simulator.tasks import Status, Task


class TaskQueue:
    """First come, first served, with at most `running_limit` tasks at a time."""

    def __init__(self) -> None:
        self._waiting: deque[Task] = deque()
        self._running: list[tuple[float, int, Task]] = []  # a heap by end; the number breaks ties in order of start
        self._starts = count()
        self._settled_at = 0.0

    def add(self, task: Task) -> None:
        """Put a new task at the end of the line, after `settle` for the same instant."""
        self._waiting.append(task)

    def withdraw(self, task: Task) -> bool:
        """Take a task out of the line, after `settle` for the same instant; False when it is not waiting (any more)."""
        if task not in self._waiting:
            return False
        self._waiting.remove(task)
        task.status = Status.CANCELED
        return True

    def settle(self, now: float, *, running_limit: int) -> list[Task]:
        """Let everything happen that was due by `now`; return the tasks that ended, in order.

        A task that waited starts at the very instant its predecessor ended, not when somebody looked.
        """
        ended: list[Task] = []
        self._start(at=self._settled_at, running_limit=running_limit)
        while self._running and self._running[0][0] <= now:
            ends_at, _, task = heapq.heappop(self._running)
            task.ended_at = ends_at
            task.status = Status.SUCCEEDED if task.failure is None else Status.FAILED
            ended.append(task)
            self._start(at=ends_at, running_limit=running_limit)
        self._settled_at = now
        return ended

    def _start(self, *, at: float, running_limit: int) -> None:
        while self._waiting and len(self._running) < running_limit:
            task = self._waiting.popleft()
            task.status = Status.RUNNING
            task.scheduled_at = max(task.created_at, at)
            heapq.heappush(self._running, (task.scheduled_at + task.duration_seconds, next(self._starts), task))
