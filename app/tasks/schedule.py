"""When to send, when to look, what counts as occupied: pure functions over times. Knows no row and no call."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

K = TypeVar("K")

MOST_SLOT_WAIT_SECONDS = 1.0  # a send slot further off than this is no room: the task is queued
LOOK_SECONDS = 1.0  # no task is looked at more often
LOOKS_PLANNED_SECONDS = 1.0  # how far ahead an owner plans: it learns of new tasks at least this often
DOUBTFUL_OCCUPIES_SECONDS = 900.0
UNLEARNED_SECONDS = 120.0  # how long a model is taken to run before any of its tasks was seen to end
LEARNING_RATE = 0.2
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # after a 429 on create: upstream limits recover within a minute


def send_slots(next_at: datetime | None, now: datetime, *, rps: float, wanted: int) -> list[datetime]:
    """Return the instants at which up to `wanted` creates may leave, evenly spaced, none more than a second off.

    >>> from datetime import UTC
    >>> now = datetime(2026, 11, 22, tzinfo=UTC)
    >>> [slot.timestamp() - now.timestamp() for slot in send_slots(None, now, rps=5, wanted=3)]
    [0.0, 0.2, 0.4]
    >>> len(send_slots(None, now, rps=5, wanted=100))
    6
    >>> send_slots(now + timedelta(seconds=2), now, rps=5, wanted=1)
    []
    """
    first = max(next_at or now, now)
    latest = now + timedelta(seconds=MOST_SLOT_WAIT_SECONDS)
    slots = [first + index * spacing(rps) for index in range(min(wanted, int(rps * MOST_SLOT_WAIT_SECONDS) + 1))]
    return [slot for slot in slots if slot <= latest]


def spacing(rps: float) -> timedelta:
    """Return the time between two creates at so many a second."""
    return timedelta(seconds=1 / rps)


def doubtful_occupies_seconds(learned_seconds: float | None) -> float:
    """Return how long after its send window a doubtful task still counts as running upstream.

    >>> doubtful_occupies_seconds(90), doubtful_occupies_seconds(3600)
    (180.0, 900.0)
    """
    return min(2.0 * (learned_seconds or UNLEARNED_SECONDS), DOUBTFUL_OCCUPIES_SECONDS)


def learn(learned_seconds: float | None, seen_seconds: float) -> float:
    """Return the moving average of a model's durations after one more was seen.

    >>> learn(None, 60), learn(60, 110)
    (60.0, 70.0)
    """
    if learned_seconds is None:
        return float(seen_seconds)
    return learned_seconds + LEARNING_RATE * (seen_seconds - learned_seconds)


def due_looks(tasks: Iterable[K], looked_at: Mapping[K, float], *, now: float, calls_per_second: float) -> list[K]:
    """Return the tasks to look at now, longest unseen first, no more than the pace allows in one plan.

    With few open tasks each is looked at once a second; with many, the pace goes round them.

    >>> due_looks(["a", "b", "c"], {"a": 9.5, "b": 8.0}, now=10.0, calls_per_second=18)
    ['c', 'b']
    >>> due_looks(["a", "b", "c"], {}, now=10.0, calls_per_second=2)
    ['a', 'b']
    """
    never = float("-inf")
    due = [task for task in tasks if looked_at.get(task, never) <= now - LOOK_SECONDS]
    due.sort(key=lambda task: looked_at.get(task, never))
    return due[: max(1, int(calls_per_second * LOOKS_PLANNED_SECONDS))]
