"""When to look at which task: a pure function over times. Knows no row and no call."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

K = TypeVar("K")

LOOK_SECONDS = 1.0  # no task is looked at more often
LOOKS_PLANNED_SECONDS = 1.0  # how far ahead an owner plans: it learns of new tasks at least this often


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
