"""The upstream's list over a window of time, walked to its end: evidence about tasks whose answer was lost.

How to use it: in the process that owns the account, with the owner's `Watch` (tasks/owner.py), which makes each call
in a slot of its own, within the pace, under the lease and beside the result reads:

    listing = await list_window(res, account, window=Window(since, until, model="wan2.6-image"), owner=watch)
    if listing.is_complete: ...

`is_complete` means: every row that the list showed for the window, all pages, while it was walked between `began_at`
and `ended_at`. It allows for rows shown twice, pages that shift and a server that cuts pages; not for a list that lags
behind the truth: absence needs two complete listings some time apart. Knows no doubt and no task of ours.

The times that a list is asked with have no zone. A window that shows a row made inside it was understood as it was
meant. One that shows none proves nothing; then the last 24 h are listed, which need no zone.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from app.errors import CouldNotFindOut
from app.resources import Resources
from app.routing.accounts import AccountInfo
from app.upstream.answers import TaskPage, TaskRow
from app.upstream.client import Upstream
from app.upstream.lists import DEFAULT_PAGE_SIZE, ListQuery

T = TypeVar("T")

PAGE_SIZES = (1_000, 100, DEFAULT_PAGE_SIZE)  # asked for in turn until one is not refused; the answer may be smaller
MOST_PAGES = 3_000  # of one walk: twenty-four hours of a busy account at pages of 100
WALKS = 3  # a list that shifted under the walk is walked again, so often
LISTED_BACK = timedelta(hours=24)  # what a list without a window goes back
MARGIN = timedelta(minutes=1)


class Asker(Protocol):
    """Makes a call about tasks in its turn: the account's owner, or a test's stand-in."""

    async def ask(self, res: Resources, account: AccountInfo, *, call: Callable[[Upstream], Awaitable[T]]) -> T:
        """Make one call. Raises: CouldNotFindOut: unanswered, or the account is not ours to ask any more."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """Tasks created from `since` to `until`, both included, perhaps of one model or status only."""

    since: datetime
    until: datetime
    model: str | None = None
    word: str | None = None

    def has(self, row: TaskRow) -> bool:
        """Tell whether a row may be of this window; one that does not say when it was made may."""
        return row.created_at is None or self.since <= row.created_at <= self.until


@dataclass(frozen=True, slots=True)
class Listing:
    """What was shown, each task once, as its last row said; by the gateway's clock when the walk began and ended."""

    rows: tuple[TaskRow, ...]
    began_at: datetime
    ended_at: datetime
    is_complete: bool


async def list_window(res: Resources, account: AccountInfo, *, window: Window, owner: Asker) -> Listing:
    """List the upstream's tasks of a window, all pages.

    Raises:
        CouldNotFindOut: a page remained unanswered, or the account is not this process's any more.
    """
    began_at = res.clock.now()
    asked = ListQuery(since=window.since, until=window.until, model=window.model, word=window.word)
    walked = await _walk(res, account, query=asked, owner=owner)
    if not any(row.created_at is not None and window.has(row) for row in walked.rows):
        walked = await _walk(res, account, query=replace(asked, since=None, until=None), owner=owner)
        reaches_back = window.since >= res.clock.now() - LISTED_BACK + MARGIN
        walked = replace(walked, is_complete=walked.is_complete and reaches_back)
    rows = tuple(row for row in walked.rows if window.has(row))
    return Listing(rows, began_at, res.clock.now(), walked.is_complete)


@dataclass(frozen=True, slots=True)
class _Walked:
    rows: Collection[TaskRow]
    is_complete: bool


async def _walk(res: Resources, account: AccountInfo, *, query: ListQuery, owner: Asker) -> _Walked:
    """Walk all pages; again when fewer tasks were seen than the list says it has: it shifted."""
    rows: dict[str, TaskRow] = {}
    for _ in range(WALKS):
        total = await _walk_once(res, account, query=query, owner=owner, rows=rows)
        if total is not None and len(rows) >= total:
            return _Walked(rows.values(), is_complete=True)
    return _Walked(rows.values(), is_complete=False)


async def _walk_once(
    res: Resources, account: AccountInfo, *, query: ListQuery, owner: Asker, rows: dict[str, TaskRow]
) -> int | None:
    """Add the rows of all pages; return how many the last one says there are. None: the pages changed their size."""
    page = await first_page(query, ask=lambda asked: _page(res, account, query=asked, owner=owner))
    size, page_no = page.page_size, 1
    rows.update({row.task_id: row for row in page.rows})
    while page_no < min(page.pages, MOST_PAGES):
        page_no += 1
        asked = replace(query, page_no=page_no, page_size=size)
        page = await _page(res, account, query=asked, owner=owner)
        rows.update({row.task_id: row for row in page.rows})
        if page.page_size != size:
            return None
    return page.total if page_no >= page.pages else None


async def first_page(query: ListQuery, *, ask: Callable[[ListQuery], Awaitable[TaskPage]]) -> TaskPage:
    """Ask for a large first page, for a smaller one where that is refused.

    Raises:
        CouldNotFindOut: unanswered, or refused at the documented size too.
    """
    for size in PAGE_SIZES:
        try:
            return await ask(replace(query, page_no=1, page_size=size))
        except CouldNotFindOut as error:
            if size == PAGE_SIZES[-1] or not error.reason.startswith("400"):
                raise
    raise CouldNotFindOut("no page size is taken")


async def _page(res: Resources, account: AccountInfo, *, query: ListQuery, owner: Asker) -> TaskPage:
    return await owner.ask(res, account, call=lambda there: there.list_tasks(query))
