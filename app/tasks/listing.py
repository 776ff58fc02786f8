"""A team's list of its tasks, in DashScope's shape (dashscope-api.md 3.2): what may be asked, and what a row says.

Async and durable tasks; no relays, and no creates that were refused at once. Knows no results: a list has none.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from app.errors import InvalidParameter
from app.lib.clock import ALIBABA_ZONE, in_upstream_form
from app.lib.db import reading
from app.models.tasks import State, UpstreamCall
from app.resources import Resources
from app.tasks.states import upstream_word
from app.tasks.store_reads import TaskFilter, list_own

WINDOW = timedelta(hours=24)
DEFAULT_PAGE_SIZE = 10
MOST_PAGE_SIZE = 100
TIME_FORM = re.compile(r"[0-9]{14}")
YEARS = range(1970, 9999)  # others have no neighbours
NUMBER_FORM = re.compile(r"0*[1-9][0-9]{0,5}")
MOST_CHARS = 200


async def list_tasks(
    res: Resources, team_id: UUID, *, team: str, asked: Mapping[str, str], request_id: str
) -> dict[str, Any]:
    """Return one page of a team's tasks, the newest first. `asked` are the parameters of the query.

    The page stands under two keys: `data` is the documented one; `tasks` is the one that the `dashscope.v2` client
    reads, each task as that client reads it: with the status and the times of a single query.

    Raises:
        InvalidParameter: a number or a time that is none, or a window of more than 24 hours.
        DatabaseAway: it cannot be read now.
    """
    wanted = read_filter(asked, now=res.clock.now())
    async with reading(res) as session:
        total, tasks = await list_own(session, team_id, wanted)
    rows = [_row(task, team=team) for task in tasks]
    return {
        "request_id": request_id,
        "total": total,
        "total_page": -(-total // wanted.page_size),
        "page_no": wanted.page_no,
        "page_size": wanted.page_size,
        "data": rows,
        "tasks": [{**row, **_as_queried(task)} for row, task in zip(rows, tasks, strict=True)],
    }


def read_filter(asked: Mapping[str, str], *, now: datetime) -> TaskFilter:
    """Read the parameters of a list; a blank one is not given, unknown ones are ignored, a larger page is cut.

    >>> midnight = datetime(2026, 11, 22, tzinfo=UTC)  # eight in the morning where the upstream is
    >>> wanted = read_filter({"start_time": "20261122080000", "page_size": "500"}, now=midnight)
    >>> wanted.created_from == wanted.created_to == midnight, wanted.page_no, wanted.page_size
    (True, 1, 100)

    Raises:
        InvalidParameter: as `list_tasks`.
    """
    given = {name: value for name, value in asked.items() if value}
    if any("\x00" in value or len(value) > MOST_CHARS for value in given.values()):
        raise InvalidParameter("A parameter is malformed.")
    start, end = _instant(given, "start_time"), _instant(given, "end_time")
    created_to = end if end is not None else now if start is None else min(now, start + WINDOW)
    created_from = start if start is not None else created_to - WINDOW
    if created_to - created_from > WINDOW:
        raise InvalidParameter("start_time and end_time must be at most 24 hours apart")
    return TaskFilter(
        created_from=created_from,
        created_to=created_to,
        page_no=_number(given, "page_no", default=1),
        page_size=min(_number(given, "page_size", default=DEFAULT_PAGE_SIZE), MOST_PAGE_SIZE),
        task_id=given.get("task_id"),
        word=given.get("status"),
        model=given.get("model_name"),
        api_key_id=given.get("api_key_id"),
        region=given.get("region"),
    )


def _instant(given: Mapping[str, str], name: str) -> datetime | None:
    if name not in given:
        return None
    try:
        instant = datetime.strptime(given[name], "%Y%m%d%H%M%S").replace(tzinfo=ALIBABA_ZONE)
    except ValueError:
        instant = None
    if instant is None or not TIME_FORM.fullmatch(given[name]) or instant.year not in YEARS:
        raise InvalidParameter(f"{name} must have the format YYYYMMDDhhmmss")
    return instant.astimezone(UTC)


def _number(given: Mapping[str, str], name: str, *, default: int) -> int:
    if name not in given:
        return default
    if not NUMBER_FORM.fullmatch(given[name]):
        raise InvalidParameter(f"{name} must be a positive integer")
    return int(given[name])


def _row(task: RowMapping, *, team: str) -> dict[str, Any]:
    return {
        "task_id": str(task["id"]),
        "status": _word(task),
        "model_name": task["model"],
        "region": task["region"],
        "request_id": task["request_id"],
        "gmt_create": _milliseconds(task["created_at"]),
        **{name: _milliseconds(at) for name, at in _times(task, start="start_time").items()},
        "api_key_id": task["api_key_id"],
        "caller_uid": team,
        "caller_parent_id": team,
        "user_api_unique_key": f"apikey:v1:{task['path'].strip('/').replace('/', ':')}:{task['model']}",
    }


def _as_queried(task: RowMapping) -> dict[str, Any]:
    times = {"submit_time": task["created_at"], **_times(task, start="scheduled_time")}
    return {"task_status": _word(task), **{name: in_upstream_form(at) for name, at in times.items()}}


def _times(task: RowMapping, *, start: str) -> dict[str, datetime]:
    """Return when a task started and ended, as far as it did; one that was cancelled did neither (2.8).

    A task that ended between two looks was never seen running: then it started when it was submitted.
    """
    if _word(task) in ("PENDING", "CANCELED"):
        return {}
    times = {start: task["started_at"] or task["submitted_at"], "end_time": task["finished_at"]}
    return {name: at for name, at in times.items() if at is not None}


def _word(task: RowMapping) -> str:
    return upstream_word(State(task["state"]), UpstreamCall(task["upstream_call"]))


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
