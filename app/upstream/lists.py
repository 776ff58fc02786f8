"""The upstream's task list on the wire: what is asked for, and what a page of it says. Pure.

The list is not to be trusted far (dashscope-api.md 3.2): its largest page is not documented, its order neither, the
times it is asked with carry no zone, and it may lag, repeat itself or shift while its pages are read. So a page says
what it shows and how large it is; what follows from that is its reader's to know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from math import ceil
from typing import Any
from urllib.parse import urlencode

from app.upstream.answers import TaskPage, TaskRow

DEFAULT_PAGE_SIZE = 10  # the documented one
# In which zone times are asked for: documented for one family only. Pages show instants, so a wrong zone is noticed.
LIKELY_ZONE = timezone(timedelta(hours=8))
STAMP = "%Y%m%d%H%M%S"
MOST_MILLISECONDS = 4_102_444_800_000  # the year 2100: a larger number is no instant


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of the list. Without `since` and `until` it is of the last 24 h, in whatever zone."""

    page_no: int = 1
    page_size: int = DEFAULT_PAGE_SIZE
    since: datetime | None = None
    until: datetime | None = None
    model: str | None = None
    word: str | None = None  # a status, in the upstream's words

    def text(self) -> str:
        """Return the query as the upstream reads it; instants are widened to whole seconds.

        >>> ListQuery(2, 100, word="RUNNING").text()
        'page_no=2&page_size=100&status=RUNNING'
        >>> at = datetime(2026, 11, 22, 4, 0, 0, 500_000, tzinfo=UTC)
        >>> ListQuery(since=at, until=at).text()
        'page_no=1&page_size=10&start_time=20261122120000&end_time=20261122120001'
        """
        asked = {
            "page_no": str(self.page_no),
            "page_size": str(self.page_size),
            "start_time": self.since and self.since.astimezone(LIKELY_ZONE).strftime(STAMP),
            "end_time": self.until and (_next_second(self.until)).astimezone(LIKELY_ZONE).strftime(STAMP),
            "model_name": self.model,
            "status": self.word,
        }
        return urlencode({name: value for name, value in asked.items() if value})


def page_of(fields: Mapping[str, Any], query: ListQuery) -> TaskPage | None:
    """Read a page; None when the answer is no list. Rows without an id are nobody's and are passed over.

    The size of a page is what the answer says of it, or what it shows where it says nothing sensible: a server may cut
    what it was asked for.

    >>> row = {"task_id": "t-1", "status": "RUNNING", "gmt_create": 1795312800000}
    >>> page = page_of({"total": 250, "page_size": 100, "page_no": 1, "data": [row] * 100}, ListQuery(page_size=1000))
    >>> page.total, page.page_size, page.pages, page.rows[0].word
    (250, 100, 3, 'RUNNING')
    >>> page_of({"total": 30, "data": [row] * 10}, ListQuery(page_size=1000)).pages
    3
    >>> page_of({"output": {}}, ListQuery()) is None
    True
    """
    shown = fields.get("data")
    if not isinstance(shown, list):
        return None
    rows = tuple(row for item in shown if isinstance(item, dict) and (row := _row(item)) is not None)
    total = _whole(fields.get("total"))
    total = len(shown) if total is None else total
    size = max(1, _page_size(_whole(fields.get("page_size")), len(shown), total=total, query=query))
    return TaskPage(rows, total=total, page_size=size, pages=max(1, ceil(total / size)))


def _page_size(told: int | None, shown: int, *, total: int, query: ListQuery) -> int:
    """Return how large the server's pages are; after the first we ask for what they are."""
    if query.page_no > 1:
        return min(told or query.page_size, query.page_size)
    size = told or (shown if total > shown else query.page_size)
    return shown if 0 < shown < min(size, total) else size  # it says one size and cuts to another


def _row(item: Mapping[str, Any]) -> TaskRow | None:
    task_id = _text(item.get("task_id"))
    if not task_id:
        return None
    return TaskRow(
        task_id=task_id,
        word=_text(item.get("status")) or _text(item.get("task_status")),
        model=_text(item.get("model_name")),
        request_id=_text(item.get("request_id")),
        api_key_id=_text(item.get("api_key_id")),
        caller_id=_text(item.get("caller_parent_id")) or _text(item.get("caller_uid")),
        created_at=_instant(item.get("gmt_create")),
        started_at=_instant(item.get("start_time")),
        ended_at=_instant(item.get("end_time")),
    )


def _text(value: Any) -> str:
    """Return a text that a row can hold; numbers are written out, as ids may come as such."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.replace("\x00", "").encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _instant(value: Any) -> datetime | None:
    """Read epoch milliseconds."""
    milliseconds = _whole(value)
    if not milliseconds or milliseconds > MOST_MILLISECONDS:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _next_second(instant: datetime) -> datetime:
    whole = instant.replace(microsecond=0)
    return whole if whole == instant else whole + timedelta(seconds=1)
