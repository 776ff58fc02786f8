"""The limit line: how early any program could see tasks finish under the upstream's limits, and without our code.

Computed, not measured: an answer takes no time, nobody is late, every slot is on its instant. What is given is when
each task was made and when it ended, the calls a second and the size of a page. Pollers, from best to worst:

* `knowing`: knows by itself when a task ends and only has to read its result. No program can be better.
* `listing`: finds out by the upstream's list, reads results as soon as it knows, and lists with what is left. The best
  of several ways to list, each figure by itself: this is the limit line for a program that knows no durations.
* `asking`: asks about each task that is old enough to have ended in turn, and never lists.

Imports nothing of the gateway. Run it to see the lines for a burst: `python -m tests.benchmarks.limits 1000`.
"""

from __future__ import annotations

import heapq
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from rich.console import Console
from rich.table import Table

CALLS_A_SECOND = 18.0


@dataclass(frozen=True, slots=True)
class Made:
    """A task: when it was made and when it ended, in seconds of one clock."""

    made_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Delays:
    """How long ends went unseen, in seconds, and how many calls were made for each."""

    p50: float
    p99: float
    calls_each: float


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all values do not exceed.

    >>> quantile([3, 1, 2, 4], 0.5), quantile([3, 1, 2, 4], 0.99)
    (2, 4)
    """
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def knowing(tasks: Sequence[Made], *, calls_a_second: float = CALLS_A_SECOND) -> Delays:
    """Read each result in the first free slot after its end, in the order of the ends.

    >>> knowing([Made(0, 10), Made(0, 10)], calls_a_second=1).p99
    1.0
    """
    slot, delays = float("-inf"), []
    for task in sorted(tasks, key=lambda task: task.ended_at):
        slot = max(slot + 1 / calls_a_second, task.ended_at)
        delays.append(slot - task.ended_at)
    return _delays(delays, calls=len(tasks))


def asking(tasks: Sequence[Made], *, calls_a_second: float = CALLS_A_SECOND) -> Delays:
    """Ask about one task after another that may have ended, the one that was asked about longest ago first."""
    earliest = min(task.ended_at - task.made_at for task in tasks)
    coming = deque(sorted(tasks, key=lambda task: task.made_at))
    turn: deque[Made] = deque()
    delays, calls, slot = [], 0, coming[0].made_at + earliest
    while coming or turn:
        while coming and coming[0].made_at + earliest <= slot:
            turn.appendleft(coming.popleft())
        if not turn:
            slot = coming[0].made_at + earliest
            continue
        task = turn.popleft()
        calls += 1
        if task.ended_at <= slot:
            delays.append(slot - task.ended_at)
        else:
            turn.append(task)
        slot += 1 / calls_a_second
    return _delays(delays, calls=calls)


def listing(tasks: Sequence[Made], *, page_size: int, calls_a_second: float = CALLS_A_SECOND) -> Delays:
    """List with every slot that no known end needs; the best of the ways below, each figure by itself."""
    ways = [_list_ended, _list_open, _list_shorter]
    runs = [_run(tasks, way, page_size=page_size, calls_a_second=calls_a_second) for way in ways]
    return Delays(min(run.p50 for run in runs), min(run.p99 for run in runs), min(run.calls_each for run in runs))


class _List:
    """The upstream's list as it stands at an instant, the newest task first."""

    def __init__(self, tasks: Sequence[Made]) -> None:
        self.newest_first = sorted(tasks, key=lambda task: task.made_at, reverse=True)

    def ended(self, at: float) -> list[int]:
        return [number for number, task in enumerate(self.newest_first) if task.ended_at <= at]

    def open(self, at: float) -> list[int]:
        return [number for number, task in enumerate(self.newest_first) if task.made_at <= at < task.ended_at]


# A way to list: makes one call after another, each told its instant, and says what it knows then to have ended, and
# whether it knows when. Without that nobody can read in the order of the ends, only in that of the finds.
Walk = Iterator[tuple[Sequence[int], bool]]
Way = Callable[["_List", "_Now", int], Walk]


@dataclass(slots=True)
class _Now:
    """The instant of the present slot."""

    at: float


def _list_ended(there: _List, now: _Now, page_size: int) -> Walk:
    """Walk through all that has ended, first page first: each page tells what is on it."""
    page = 0
    while True:
        rows = there.ended(now.at)
        yield rows[page * page_size : (page + 1) * page_size], True
        page += 1
        if page * page_size >= len(rows):
            return


def _list_open(there: _List, now: _Now, page_size: int) -> Walk:
    """Walk through all that is open, last page first: what none shows has ended."""
    began_at = now.at
    pages = max(1, ceil(len(there.open(began_at)) / page_size))
    shown: set[int] = set()
    for page in range(pages - 1, -1, -1):
        shown.update(there.open(now.at)[page * page_size : (page + 1) * page_size])
        if page:
            yield [], False
    made = [number for number, task in enumerate(there.newest_first) if task.made_at <= began_at]
    yield [number for number in made if number not in shown], False


def _list_shorter(there: _List, now: _Now, page_size: int) -> Walk:
    """Walk whichever way is shorter now."""
    way = _list_ended if len(there.ended(now.at)) <= len(there.open(now.at)) else _list_open
    return way(there, now, page_size)


def _run(tasks: Sequence[Made], way: Way, *, page_size: int, calls_a_second: float) -> Delays:
    """Read what is known to have ended, first; list with every other slot."""
    there, now = _List(tasks), _Now(min(task.made_at for task in tasks))
    known: list[tuple[float, int]] = []  # the ends that are to be read, in the order in which they will be
    seen: set[int] = set()
    delays: list[float] = []
    calls = 0
    walk: Walk = iter(())
    while len(delays) < len(tasks):
        if known:
            delays.append(now.at - there.newest_first[heapq.heappop(known)[1]].ended_at)
        else:
            found = next(walk, None)
            if found is None:
                walk = way(there, now, page_size)
                found = next(walk)
            numbers, knows_when = found
            for number in set(numbers) - seen:
                task = there.newest_first[number]
                if task.ended_at <= now.at:
                    seen.add(number)
                    heapq.heappush(known, (task.ended_at if knows_when else now.at, number))
        calls += 1
        now.at += 1 / calls_a_second
    return _delays(delays, calls=calls)


def _delays(delays: Sequence[float], *, calls: int) -> Delays:
    return Delays(quantile(delays, 0.5), quantile(delays, 0.99), calls / len(delays))


def burst(count: int, *, made_in_seconds: float, low: float, high: float, seed: int = 1) -> list[Made]:
    """Return so many tasks made one after another, each taking between `low` and `high` seconds."""
    dice = random.Random(seed)
    made = [made_in_seconds * number / count for number in range(count)]
    return [Made(at, at + dice.uniform(low, high)) for at in made]


def main(count: int) -> None:
    """Print the lines for a burst whose tasks end at four fifths of the pace."""
    tasks = burst(count, made_in_seconds=count / 100, low=10, high=10 + count / (0.8 * CALLS_A_SECOND))
    lines = {"knowing": knowing(tasks), "asking": asking(tasks)}
    lines |= {f"listing, pages of {size}": listing(tasks, page_size=size) for size in (100, 10)}
    table = Table("poller", "p50 s", "p99 s", "calls each", title=f"{count} tasks, {CALLS_A_SECOND:.0f} calls a second")
    for name, line in lines.items():
        table.add_row(name, f"{line.p50:.2f}", f"{line.p99:.2f}", f"{line.calls_each:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
