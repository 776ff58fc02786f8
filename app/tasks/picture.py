"""What the owner of an account remembers of its open tasks, and in which line each of them stands.

Lost with the process and never needed: a successor reads the same tasks from the same index. Knows no call and no
query; two clocks are handed in: `now`, this process's monotonic one, and `at`, in epoch seconds, for ages.

A task stands in one place at a time: `LATER`, until a look is worth its slot; `RIPE`, when it is; `FINISHED`, when the
list has said so; `ASKED`, while a call about it is on its way. Lines are one per team: of what is urgent the earliest
deadline first, then what is waited for on a connection, then what ended first. Places change by filing a task anew:
what it left behind in the old heap is passed over when it comes up.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from itertools import count
from typing import Any
from uuid import UUID

from app.models.tasks import State
from app.tasks.schedule import (
    FEW,
    LOOK_SECONDS,
    OVERDUE_MOST_SECONDS,
    URGENT_SECONDS,
    Durations,
    Head,
    Line,
    failed_look_again_in,
    look_again_in,
)

# A task that is this young may be missing from a list that lags.
LIST_LAG_SECONDS = 10.0
STALE_SECONDS = 15.0  # longer than a query may take
MOST_ENDED = 1_000
NEVER = float("-inf")


class Place(IntEnum):
    """Where a task stands."""

    LATER = 0
    RIPE = 1
    FINISHED = 2
    ASKED = 3


@dataclass(slots=True, eq=False)
class Open:
    """One open task: what its row says, and what this process has seen of it."""

    id: UUID
    attempt: int
    team_id: UUID
    account_id: UUID
    place_id: UUID | None
    model: str
    upstream_id: str
    submitted_at: float  # epoch seconds
    is_running: bool
    is_waited: bool  # somebody waits for it on a connection
    wants_cancel: bool
    reading: int = 0  # the last reading of all rows that showed it
    place: Place = Place.LATER
    ticket: int = 0
    is_plausible: bool = False  # old enough to have finished
    is_finished: bool = False  # the list says so
    is_unknown: bool = False  # the upstream says that it does not know it
    seen_at: float | None = None  # when it was last seen not to have ended, in epoch seconds
    ended_at: float = 0.0  # when it has, as near as is known
    cancel_asked_at: float = NEVER
    failures: int = 0  # looks in a row that were not answered
    mistakes: int = 0  # how often it was missing from a list, and had not finished
    presume_from: float = NEVER  # until then being missing means nothing
    not_before: float = NEVER  # until then it is left alone: looks were not answered, or could not be recorded

    def row(self) -> dict[str, Any]:
        """Return the task as the recording of an outcome reads it."""
        return {
            "id": self.id,
            "attempt": self.attempt,
            "state": State.RUNNING if self.is_running else State.PENDING,
            "team_id": self.team_id,
            "account_id": self.account_id,
            "place_id": self.place_id,
            "upstream_task_id": self.upstream_id,
            "submitted_at": datetime.fromtimestamp(self.submitted_at, UTC),
        }


# Urgent, waited for or neither; the deadline of the urgent, else when it ended or was submitted; its ticket.
Rank = tuple[int, float, int]


@dataclass(slots=True)
class _TeamLines:
    """The two lines of a team."""

    weight: float
    served: float
    finished: list[tuple[Rank, Open]] = field(default_factory=list)
    ripe: list[tuple[Rank, Open]] = field(default_factory=list)


class Picture:
    """The open tasks of one main account and region."""

    def __init__(self, *, retention_seconds: float) -> None:
        self._retention_seconds = retention_seconds
        self._tasks: dict[UUID, Open] = {}
        self._by_upstream_id: dict[str, Open] = {}
        self._later: list[tuple[float, int, Open]] = []
        self._lines: dict[UUID, _TeamLines] = {}
        self._weights: dict[UUID, float] = {}
        self._wishes: dict[UUID, Open] = {}
        self._durations: dict[str, Durations] = {}
        self._known: dict[UUID, UUID] = {}  # one object for the many equal ids of teams, accounts and places
        self._ended: dict[UUID, float] = {}  # the last that ended here: a reading that began before may show them open
        self._tickets = count(1)
        self._turn = 0.0
        self._reading = 0
        self.plausible_count = 0
        self.finished_count = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Open]:
        return iter(self._tasks.values())

    @property
    def unfinished_count(self) -> int:
        """How many tasks are not known to have ended."""
        return len(self) - self.finished_count

    def listed(self, *, at: float) -> Iterator[Open]:
        """Iterate over the tasks that are old enough to be missing from no list."""
        return (task for task in self if at - task.submitted_at > LIST_LAG_SECONDS)

    def find(self, task_id: UUID) -> Open | None:
        """Return a task that is known to be open."""
        return self._tasks.get(task_id)

    def find_upstream(self, upstream_id: str) -> Open | None:
        """Return the open task of an upstream task."""
        return self._by_upstream_id.get(upstream_id)

    # What Postgres says.

    def begin_reading(self) -> int:
        """Begin to read all rows; what `end_reading` has not been shown by then is open no more."""
        self._reading += 1
        return self._reading

    def end_reading(self, reading: int) -> None:
        """Forget what a reading of all rows did not show. What came to be known meanwhile counts as shown."""
        for task in [task for task in self if task.reading < reading]:
            self.drop(task)

    def put(self, row: Mapping[Any, Any], *, now: float, at: float) -> None:
        """Take in a row, new or known."""
        if now - self._ended.get(row["id"], NEVER) < STALE_SECONDS:
            return
        self._weights[row["team_id"]] = float(row["weight"])
        self.durations(row["model"]).remember(row["learned_seconds"])
        known = self._tasks.get(row["id"])
        if known is not None and (known.attempt, known.upstream_id) != (row["attempt"], row["upstream_task_id"]):
            self.drop(known)
            known = None
        task = known or self._add(row)
        task.reading = self._reading
        task.is_running |= row["state"] == State.RUNNING
        task.is_waited, task.wants_cancel = row["waited_until"] is not None, row["cancel_requested_at"] is not None
        if task.wants_cancel and not task.is_running:
            self._wishes.setdefault(task.id, task)
        else:
            self._wishes.pop(task.id, None)
        if known is None:
            self._file_new(task, now=now, at=at)

    def drop(self, task: Open) -> None:
        """Forget a task that is open no more."""
        self._leave(task)
        self._wishes.pop(task.id, None)
        self._tasks.pop(task.id, None)
        if self._by_upstream_id.get(task.upstream_id) is task:
            del self._by_upstream_id[task.upstream_id]

    def end(self, task: Open, *, now: float) -> None:
        """Forget a task whose end was recorded here."""
        self.drop(task)
        self._ended[task.id] = now
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    # What the upstream says.

    def say_finished(self, task: Open, *, now: float, at: float, ended_at: float | None = None) -> None:
        """The list says that a task has ended, perhaps when: its result is to be read."""
        if task.place in (Place.ASKED, Place.FINISHED) or now < task.not_before:
            return
        unseen_since = at if task.seen_at is None else task.seen_at
        task.is_finished, task.ended_at = True, (unseen_since + at) / 2 if ended_at is None else min(at, ended_at)
        self._file_in_line(task, Place.FINISHED, at=at)

    def say_missing(self, task: Open, *, now: float, at: float) -> None:
        """A whole list of what has not ended did not show a task: it has, unless the list is late or mistaken."""
        if now >= task.presume_from:
            self.say_finished(task, now=now, at=at)

    def say_unfinished(self, task: Open, *, now: float, at: float) -> None:
        """A task was seen not to have ended; where it was taken to have, that was a mistake."""
        if task.is_finished:
            task.is_finished, task.mistakes = False, task.mistakes + 1
            task.presume_from = now + min(OVERDUE_MOST_SECONDS, 2.0**task.mistakes)
        task.failures, task.seen_at = 0, at
        learned = self.durations(task.model).learned
        wait = look_again_in(at - task.submitted_at, learned, open_count=len(self))
        self._file_later(task, due_at=now + wait, at=at)

    def saw_in_list(self, task: Open, *, now: float, at: float) -> None:
        """The list shows a task that has not ended; one that a call is about is left to it."""
        if task.place != Place.ASKED and now >= task.not_before:
            self.say_unfinished(task, now=now, at=at)

    def say_unanswered(self, task: Open, *, now: float, at: float) -> None:
        """A call about a task brought no answer: it is made again, later each time."""
        task.failures += 1
        self.leave_alone(task, seconds=failed_look_again_in(task.failures), now=now, at=at)

    def leave_alone(self, task: Open, *, seconds: float, now: float, at: float) -> None:
        """Ask nothing about a task for a while."""
        task.not_before = now + seconds
        self._file_later(task, due_at=task.not_before, at=at)

    def durations(self, model: str) -> Durations:
        """Return what is known of how long a model takes."""
        return self._durations.setdefault(model, Durations())

    # What is to be called next.

    def ripen(self, *, now: float, at: float) -> float | None:
        """Move what is due into its line; return when the next task will be, if there is one."""
        while self._later:
            due_at, ticket, task = self._later[0]
            if ticket == task.ticket and task.place == Place.LATER:
                if due_at > now:
                    return due_at
                self._file_in_line(task, Place.FINISHED if task.is_finished else Place.RIPE, at=at)
            heapq.heappop(self._later)
        return None

    def lines(self, *, at: float) -> list[Line]:
        """Return the first of each team's lines; a team without any is forgotten, and comes again at its turn."""
        shown = []
        for team_id, lines in list(self._lines.items()):
            finished, ripe = self._head(lines.finished, at=at), self._head(lines.ripe, at=at)
            if finished is None and ripe is None:
                del self._lines[team_id]
            else:
                shown.append(Line(lines.served, finished, ripe))
        return shown

    def find_wish(self, *, now: float) -> Open | None:
        """Return the task whose cancel was asked for the longest ago, if it is time to ask (again)."""
        task = next(iter(self._wishes.values()), None)
        if task is None or task.place == Place.ASKED or task.cancel_asked_at > now - LOOK_SECONDS:
            return None
        return task

    def take(self, task: Open, *, cancels_at: float | None = None) -> None:
        """Mark a task as asked about: it is in no line until something is said of it."""
        lines = self._lines.get(task.team_id)
        if lines is not None and task.place in (Place.FINISHED, Place.RIPE):
            self._turn = max(self._turn, lines.served)
            lines.served += 1 / lines.weight
        self._leave(task)
        if cancels_at is not None:
            task.cancel_asked_at = cancels_at
            self._wishes[task.id] = self._wishes.pop(task.id, task)  # behind the others

    def forget_wish(self, task: Open) -> None:
        """A cancel has its verdict."""
        self._wishes.pop(task.id, None)

    def oldest_submitted_at(self) -> float | None:
        """Return when the oldest open task was submitted, in epoch seconds."""
        return min((task.submitted_at for task in self), default=None)

    # The heaps.

    def _add(self, row: Mapping[Any, Any]) -> Open:
        task = Open(
            id=row["id"],
            attempt=row["attempt"],
            team_id=self._same(row["team_id"]),
            account_id=self._same(row["account_id"]),
            place_id=row["place_id"] and self._same(row["place_id"]),
            model=next((name for name in self._durations if name == row["model"]), row["model"]),
            upstream_id=row["upstream_task_id"],
            submitted_at=row["submitted_at"].timestamp(),
            is_running=False,
            is_waited=False,
            wants_cancel=False,
        )
        self._tasks[task.id] = self._by_upstream_id[task.upstream_id] = task
        return task

    def _same(self, known: UUID) -> UUID:
        return self._known.setdefault(known, known)

    def _file_new(self, task: Open, *, now: float, at: float) -> None:
        """File a task that was never seen: at once while there are few, so that its start is seen."""
        earliest = self.durations(task.model).learned.earliest_seconds
        is_early = at - task.submitted_at < earliest
        wait = earliest - (at - task.submitted_at) if is_early and len(self) > FEW else 0.0
        self._file_later(task, due_at=now + wait, at=at)

    def _file_later(self, task: Open, *, due_at: float, at: float) -> None:
        if self._tasks.get(task.id) is not task:
            return  # it was dropped while a call about it was on its way
        self._leave(task)
        task.place, task.ticket = Place.LATER, next(self._tickets)
        self._set_plausible(task, at=at)
        heapq.heappush(self._later, (due_at, task.ticket, task))

    def _file_in_line(self, task: Open, place: Place, *, at: float) -> None:
        self._leave(task)
        task.place, task.ticket = place, next(self._tickets)
        lines = self._lines.setdefault(task.team_id, _TeamLines(self._weights.get(task.team_id, 1.0), self._turn))
        is_urgent = self._left_seconds(task, at=at) < URGENT_SECONDS
        since = task.submitted_at if is_urgent or place is Place.RIPE else task.ended_at
        rank = (0 if is_urgent else 1 if task.is_waited else 2, since, task.ticket)
        heapq.heappush(lines.finished if place is Place.FINISHED else lines.ripe, (rank, task))
        if place is Place.FINISHED:
            self.finished_count += 1
        else:
            self._set_plausible(task, at=at)

    def _leave(self, task: Open) -> None:
        """Take a task out of where it stands: what its old heap keeps of it is passed over there."""
        if task.place == Place.FINISHED:
            self.finished_count -= 1
        task.place = Place.ASKED
        if task.is_plausible:
            task.is_plausible = False
            self.plausible_count -= 1
        task.ticket = 0

    def _set_plausible(self, task: Open, *, at: float) -> None:
        earliest = self.durations(task.model).learned.earliest_seconds
        task.is_plausible = at - task.submitted_at + LOOK_SECONDS >= earliest
        self.plausible_count += task.is_plausible

    def _head(self, line: list[tuple[Rank, Open]], *, at: float) -> Head | None:
        while line:
            (_, _, ticket), task = line[0]
            if ticket == task.ticket:
                return Head(task, self._left_seconds(task, at=at))
            heapq.heappop(line)
        return None

    def _left_seconds(self, task: Open, *, at: float) -> float:
        return task.submitted_at + self._retention_seconds - at
