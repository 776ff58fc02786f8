"""Everything one simulator remembers, and the truth about it: tasks, calls, files, limits, faults, journal, bill.

Knows no HTTP. Whoever looks at tasks goes through here, so that what is due has happened first. All in memory.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from uuid import uuid4

from app.simulator import catalogue
from app.simulator.calls import Call, CallState
from app.simulator.clock import SimulatorClock
from app.simulator.faults import Fault, FaultBook, Operation, roll
from app.simulator.journal import Journal
from app.simulator.links import make_link
from app.simulator.options import SimulatorKey, SimulatorOptions
from app.simulator.rates import RateWindows
from app.simulator.shapes import SHAPES
from app.simulator.task_queue import TaskQueue
from app.simulator.tasks import Failure, Order, Picture, Status, Task, Units
from app.simulator.uploads import TemporaryStore, Upload

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
        self.temporary_store = TemporaryStore()
        self._tasks: dict[str, Task] = {}
        self._calls: dict[str, Call] = {}
        self._running_calls: dict[str, Call] = {}
        self._lines: dict[_Line, TaskQueue] = {}
        self._files: dict[str, Picture] = {}

    # What tests, the demo and the control port ask.

    @property
    def tasks(self) -> Sequence[Task]:
        """Every task ever made, also those that the upstream no longer shows; oldest first."""
        self.settle()
        return tuple(self._tasks.values())

    @property
    def calls(self) -> Sequence[Call]:
        """Every synchronous call ever begun, oldest first; refused ones were never begun."""
        self.settle()
        return tuple(self._calls.values())

    @property
    def uploads(self) -> Sequence[Upload]:
        """Every file ever uploaded, also those that are gone; oldest first."""
        return self.temporary_store.uploads

    def fail_task(self, task_id: str, code: str, *, message: str = "") -> None:
        """Let a task that waits or runs end FAILED, at the instant at which it would have ended anyway.

        Raises: `LookupError` for an unknown task, `ValueError` for one that has ended.
        """
        task = next((task for task in self.tasks if task.id == task_id), None)
        if task is None:
            raise LookupError(f"the simulator has no task {task_id}")
        if task.status not in (Status.PENDING, Status.RUNNING):
            raise ValueError(f"the task is {task.status} already")
        task.failure = Failure(code, message)

    def bill(self) -> dict[str, dict[str, int]]:
        """Count the pictures made for SUCCEEDED tasks and for synchronous calls, by region and model."""
        return {
            region: {model: int(units["image"]) for model, units in models.items() if "image" in units}
            for region, models in self.bill_units().items()
        }

    def bill_units(self) -> dict[str, dict[str, Units]]:
        """Add up everything that is billed, by region, model and unit.

        Units are `image`, `input_image`, `video_second` and `audio_second`.
        """
        bill: dict[str, dict[str, Units]] = {region: {} for region in self.options.regions}
        billed: list[Task | Call] = [*self.tasks, *self.calls]
        for work in billed:
            for unit, quantity in work.units.items():
                units = bill[work.region].setdefault(work.model, {})
                units[unit] = units.get(unit, Decimal(0)) + quantity
        return bill

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
        self.settle()  # what was due until now happened under the old limits
        self.limits = limits

    # What the upstream's own API does.

    def add_task(self, key: SimulatorKey, order: Order, *, request_id: str) -> Task:
        """Accept an order: from here on there is a task, and it will end."""
        self.settle()
        task = Task(
            id=str(uuid4()),
            request_id=request_id,
            key=key,
            order=order,
            created_at=self.clock.now(),
            duration_seconds=self._choose_duration(),
            failure=self._choose_failure(key, order),
        )
        self._tasks[task.id] = task
        self._lines.setdefault((key.main_account, key.region, order.model), TaskQueue()).add(task)
        return task

    def begin_call(self, key: SimulatorKey, order: Order, *, request_id: str, streamed: bool) -> Call:
        """Take up a synchronous call: answered whole it will end by itself, streamed it has to be led to its end."""
        self.settle()
        call = Call(
            id=request_id,
            key=key,
            order=order,
            begun_at=self.clock.now(),
            duration_seconds=self._choose_duration(),
            streamed=streamed,
            failure=self._choose_failure(key, order),
        )
        self._calls[call.id] = call
        self._running_calls[call.id] = call
        return call

    def announce(self, call: Call, indexes: Sequence[int]) -> Sequence[Picture]:
        """Make the pictures that the next event of a stream announces: from here on they are billed."""
        made = [self._make_file(call, index, made_at=self.clock.now()) for index in indexes]
        call.pictures = (*call.pictures, *made)
        return made

    def end_stream(self, call: Call, state: CallState) -> None:
        """Let a stream end here, whatever it has announced. An end that it has already stays."""
        if call.state is CallState.RUNNING:
            self._end_call(call, state, at=self.clock.now())

    def find_task(self, key: SimulatorKey, task_id: str) -> Task | None:
        """Return a task that this key may see: same main account and region, and still kept."""
        self.settle()
        task = self._tasks.get(task_id)
        return task if task is not None and self._shows(key, task) else None

    def cancel_task(self, key: SimulatorKey, task_id: str) -> bool:
        """Cancel a task that this key may see and that still waits; tell whether that was so."""
        task = self.find_task(key, task_id)
        return task is not None and self._lines[key.main_account, key.region, task.model].withdraw(task)

    def visible_tasks(self, key: SimulatorKey) -> list[Task]:
        """Return the tasks that this key may see, newest first."""
        self.settle()
        return [task for task in reversed(self._tasks.values()) if self._shows(key, task)]

    def find_file(self, path: str) -> Picture | None:
        """Return the file behind the path of a link."""
        self.settle()
        return self._files.get(path)

    def next_fault(self, operation: Operation, region: str, *, key: str, model: Callable[[], str]) -> Fault | None:
        """Return what must go wrong with this request: scripted faults first, then chance.

        `key` is the secret that the request carries; `model` finds out the model that it names.
        """
        scripted = self.faults.take(operation, region, key=key, model=model)
        return scripted or roll(self.options.hostility, operation, dice=self.dice)

    def scripted_failure(self, key: SimulatorKey, model: str) -> Failure | None:
        """Return how the work about to be begun must fail, or None; each script counts down."""
        fault = self.faults.take(Operation.OUTCOME, key.region, key=key.secret, model=lambda: model)
        return Failure(fault.code, fault.message, fault.status) if fault is not None else None

    def _shows(self, key: SimulatorKey, task: Task) -> bool:
        """The documentation leaves open whether the 24 h begin with creation or end: the stricter reading is played."""
        kept = self.clock.now() < task.created_at + self.options.retention_seconds
        return kept and (task.key.main_account, task.region) == (key.main_account, key.region)

    def settle(self) -> None:
        """Let everything happen that was due by now."""
        now = self.clock.now()
        self._settle_calls(now)
        for line in self._lines.values():
            for task in line.settle(now, running_limit=self.limits.running_tasks):
                if task.status is Status.SUCCEEDED:
                    self._publish(task)

    def _publish(self, task: Task) -> None:
        """Make the files of a task that has just succeeded; from here on they are billed."""
        task.pictures = self._make_files(task, at=task.ended_at or task.created_at)  # it has ended; its type forgets

    def _settle_calls(self, now: float) -> None:
        for call in tuple(self._running_calls.values()):
            if call.streamed or call.ends_at > now:
                continue
            if call.failure is None:
                call.pictures = self._make_files(call, at=call.ends_at)
            self._end_call(call, CallState.FAILED if call.failure else CallState.SUCCEEDED, at=call.ends_at)

    def _end_call(self, call: Call, state: CallState, *, at: float) -> None:
        call.state, call.ended_at = state, at
        self._running_calls.pop(call.id, None)

    def _make_files(self, work: Task | Call, *, at: float) -> Sequence[Picture]:
        count = len(SHAPES[work.order.shape].files(work.order))
        return tuple(self._make_file(work, index, made_at=at) for index in range(count))

    def _make_file(self, work: Task | Call, index: int, *, made_at: float) -> Picture:
        ending = SHAPES[work.order.shape].files(work.order)[index]
        expires = int(made_at + self.options.link_seconds)
        path, query = make_link(work.region, work.id, file=f"{index}.{ending}", made_at=made_at, expires=expires)
        self._files[path] = Picture(work.id, index, work.order, path, query)
        return self._files[path]

    def _choose_duration(self) -> float:
        low, high = self.next_durations.popleft() if self.next_durations else self.duration_seconds
        return self.dice.uniform(low, high)

    def _choose_failure(self, key: SimulatorKey, order: Order) -> Failure | None:
        return self.scripted_failure(key, order.model) or catalogue.planned_failure(order.prompt)
