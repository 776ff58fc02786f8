"""What the owner of an account calls next: pure decisions over times and counts. Knows no row and no wire.

The rules, in their order. Shares are of the calls made while results wait to be read; what nobody uses goes to them.

1. A cancel that a team waits for, at most every fourth call.
2. What others ask through the owner (doubts, probes), at most every eighth.
3. The result of a task known to be finished. Below six hours to its deadline the earliest goes first; else teams take
   turns by weight. A page of the list, at most every sixteenth, where a team has none that is known, and may have.
4. With few tasks that may have finished: a look at the one that has waited longest. With many: the next page of the
   list, which tells of a hundred at once, unless looks have lately found an end so often that they are the cheaper.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

LOOK_SECONDS = 1.0  # no task is looked at more often
EARLY_LOOK_SECONDS = 2.0  # before a task can have finished, as far as is known: models may become quicker
OVERDUE_SHARE = 0.02  # a task that takes much longer than any before is looked at more and more seldom,
OVERDUE_MOST_SECONDS = 30.0  # but this often at least
FEW = 18  # so many single looks a second cost no more than the pace
URGENT_SECONDS = 6 * 3600.0  # to the deadline
SAMPLES = 100
ENOUGH_SAMPLES = 5
FAILED_LOOK_MOST_SECONDS = 60.0


class Kind(StrEnum):
    """What a slot is used for."""

    CANCEL = "cancel"
    ASKED = "asked"  # somebody else's call, made through the owner
    READ = "read"  # the result of a task that has finished
    LOOK = "look"  # at a task that may have
    LIST = "list"  # a page


# One call in so many, while results wait to be read.
SHARES: Mapping[Kind, int] = {Kind.CANCEL: 4, Kind.ASKED: 8, Kind.LIST: 16}


@dataclass(frozen=True, slots=True)
class Head:
    """The first in a line: which task, and how long until the upstream forgets it."""

    task: Hashable
    left_seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """One team's tasks: how far it has been served in virtual time, its first finished one, its first that may be."""

    served: float
    finished: Head | None = None
    ripe: Head | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the next call depends on.

    `plausible` tasks are old enough to have finished; `hit_share` of the last looks found an end. `sweep_pages` is what
    a sweep would cost; `may_list`: no page is on its way, and the list can be read. `since`: calls since the last of a
    kind.
    """

    lines: Sequence[Line] = ()
    wish: Hashable = None
    asked: int = 0
    plausible: int = 0
    hit_share: float = 0.5
    sweep_pages: int = 1
    may_list: bool = False
    since: Mapping[Kind, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """The next call, and the task it is about."""

    kind: Kind
    task: Hashable = None


def plan(now: Situation) -> Call | None:
    """Return what to call next; None: nothing, until something changes.

    >>> day, hour = 86_400.0, 3_600.0
    >>> def tell(**now): return plan(Situation(**now))
    >>> tell(lines=[Line(0, ripe=Head("a", day))], plausible=1)
    Call(kind=<Kind.LOOK: 'look'>, task='a')

    A result goes before a look and a page; teams take turns; close to the deadline the earliest is first:

    >>> two = [Line(2, finished=Head("a", day)), Line(1, finished=Head("b", day), ripe=Head("c", day))]
    >>> tell(lines=two, plausible=900, may_list=True).task
    'b'
    >>> tell(lines=[Line(9, finished=Head("late", hour)), *two]).task
    'late'
    >>> unknown = Line(5, ripe=Head("x", day))
    >>> tell(lines=[*two, unknown], plausible=900, may_list=True).kind.value  # what has that team?
    'list'

    Many tasks that may have finished are looked for in the list, where it can be read:

    >>> many = {"lines": [Line(0, ripe=Head("a", day))], "plausible": 900, "sweep_pages": 10}
    >>> tell(**many, may_list=True).kind.value, tell(**many)
    ('list', None)
    >>> tell(**many, may_list=True, hit_share=0.995).kind.value  # nearly every look finds an end
    'look'

    Cancels come first, but not alone; others have their share, and everything when there is no result to read:

    >>> tell(lines=two, wish="w").kind.value, tell(lines=two, wish="w", since={Kind.CANCEL: 2}).kind.value
    ('cancel', 'read')
    >>> tell(wish="w", asked=1, since={Kind.CANCEL: 0}).kind.value
    'cancel'
    >>> tell(lines=two, asked=3, since={Kind.ASKED: 7}).kind.value, tell() is None
    ('asked', True)
    """
    finished = [line.finished for line in _in_turn(now.lines) if line.finished is not None]
    ripe = [line.ripe for line in _in_turn(now.lines) if line.ripe is not None]
    prefers_list = _prefers_list(now)
    is_list_missed = not finished or any(line.finished is None for line in now.lines)

    def has_turn(kind: Kind) -> bool:
        return not finished or now.since.get(kind, SHARES[kind]) >= SHARES[kind] - 1

    if now.wish is not None and has_turn(Kind.CANCEL):
        return Call(Kind.CANCEL, now.wish)
    if now.asked and has_turn(Kind.ASKED):
        return Call(Kind.ASKED)
    if prefers_list and now.may_list and is_list_missed and has_turn(Kind.LIST):
        return Call(Kind.LIST)
    if finished:
        return Call(Kind.READ, _most_urgent(finished).task)
    if ripe and not prefers_list:
        return Call(Kind.LOOK, _most_urgent(ripe).task)
    return None


def _in_turn(lines: Sequence[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: line.served)


def _most_urgent(heads: Sequence[Head]) -> Head:
    """Return the earliest deadline below six hours, else the first in turn."""
    urgent = [head for head in heads if head.left_seconds < URGENT_SECONDS]
    return min(urgent, key=lambda head: head.left_seconds) if urgent else heads[0]


def _prefers_list(now: Situation) -> bool:
    """Tell whether a sweep finds ends at fewer calls than looks: it shows all, and each end is read once more."""
    return now.plausible * (1 - now.hit_share) > max(FEW, now.sweep_pages)


def look_again_in(age_seconds: float, learned: "Learned", *, open_count: int) -> float:
    """Return the seconds until a task that was just seen unfinished is worth a look.

    >>> learned = Learned(80.0, 100.0)
    >>> look_again_in(85, learned, open_count=7), look_again_in(10, learned, open_count=7)
    (1.0, 2.0)
    >>> look_again_in(10, learned, open_count=1800), look_again_in(79.5, learned, open_count=7)
    (70.0, 1.0)
    >>> look_again_in(600, learned, open_count=7), look_again_in(9000, learned, open_count=7)
    (10.0, 30.0)
    """
    if age_seconds > learned.latest_seconds:
        overdue = (age_seconds - learned.latest_seconds) * OVERDUE_SHARE
        return min(max(LOOK_SECONDS, overdue), OVERDUE_MOST_SECONDS)
    early = EARLY_LOOK_SECONDS * max(1.0, open_count / FEW)
    return max(LOOK_SECONDS, min(learned.earliest_seconds - age_seconds, early))


def failed_look_again_in(failures: int) -> float:
    """Return the seconds after which a task is asked about again whose last looks were not answered.

    >>> [failed_look_again_in(failures) for failures in (1, 2, 3, 4, 20)]
    [1.0, 1.0, 2.0, 4.0, 60.0]
    """
    return min(FAILED_LOOK_MOST_SECONDS, max(LOOK_SECONDS, 2.0 ** (min(failures, 10) - 2)))


@dataclass(frozen=True, slots=True)
class Learned:
    """Between which ages tasks of a model are seen to finish; without any seen, any age may be."""

    earliest_seconds: float = 0.0
    latest_seconds: float = 900.0


def learned_from(samples: Iterable[float], mean_seconds: float | None) -> Learned:
    """Return what the last durations of a model say; with too few of them, its remembered mean.

    >>> learned_from([90, 95, 100, 92, 91], None)
    Learned(earliest_seconds=72.0, latest_seconds=300.0)
    >>> learned_from([], 90), learned_from([], None).earliest_seconds
    (Learned(earliest_seconds=45.0, latest_seconds=270.0), 0.0)
    """
    seen = list(samples)
    if len(seen) >= ENOUGH_SAMPLES:
        return Learned(0.8 * min(seen), 3.0 * max(seen))
    return Learned(0.5 * mean_seconds, 3.0 * mean_seconds) if mean_seconds else Learned()


class Durations:
    """The last durations of one model, from its creation to its end, and what was remembered of it before."""

    def __init__(self) -> None:
        self.mean_seconds: float | None = None
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._learned: Learned | None = None

    @property
    def learned(self) -> Learned:
        """What is known now."""
        if self._learned is None:
            self._learned = learned_from(self._samples, self.mean_seconds)
        return self._learned

    def remember(self, mean_seconds: float | None) -> None:
        """Take in what was learned before this process."""
        if mean_seconds is not None and self.mean_seconds is None:
            self.mean_seconds, self._learned = mean_seconds, None

    def add(self, seconds: float) -> None:
        """Take in one more duration."""
        if seconds >= 0:
            self._samples.append(seconds)
            self._learned = None
