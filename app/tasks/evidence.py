"""Evidence: what the upstream's list says about attempts whose answer was lost. Pure: rows in, verdicts out.

Three kinds decide, in this order; less decides nothing (design.md 3):

1. The `request_id` of the upstream's 5xx is a row's.
2. On a main account that nobody else uses: a row of our key, made while this call may have been worked on, which no
   other call of ours can have made and beside which this call has no other. Where calls overlap, a row that only one
   of them can have made is that one's, and what is left may then be told apart.
3. The row has succeeded and echoes the prompt of this attempt and of no other.

Absent is what two complete lists, some time apart and late enough, do not show. Any row that could be it, also a
stranger's, keeps an attempt in doubt.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from app.upstream.answers import TaskRow

# A call that was cut off may be worked on a moment longer. Less than the pause after a lost answer (attempts.py), so
# that what leaves after it is not mistaken for it.
LATE = timedelta(seconds=4)
SLACK = timedelta(seconds=5)  # a row so near to a call is not given to it, but it is not proven absent either
PROOF_AFTER = timedelta(seconds=120)  # the deadline of its call: the list may lag so far behind
PROOF_APART = timedelta(seconds=60)
PROOF_MARGIN = timedelta(minutes=10)  # around the call: what a proof of absence has to show
EARLY_LOOKS_APART = timedelta(seconds=30)
LATE_LOOKS_APART = timedelta(minutes=10)
UNKNOWN_OFFSET = timedelta(seconds=60)  # between the upstream's clock and ours, before any receipt has shown it
ORPHAN_AGE = timedelta(minutes=5)
OFFSET_SLACK = timedelta(milliseconds=50)

Name = tuple[UUID, int]  # task and attempt


@dataclass(frozen=True, slots=True)
class Sending:
    """An attempt of ours without a receipt. `is_open`: it is in doubt, else it is on the wire or was given up."""

    name: Name
    sent_at: datetime
    ends_at: datetime  # the answer was lost, or the call was given up
    call_deadline_at: datetime
    request_id: str = ""
    api_key_id: str = ""  # the upstream's id of the key that it was called with, once learned
    prompt: str = ""  # a hash of it
    absent_at: datetime | None = None  # the first complete list that did not show it
    is_open: bool = True


@dataclass(frozen=True, slots=True)
class Offset:
    """How far the upstream's clock may be ahead of ours: at least and at most."""

    low: timedelta = -UNKNOWN_OFFSET
    high: timedelta = UNKNOWN_OFFSET


@dataclass(frozen=True, slots=True)
class Shown:
    """What a list showed of one model, without the rows of tasks whose receipts we have."""

    rows: Sequence[TaskRow]
    began_at: datetime
    since: datetime
    until: datetime
    is_complete: bool = True
    is_exclusive: bool = False  # nobody else uses the main account
    offset: Offset = field(default_factory=Offset)
    keys: frozenset[str] = frozenset()  # the upstream's ids of our keys, as far as learned
    echoes: Mapping[str, str] = field(default_factory=dict)  # by upstream task id: a hash of the prompt, or ""


@dataclass(frozen=True, slots=True)
class Adopt:
    """The row is this attempt's."""

    row: TaskRow
    why: str


@dataclass(frozen=True, slots=True)
class Missing:
    """No row could be it, since the list that began then. `is_proof`: late enough, twice, and far enough apart."""

    since: datetime
    is_proof: bool


@dataclass(frozen=True, slots=True)
class Undecided:
    """These rows could be it; or none, and it is too early for that to mean anything."""

    candidates: Sequence[TaskRow]


Verdict = Adopt | Missing | Undecided


def judge(sendings: Sequence[Sending], shown: Shown) -> dict[Name, Verdict]:
    """Return what a list says about each attempt that is in doubt.

    >>> from datetime import UTC
    >>> noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    >>> lost = Sending((UUID(int=1), 1), noon, noon, noon, api_key_id="7")
    >>> row = TaskRow("t-1", "PENDING", "wan2.6-image", "r", "7", "", noon, None, None)
    >>> shown = Shown([row], noon, noon - PROOF_MARGIN, noon + PROOF_MARGIN, is_exclusive=True)
    >>> judge([lost], shown)[lost.name].why
    'the only candidate'
    >>> judge([lost], Shown([row], noon, shown.since, shown.until))[lost.name].candidates == [row]
    True
    """
    match_ = _Match(sendings, shown)
    match_.by_request_id()
    if shown.is_exclusive and shown.is_complete:
        match_.by_elimination()
    match_.by_echo()
    return {
        sending.name: match_.adopted.get(index) or _without_a_row(sending, shown, candidates=match_.candidates(index))
        for index, sending in enumerate(sendings)
        if sending.is_open
    }


def find_orphans(sendings: Sequence[Sending], shown: Shown, *, before: datetime) -> list[TaskRow]:
    """Return rows that are ours, by a main account that is only ours or by a key, and that nothing of ours can have
    made that is still open. Young ones may be of calls whose record is being written.
    """
    match_ = _Match(
        [sending for sending in sendings if sending.is_open or sending.ends_at + ORPHAN_AGE > before], shown
    )
    known = shown.keys
    return [
        row
        for row in match_.unclaimed()
        if (shown.is_exclusive or row.api_key_id in known)
        and row.created_at is not None
        and row.created_at < before - ORPHAN_AGE
    ]


def offset_of(receipts: Iterable[tuple[datetime, datetime, datetime]]) -> Offset:
    """Return how far the upstream's clock is ahead of ours, from tasks with receipts: made (there), sent, received.

    Each was made between its sending and its receipt. Where they contradict each other a clock was set meanwhile, and
    all of it may be true.

    >>> from datetime import UTC
    >>> def at(seconds): return datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=seconds)
    >>> offset = offset_of([(at(3.1), at(0), at(0.2)), (at(13.3), at(10), at(10.4))])
    >>> offset.low.total_seconds(), offset.high.total_seconds()
    (2.85, 3.151)
    >>> offset_of([]) == Offset()
    True
    """
    known = [(made - received, made - sent + timedelta(milliseconds=1)) for made, sent, received in receipts]
    if not known:
        return Offset()
    low, high = max(low for low, _ in known), min(high for _, high in known)
    if low > high:
        low, high = min(low for low, _ in known), max(high for _, high in known)
    return Offset(low - OFFSET_SLACK, high + OFFSET_SLACK)


def next_look(call_deadline_at: datetime, absent_at: datetime | None, *, now: datetime) -> datetime:
    """Return when a list may next say something new about an attempt in doubt.

    >>> from datetime import UTC
    >>> def at(seconds): return datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=seconds)
    >>> [(next_look(at(30), None, now=at(now)) - at(now)).total_seconds() for now in (10, 40, 149, 150, 7200)]
    [30.0, 30.0, 1.0, 600.0, 600.0]
    >>> (next_look(at(30), at(150), now=at(151)) - at(0)).total_seconds()
    210.0
    """
    if absent_at is not None:
        return max(absent_at + PROOF_APART, now)
    proof_at = call_deadline_at + PROOF_AFTER
    return min(now + EARLY_LOOKS_APART, proof_at) if now < proof_at else now + LATE_LOOKS_APART


def _without_a_row(sending: Sending, shown: Shown, *, candidates: Sequence[TaskRow]) -> Verdict:
    """Judge an attempt that no row was found to be."""
    is_late_enough = shown.began_at >= sending.call_deadline_at + PROOF_AFTER
    is_wide = shown.since <= sending.sent_at - PROOF_MARGIN and shown.until >= sending.call_deadline_at + PROOF_MARGIN
    if candidates or not (is_late_enough and is_wide and shown.is_complete and _covers(shown, sending)):
        return Undecided(candidates)
    first = sending.absent_at or shown.began_at
    return Missing(first, is_proof=shown.began_at >= first + PROOF_APART)


def _covers(shown: Shown, sending: Sending) -> bool:
    """Tell whether a list would show whatever this call can have made, by the upstream's clock."""
    first, last = sending.sent_at + shown.offset.low, sending.ends_at + LATE + shown.offset.high
    return shown.since <= first and last <= shown.until


class _Match:
    """Which rows each sending can have made, and which sendings each row; what is adopted leaves both."""

    def __init__(self, sendings: Sequence[Sending], shown: Shown) -> None:
        self._sendings, self._shown = sendings, shown
        self._rows = sorted(shown.rows, key=lambda row: (row.created_at is None, row.created_at or shown.began_at))
        self._could: dict[int, set[int]] = {index: set() for index in range(len(sendings))}
        self._makers: dict[int, set[int]] = defaultdict(set)
        self._made = [row.created_at for row in self._rows if row.created_at is not None]
        self._given: set[int] = set()
        self.adopted: dict[int, Adopt] = {}
        for index, sending in enumerate(sendings):
            for place in self._places(sending, slack=timedelta(0)):
                self._could[index].add(place)
                self._makers[place].add(index)

    def candidates(self, index: int) -> list[TaskRow]:
        """Return the rows that are nobody's and could be a sending's, with some slack: they keep it in doubt."""
        near = self._places(self._sendings[index], slack=SLACK)
        return [self._rows[place] for place in near if place not in self._given]

    def _places(self, sending: Sending, *, slack: timedelta) -> list[int]:
        """Return where the rows stand that were made while a call may have been worked on, or nobody knows when."""
        offset = self._shown.offset
        first = bisect_left(self._made, sending.sent_at + offset.low - slack)
        last = bisect_right(self._made, sending.ends_at + LATE + offset.high + slack)
        places = (*range(first, last), *range(len(self._made), len(self._rows)))
        return [place for place in places if self._may_be_of_its_key(sending, self._rows[place])]

    def unclaimed(self) -> list[TaskRow]:
        """Return the rows that no sending can have made."""
        return [row for place, row in enumerate(self._rows) if place not in self._makers]

    def by_request_id(self) -> None:
        """Adopt the rows that have the request id of a 5xx."""
        by_id = {row.request_id: place for place, row in enumerate(self._rows) if row.request_id}
        for index, sending in enumerate(self._sendings):
            place = by_id.get(sending.request_id) if sending.request_id and sending.is_open else None
            if place is not None:
                self._give(place, index, why="request id")

    def by_elimination(self) -> None:
        """Give rows that only one sending can have made to that one, until that tells nothing more."""
        while True:
            sole: dict[int, list[int]] = defaultdict(list)
            for place, makers in self._makers.items():
                if len(makers) == 1:
                    sole[next(iter(makers))].append(place)
            given = [(index, places[0]) for index, places in sole.items() if len(places) == 1]
            given = [(index, place) for index, place in given if self._may_be_given(index, place)]
            if not given:
                return
            for index, place in given:
                self._give(place, index, why="the only candidate")

    def by_echo(self) -> None:
        """Adopt the one row that echoes what an attempt asked, where all rows that could be it have spoken."""
        echoes = self._shown.echoes
        for index, sending in enumerate(self._sendings):
            told = {place: echoes.get(self._rows[place].task_id, "") for place in self._could[index]}
            same = [place for place, echo in told.items() if echo and echo == sending.prompt]
            if not sending.is_open or len(same) != 1 or not all(told.values()):
                continue
            others = [self._sendings[maker].prompt for maker in self._makers[same[0]] - {index}]
            if all(prompt and prompt != sending.prompt for prompt in others):
                self._give(same[0], index, why="echoed prompt")

    def _give(self, place: int, index: int, *, why: str) -> None:
        if self._sendings[index].is_open:
            self.adopted[index] = Adopt(self._rows[place], why)
        self._given.add(place)
        for maker in self._makers.pop(place, set()):
            self._could[maker].discard(place)
        for other in self._could[index]:
            self._makers[other].discard(index)
        self._could[index] = set()

    def _may_be_of_its_key(self, sending: Sending, row: TaskRow) -> bool:
        if not row.api_key_id:
            return True
        if sending.api_key_id:
            return row.api_key_id == sending.api_key_id
        return row.api_key_id not in self._shown.keys  # that is another key of ours

    def _may_be_given(self, index: int, place: int) -> bool:
        """Only what is of our learned key, to a call whose other rows would have been shown too."""
        sending, row = self._sendings[index], self._rows[place]
        return bool(row.api_key_id) and row.api_key_id == sending.api_key_id and _covers(self._shown, sending)
