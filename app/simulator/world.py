"""Everything one simulator remembers, and the truth about it: tasks, files, limits, faults, journal, bill.

Knows no HTTP. Whoever looks at tasks goes through here, so that what is due has happened first. All in memory.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

from app.simulator import catalogue
from app.simulator.clock import SimulatorClock
from app.simulator.faults import Fault, FaultBook, Operation, roll
from app.simulator.journal import Journal
from app.simulator.links import make_link
from app.simulator.options import SimulatorKey, SimulatorOptions
from app.simulator.rates import RateWindows
from app.simulator.task_queue import TaskQueue
from app.simulator.tasks import Order, Picture, Status, Task

_Line = tuple[str, str, str]  # main account, region, model


class World:
    """The state of one simulator. Tests read it as the truth; only the simulator's own parts change it."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.journal = Journal()
        self.faults = FaultBook()
        self.reset()

    def reset(self) -> None:
        """Go back to the start: no tasks, no faults, no journal entries, the options' clock, limits and durations."""
        self.clock = SimulatorClock(self.options.clock_scale, self.options.clock_offset_seconds)
        self.limits = self.options.limits
        self.rates = RateWindows()
        self.dice = random.Random(self.options.seed)
        self.duration_seconds = self.options.duration_seconds
        self.next_durations: deque[tuple[float, float]] = deque()
        self.journal.clear()
        self.faults.clear()
        self._tasks: dict[str, Task] = {}
        self._lines: dict[_Line, TaskQueue] = {}
        self._files: dict[str, Picture] = {}

    # What tests, the demo and the control port ask.

    @property
    def tasks(self) -> Sequence[Task]:
        """Every task ever made, also those that the upstream no longer shows; oldest first."""
        self._settle()
        return tuple(self._tasks.values())

    def bill(self) -> dict[str, dict[str, int]]:
        """Count the pictures made for SUCCEEDED tasks, by region and model."""
        bill: dict[str, Counter[str]] = {region: Counter() for region in self.options.regions}
        for task in self.tasks:
            if task.billed_images:
                bill[task.region][task.model] += task.billed_images
        return {region: dict(models) for region, models in bill.items()}

    def set_durations(self, low: float, high: float, *, next_only: bool = False) -> None:
        """Let tasks created from now on, or only the next one, take between `low` and `high` seconds."""
        if not 0 <= low <= high:
            raise ValueError("durations must be 0 or more, the lower first")
        if next_only:
            self.next_durations.append((low, high))
        else:
            self.duration_seconds = (low, high)

    def set_limits(self, **changes: int) -> None:
        """Change some of the `Limits` from now on. Raises: `ValueError` for an unknown limit or a senseless number."""
        try:
            limits = replace(self.limits, **changes)
        except TypeError as problem:
            raise ValueError(str(problem)) from problem
        self._settle()  # what was due until now happened under the old limits
        self.limits = limits

    # What the upstream's own API does.

    def add_task(self, key: SimulatorKey, order: Order, *, request_id: str) -> Task:
        """Accept an order: from here on there is a task, and it will end."""
        self._settle()
        low, high = self.next_durations.popleft() if self.next_durations else self.duration_seconds
        task = Task(
            id=str(uuid4()),
            request_id=request_id,
            key=key,
            order=order,
            created_at=self.clock.now(),
            duration_seconds=self.dice.uniform(low, high),
            failure=catalogue.planned_failure(order.prompt),
        )
        self._tasks[task.id] = task
        self._lines.setdefault((key.main_account, key.region, order.model), TaskQueue()).add(task)
        return task

    def find_task(self, key: SimulatorKey, task_id: str) -> Task | None:
        """Return a task that this key may see: same main account and region, and still kept."""
        self._settle()
        task = self._tasks.get(task_id)
        return task if task is not None and self._shows(key, task) else None

    def visible_tasks(self, key: SimulatorKey) -> list[Task]:
        """Return the tasks that this key may see, newest first."""
        self._settle()
        return [task for task in reversed(self._tasks.values()) if self._shows(key, task)]

    def find_file(self, path: str) -> Picture | None:
        """Return the file behind the path of a link."""
        self._settle()
        return self._files.get(path)

    def next_fault(self, operation: Operation, region: str) -> Fault | None:
        """Return what must go wrong with this request: scripted faults first, then chance."""
        return self.faults.take(operation, region) or roll(self.options.hostility, operation, dice=self.dice)

    def _shows(self, key: SimulatorKey, task: Task) -> bool:
        """The documentation leaves open whether the 24 h begin with creation or end: the stricter reading is played."""
        kept = self.clock.now() < task.created_at + self.options.retention_seconds
        return kept and (task.key.main_account, task.region) == (key.main_account, key.region)

    def _settle(self) -> None:
        now = self.clock.now()
        for line in self._lines.values():
            for task in line.settle(now, running_limit=self.limits.running_tasks):
                if task.status is Status.SUCCEEDED:
                    self._publish(task)

    def _publish(self, task: Task) -> None:
        """Make the files of a task that has just succeeded; from here on they are billed."""
        made_at = task.ended_at or task.created_at  # it has ended; only its type does not know
        expires = int(made_at + self.options.link_seconds)
        pictures = []
        for index in range(task.order.image_count):
            path, query = make_link(task.region, task.id, index=index, made_at=made_at, expires=expires)
            pictures.append(Picture(task.id, index, task.order, path, query))
            self._files[path] = pictures[-1]
        task.pictures = tuple(pictures)
