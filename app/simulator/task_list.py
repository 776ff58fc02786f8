"""Filters and pages of the task list (pure): what may be asked, and which tasks that selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.simulator import problems
from app.simulator.options import DAY_SECONDS
from app.simulator.tasks import Task
from app.simulator.wire import UPSTREAM_ZONE

DEFAULT_PAGE_SIZE = 10
EXACT_FILTERS = ("task_id", "model_name", "status", "api_key_id", "region")


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """A list request with its defaults filled in; `created_from` and `created_to` are epoch seconds, both included."""

    created_from: float
    created_to: float
    page_no: int
    page_size: int
    fields: Mapping[str, str]


def read_filter(wanted: Mapping[str, str], *, now: float, max_page_size: int) -> TaskFilter:
    """Read the query parameters of a list; unknown ones are ignored.

    A larger `page_size` than `max_page_size` is cut silently: the real maximum is not documented, so a client has to
    go by the page size in the answer.

    Raises: `Problem` 400 for a bad number, a bad time or more than 24 h.
    """
    start, end = _instant(wanted, "start_time"), _instant(wanted, "end_time")
    created_to = end if end is not None else now if start is None else min(now, start + DAY_SECONDS)
    created_from = start if start is not None else created_to - DAY_SECONDS
    if created_to - created_from > DAY_SECONDS:
        raise problems.invalid("start_time and end_time must be at most 24 hours apart")
    return TaskFilter(
        created_from=created_from,
        created_to=created_to,
        page_no=_positive(wanted, "page_no", default=1),
        page_size=min(_positive(wanted, "page_size", default=DEFAULT_PAGE_SIZE), max_page_size),
        fields={name: wanted[name] for name in EXACT_FILTERS if name in wanted},
    )


def select(tasks: Sequence[Task], task_filter: TaskFilter) -> tuple[int, Sequence[Task]]:
    """Return how many tasks the filter selects in all, and those of its page."""
    found = [task for task in tasks if _matches(task, task_filter)]
    first = (task_filter.page_no - 1) * task_filter.page_size
    return len(found), found[first : first + task_filter.page_size]


def _matches(task: Task, task_filter: TaskFilter) -> bool:
    if not task_filter.created_from <= task.created_at <= task_filter.created_to:
        return False
    facts = {
        "task_id": task.id,
        "model_name": task.model,
        "status": task.status.value,
        "api_key_id": task.key.api_key_id,
        "region": task.region,
    }
    return all(facts[name] == value for name, value in task_filter.fields.items())


def _instant(wanted: Mapping[str, str], name: str) -> float | None:
    if name not in wanted:
        return None
    try:
        return datetime.strptime(wanted[name], "%Y%m%d%H%M%S").replace(tzinfo=UPSTREAM_ZONE).timestamp()
    except ValueError as error:
        raise problems.invalid(f"{name} must have the format YYYYMMDDhhmmss") from error


def _positive(wanted: Mapping[str, str], name: str, *, default: int) -> int:
    text = wanted.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1_000_000):
        raise problems.invalid(f"{name} must be a positive integer")
    return int(text)
