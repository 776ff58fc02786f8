"""Sweeps: walks through the upstream's list that find out at once which of many tasks have ended.

Owns which pages are asked for next and what they cost; what they show is the picture's. Two ways to walk:

* the *finished*: every SUCCEEDED (now and then FAILED) row since the oldest open task, first page first. Whatever is
  shown is told at once. Rows only come in, so those that move, move to later pages and are seen twice at most.
* the *unfinished*: every PENDING (while any of ours may be), then every RUNNING row. What is in none of them has ended:
  told when the walk is whole. RUNNING rows only leave, so its last page is read first; a task that starts meanwhile is
  in the second part.

Each costs as many pages as it has rows: early in a burst the finished are few, late the unfinished are. Without a
window a list is of the last 24 h, which is all the unfinished and needs no zone. The finished need a window, so that
way is used only where a page has shown that the upstream understood it. Neither is more than a hint: a result read
decides, and what a list mistakes costs one call.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import ceil

from app.tasks.listing_upstream import PAGE_SIZES
from app.tasks.picture import Picture
from app.upstream.answers import TaskPage
from app.upstream.lists import ListQuery

ENDED_WORDS = ("SUCCEEDED", "FAILED", "CANCELED", "UNKNOWN")
UNFINISHED_WORDS = ("PENDING", "RUNNING")
GUESSED_PAGE_SIZE = 100
WINDOW_MARGIN = timedelta(minutes=10)  # around what is looked for: clocks differ
LISTED_BACK = timedelta(hours=24)
# The finished that are listed are not all, as an end may have another word: now and then the other way is walked, as
# often as that costs a thirtieth of the pace.
UNFINISHED_EVERY_SECONDS = 60.0
UNFINISHED_EVERY_SECONDS_A_PAGE = 2.0
FAILED_EVERY_SECONDS = 10.0
ANY_WORD = ""  # one page of whatever is in the window: the cheapest proof that the window was understood
PROOF_MOST = timedelta(hours=4)  # a longer window may show rows inside it although it was misunderstood
OFF_SECONDS = (5.0, 15.0, 60.0)  # after so many pages in a row that were not answered
UNPROVEN_SECONDS = 60.0  # until the window is tried again
OUT_OF_REACH = 1_000_000  # pages


class Way(Enum):
    """What a sweep walks through."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"


@dataclass(slots=True)
class Sweep:
    """One walk. `shown` are the unfinished it has seen."""

    way: Way
    began_at: float
    began_epoch: float
    since: datetime | None = None
    until: datetime | None = None
    words: list[str] = field(default_factory=list)
    page_no: int = 1
    to_do: list[int] | None = None  # pages of the present word after this one; None: how many is not known yet
    shown: set[str] = field(default_factory=set)
    asks_pending: bool = False

    def query(self, page_size: int) -> ListQuery:
        """Return the page to ask for."""
        return ListQuery(self.page_no, page_size, self.since, self.until, word=self.words[0])

    @property
    def is_backward(self) -> bool:
        """Whether rows leave the present part, so that its end is read first."""
        return self.words[0] == "RUNNING"

    def turn_page(self, page: TaskPage, *, last_of: Callable[[str], int]) -> bool:
        """Go on after a page; False: it was the last of all. `last_of` guesses the last page of a word."""
        if self.to_do is None:
            self.to_do = self._to_do(page.pages)
        elif not self.is_backward and self.words[0] != ANY_WORD:
            known = self.to_do[-1] if self.to_do else self.page_no
            self.to_do += range(known + 1, page.pages + 1)
        if self.to_do:
            self.page_no = self.to_do.pop(0)
            return True
        del self.words[0]
        self.to_do = None
        if self.words:
            self.page_no = last_of(self.words[0]) if self.is_backward else 1
        return bool(self.words)

    def _to_do(self, pages: int) -> list[int]:
        """Return the pages after the first one that was read; a backward walk that began too early begins again."""
        if self.words[0] == ANY_WORD:
            return []
        if not self.is_backward:
            return list(range(2, pages + 1))
        return list(range(pages - (self.page_no == pages), 0, -1))


class Sweeps:
    """The sweeps of one account: the one under way, and what earlier ones taught."""

    def __init__(self) -> None:
        self.current: Sweep | None = None
        self.page_size: int | None = None  # the server's; None: not known yet
        self.is_understood: bool | None = None  # whether windows are; None: no page has told
        self._sizes = list(PAGE_SIZES)
        self._totals: dict[str, int] = {}
        self._strangers = 0  # unfinished rows beyond our own
        self._ended_since = 0  # results read since the finished were counted
        self._unfinished_at = float("-inf")
        self._tried_at = float("-inf")
        self._failed_at = float("-inf")
        self._last_began_at = float("-inf")
        self._off_until = float("-inf")
        self._failures = 0

    def may_list(self, now: float) -> bool:
        """Tell whether a page may be asked for; a new walk does not begin at the instant of the last."""
        return now >= self._off_until and (self.current is not None or now > self._last_began_at)

    def pages(self, now: float, *, unfinished_count: int) -> int:
        """Return what a sweep costs, in calls."""
        if now < self._off_until:
            return OUT_OF_REACH
        return min(self._pages_of(way, unfinished_count) for way in self._ways(now, unfinished_count))

    def next_query(self, now: float, *, at: datetime, picture: Picture) -> ListQuery:
        """Return the page to ask for, of the walk under way or of a new one."""
        unfinished_count = picture.unfinished_count
        if self.current is None:
            way = min(self._ways(now, unfinished_count), key=lambda way: self._pages_of(way, unfinished_count))
            self.current = self._begin(way, now, at=at, picture=picture)
        return self.current.query(self.page_size or self._sizes[0])

    def take(self, page: TaskPage, *, now: float, unfinished_count: int) -> Sweep | None:
        """Go on after a page was answered; return the walk if it is whole now."""
        self._failures = 0
        sweep = self.current
        if sweep is None:
            return None
        if self.page_size is not None and self.page_size != page.page_size:
            self.current = None  # the pages have changed their size under the walk
        self.page_size = page.page_size
        self._totals[sweep.words[0]] = page.total
        if not self.is_understood and sweep.since is not None:
            self._prove(sweep, page)
        if self.current is None or sweep.turn_page(page, last_of=self._last_page):
            return None
        self.current = None
        if sweep.way is Way.UNFINISHED:
            self._unfinished_at = now
            listed = sum(self._totals.get(word, 0) for word in UNFINISHED_WORDS)
            self._strangers = max(0, listed - unfinished_count)
        else:
            self._ended_since = 0
        return sweep

    def fail(self, now: float, *, refused: bool) -> None:
        """A page was not answered, or refused as it was asked for: smaller pages next, or none for a while."""
        self.current = None
        if refused and self.page_size is None and len(self._sizes) > 1:
            del self._sizes[0]
            return
        self._off_until = now + OFF_SECONDS[min(self._failures, len(OFF_SECONDS) - 1)]
        self._failures += 1

    def note_end(self) -> None:
        """A result was read: the finished are one more."""
        self._ended_since += 1

    def _ways(self, now: float, unfinished_count: int) -> list[Way]:
        """Return the ways that are open; of equal ones the one that tells at once comes first."""
        pages = self._pages_of(Way.UNFINISHED, unfinished_count)
        every_seconds = max(UNFINISHED_EVERY_SECONDS, pages * UNFINISHED_EVERY_SECONDS_A_PAGE)
        is_overdue = now - self._unfinished_at > every_seconds
        may_try = self.is_understood is None and now - self._tried_at > UNPROVEN_SECONDS
        if may_try or (self.is_understood and not is_overdue):
            return [Way.FINISHED, Way.UNFINISHED]
        return [Way.UNFINISHED]

    def _pages_of(self, way: Way, unfinished_count: int) -> int:
        size = self.page_size or GUESSED_PAGE_SIZE
        if way is Way.FINISHED:
            rows = self._totals.get("SUCCEEDED", 0) + self._ended_since
            return max(1, ceil(rows / size))
        return max(1, ceil((unfinished_count + self._strangers) / size))

    def _begin(self, way: Way, now: float, *, at: datetime, picture: Picture) -> Sweep:
        self._last_began_at = now
        if way is Way.UNFINISHED:
            has_pending = any(not task.is_running for task in picture.listed(at=at.timestamp()))
            words = list(UNFINISHED_WORDS if has_pending else UNFINISHED_WORDS[1:])
            self._totals["RUNNING"] = picture.unfinished_count + self._strangers
            first = 1 if has_pending else self._last_page("RUNNING")
            return Sweep(way, now, at.timestamp(), words=words, page_no=first, asks_pending=has_pending)
        self._tried_at = now
        words = ["SUCCEEDED"] if self.is_understood else [ANY_WORD, "SUCCEEDED"]
        if now - max(self._failed_at, self._unfinished_at) > FAILED_EVERY_SECONDS:
            self._failed_at = now
            words.append("FAILED")
        earliest = at - LISTED_BACK + 2 * WINDOW_MARGIN
        oldest = picture.oldest_submitted_at()
        since = (earliest if oldest is None else max(earliest, datetime.fromtimestamp(oldest, UTC))) - WINDOW_MARGIN
        return Sweep(way, now, at.timestamp(), since, at + WINDOW_MARGIN, words)

    def _last_page(self, word: str) -> int:
        return max(1, ceil(self._totals.get(word, 0) / (self.page_size or GUESSED_PAGE_SIZE)))

    def _prove(self, sweep: Sweep, page: TaskPage) -> None:
        """See from the rows of a windowed page whether the upstream took its times as they were meant; else give up."""
        made = [row.created_at for row in page.rows if row.created_at is not None]
        since, until = sweep.since, sweep.until
        if made and since is not None and until is not None and until - since < PROOF_MOST:
            self.is_understood = all(since - WINDOW_MARGIN <= instant <= until for instant in made)
        if not self.is_understood:
            self.current = None
