"""What an owner calls next and how fast: the plan, the walks through the list, the lines of the picture, the pace."""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID

import pytest

from app.lib.pace import CLOSEST, MOST_BEHIND_SECONDS, SPARE_ON_WIRE, Pace, Wire
from app.tasks.picture import LIST_LAG_SECONDS, Open, Picture, Place
from app.tasks.schedule import (
    FEW,
    SHARES,
    URGENT_SECONDS,
    Call,
    Head,
    Kind,
    Line,
    Situation,
    look_again_in,
    plan,
)
from app.tasks.sweep import Sweeps, Way
from app.upstream.answers import TaskPage, TaskRow

NOW, AT = 1_000.0, 1_800_000_000.0  # monotonic; epoch
INSTANT = datetime.fromtimestamp(AT, UTC)
DAY = 86_400.0
RATE = 18.0


# --- the plan ------------------------------------------------------------------------------------------------------


def test_while_results_wait_everybody_gets_no_more_than_a_share() -> None:
    since: Counter[Kind] = Counter(SHARES)
    lines = [Line(0, finished=Head("a", DAY)), Line(0, ripe=Head("b", DAY))]
    used: Counter[Kind] = Counter()
    for _ in range(16 * 30):
        call = plan(Situation(lines, wish="w", asked=9, plausible=500, may_list=True, since=since))
        assert call is not None
        since.update(dict.fromkeys(SHARES, 1))
        since[call.kind] = 0
        used[call.kind] += 1
    assert {kind: used.total() / used[kind] for kind in SHARES} == {
        kind: pytest.approx(share, rel=0.1) for kind, share in SHARES.items()
    }


def test_one_team_alone_is_not_kept_waiting_by_pages() -> None:
    lines = [Line(0, finished=Head("a", DAY), ripe=Head("b", DAY))]
    assert plan(Situation(lines, plausible=500, may_list=True)) == Call(Kind.READ, "a")


def test_teams_take_turns_and_the_deadline_counts_only_when_it_is_near() -> None:
    mine, theirs = Line(1.0, finished=Head("mine", DAY)), Line(2.0, finished=Head("theirs", URGENT_SECONDS + 1))
    assert plan(Situation([theirs, mine])) == Call(Kind.READ, "mine")
    late = replace(theirs, finished=Head("theirs", URGENT_SECONDS - 1))
    assert plan(Situation([mine, late])) == Call(Kind.READ, "theirs")


@pytest.mark.parametrize("hit_share", [0.0, 0.5, 1.0])
def test_few_tasks_are_looked_at_and_never_listed(hit_share: float) -> None:
    lines = [Line(0, ripe=Head("a", DAY))]
    call = plan(Situation(lines, plausible=FEW, hit_share=hit_share, may_list=True))
    assert call == Call(Kind.LOOK, "a")


def test_a_list_that_cannot_be_read_leaves_looks() -> None:
    lines = [Line(0, ripe=Head("a", DAY))]
    call = plan(Situation(lines, plausible=900, hit_share=0.0, may_list=False, sweep_pages=10**6))
    assert call == Call(Kind.LOOK, "a")


def test_no_task_is_looked_at_twice_in_a_second() -> None:
    durations = Picture(retention_seconds=DAY).durations("m")
    for seconds in (60, 60, 60, 60, 60):
        durations.add(seconds)
    for age in range(0, 5_000, 7):
        for count in (1, 100, 100_000):
            assert look_again_in(age, durations.learned, open_count=count) >= 1.0


# --- the picture ---------------------------------------------------------------------------------------------------


def row(number: int, *, age: float = 60.0, team: int = 1, **more: Any) -> Mapping[str, Any]:
    """A task's row, so many seconds old."""
    return {
        "id": UUID(int=number),
        "attempt": 1,
        "state": "running",
        "team_id": UUID(int=team),
        "account_id": UUID(int=7),
        "place_id": None,
        "model": "m",
        "upstream_task_id": f"t-{number}",
        "submitted_at": datetime.fromtimestamp(AT - age, UTC),
        "waited_until": None,
        "cancel_requested_at": None,
        "weight": 1,
        "learned_seconds": None,
        **more,
    }


def picture_of(*rows: Mapping[str, Any]) -> Picture:
    picture = Picture(retention_seconds=DAY)
    for each in rows:
        picture.put(each, now=NOW, at=AT)
    picture.ripen(now=NOW, at=AT)
    return picture


def the(picture: Picture, number: int) -> Open:
    task = picture.find(UUID(int=number))
    assert task is not None
    return task


def read_in_turn(picture: Picture, count: int) -> list[int]:
    """Read results as the plan says, so many; return whose they were."""
    order = []
    for _ in range(count):
        call = plan(Situation(picture.lines(at=AT)))
        assert call is not None
        assert isinstance(call.task, Open)
        picture.take(call.task)
        picture.drop(call.task)
        order.append(call.task.id.int)
    return order


def test_results_go_round_the_teams_by_weight() -> None:
    rows = [row(number, team=number % 2, weight=1 + 2 * (number % 2)) for number in range(1, 41)]
    picture = picture_of(*rows)
    for number in range(1, 41):
        picture.say_finished(the(picture, number), now=NOW, at=AT)
    teams = Counter(number % 2 for number in read_in_turn(picture, 20))
    assert teams == {1: 15, 0: 5}


def test_a_team_that_comes_late_begins_at_the_turn_of_the_others() -> None:
    picture = picture_of(*(row(number, team=1) for number in range(1, 31)))
    for number in range(1, 31):
        picture.say_finished(the(picture, number), now=NOW, at=AT)
    read_in_turn(picture, 10)
    for number in range(31, 41):
        picture.put(row(number, team=2), now=NOW, at=AT)
        picture.say_finished(the(picture, number), now=NOW, at=AT)
    teams = Counter(number > 30 for number in read_in_turn(picture, 10))
    assert teams == {True: 5, False: 5}


def test_in_a_line_the_urgent_go_by_deadline_then_the_waited_for_then_what_ended_first() -> None:
    ages = {1: DAY - 3_600, 2: DAY - 7_200, 3: 60, 4: 60, 5: 60}
    picture = picture_of(*(row(n, age=age, waited_until=INSTANT if n == 3 else None) for n, age in ages.items()))
    for number, ended_ago in ((5, 9.0), (4, 5.0), (3, 1.0), (2, 50.0), (1, 1.0)):
        picture.say_finished(the(picture, number), now=NOW, at=AT, ended_at=AT - ended_ago)
    assert read_in_turn(picture, 5) == [1, 2, 3, 5, 4]


def test_what_a_reading_does_not_show_is_forgotten_but_not_what_came_meanwhile() -> None:
    picture = picture_of(row(1), row(2))
    reading = picture.begin_reading()
    picture.put(row(2), now=NOW, at=AT)
    picture.put(row(3), now=NOW, at=AT)
    picture.end_reading(reading)
    assert sorted(task.id.int for task in picture) == [2, 3]


def test_a_reading_that_began_before_an_end_does_not_bring_the_task_back() -> None:
    picture = picture_of(row(1))
    picture.end(the(picture, 1), now=NOW)
    picture.put(row(1), now=NOW + 1, at=AT)
    assert len(picture) == 0
    picture.put(row(1), now=NOW + 60, at=AT)  # the database says so for good: then it is
    assert len(picture) == 1


def test_a_task_that_was_dropped_while_it_was_asked_about_stays_dropped() -> None:
    picture = picture_of(row(1))
    task = the(picture, 1)
    picture.take(task)
    picture.drop(task)
    picture.say_unfinished(task, now=NOW, at=AT)
    assert (len(picture), picture.plausible_count, picture.ripen(now=NOW + 99, at=AT)) == (0, 0, None)


def test_a_list_that_is_wrong_about_a_task_costs_fewer_and_fewer_calls() -> None:
    picture = picture_of(row(1))
    task, asked = the(picture, 1), []
    for second in range(120):
        now, at = NOW + second, AT + second
        picture.say_missing(task, now=now, at=at)
        if task.place is Place.FINISHED:
            picture.take(task)
            picture.say_unfinished(task, now=now, at=at)
            asked.append(second)
    assert asked == [0, 2, 6, 14, 30, 60, 90]


def test_a_task_whose_looks_fail_is_left_alone_whatever_the_list_says() -> None:
    picture = picture_of(row(1))
    task = the(picture, 1)
    for _ in range(6):
        picture.take(task)
        picture.say_unanswered(task, now=NOW, at=AT)
    picture.say_finished(task, now=NOW + 15, at=AT)
    assert task.place is Place.LATER
    picture.say_finished(task, now=NOW + 17, at=AT)
    assert task.place is Place.FINISHED


def test_counts_stay_true_through_any_story() -> None:
    picture = picture_of(*(row(number) for number in range(1, 9)))
    for number in range(1, 9):
        task = the(picture, number)
        picture.say_finished(task, now=NOW, at=AT)
        picture.say_finished(task, now=NOW, at=AT)
        if number % 2:
            picture.take(task)
            picture.say_unfinished(task, now=NOW, at=AT)
        if number % 3 == 0:
            picture.drop(task)
    places = Counter(task.place for task in picture)
    assert picture.finished_count == places[Place.FINISHED]
    assert picture.plausible_count == sum(task.is_plausible for task in picture) == places[Place.LATER]


# --- sweeps --------------------------------------------------------------------------------------------------------


class FakeList:
    """An upstream list that can be walked: its rows, newest first, and the most it puts on a page."""

    def __init__(self, rows: list[TaskRow], *, most: int = 10, understands: bool = True) -> None:
        self.rows, self.most, self.understands = rows, most, understands
        self.asked: list[tuple[str | None, int]] = []

    def answer(self, query: Any) -> TaskPage:
        self.asked.append((query.word, query.page_no))
        found = [each for each in self.rows if query.word in (None, "", each.word)]
        if query.since is not None:
            shift = timedelta(0) if self.understands else timedelta(hours=8)
            window = (query.since + shift, query.until + shift)
            found = [each for each in found if each.created_at and window[0] <= each.created_at <= window[1]]
        size = min(query.page_size, self.most)
        first = (query.page_no - 1) * size
        return TaskPage(tuple(found[first : first + size]), len(found), size, max(1, -(-len(found) // size)))


def listed(number: int, word: str, *, age: float = 60.0) -> TaskRow:
    return TaskRow(f"t-{number}", word, "m", "r", "k", "c", datetime.fromtimestamp(AT - age, UTC), None, None)


def walk(sweeps: Sweeps, there: FakeList, picture: Picture, *, now: float = NOW, until: int = 200) -> list[str]:
    """Walk one sweep to its end; return what its unfinished were, or nothing when it was given up."""
    for _ in range(until):
        page = there.answer(sweeps.next_query(now, at=INSTANT, picture=picture))
        sweep = sweeps.current
        assert sweep is not None
        sweep.shown.update(each.task_id for each in page.rows if each.word in ("PENDING", "RUNNING"))
        whole = sweeps.take(page, now=now, unfinished_count=picture.unfinished_count)
        if whole is not None:
            return sorted(whole.shown) if whole.way is Way.UNFINISHED else []
        if sweeps.current is None:
            return []
    raise AssertionError("the walk never ended")


@pytest.mark.parametrize("open_count", [1, 9, 10, 11, 35, 100])
def test_a_walk_through_the_unfinished_sees_every_page_once(open_count: int) -> None:
    picture = picture_of(*(row(number) for number in range(1, open_count + 1)))
    there = FakeList([listed(number, "RUNNING") for number in range(1, open_count + 1)], understands=False)
    sweeps = Sweeps()
    walk(sweeps, there, picture)  # finds out that its window means nothing here
    assert len(walk(sweeps, there, picture, now=NOW + 1)) == open_count
    there.asked.clear()
    assert len(walk(sweeps, there, picture, now=NOW + 2)) == open_count
    pages = -(-open_count // 10)
    assert there.asked == [("RUNNING", number) for number in range(pages, 0, -1)]


def test_rows_that_leave_during_the_walk_hide_none_that_stay() -> None:
    numbers = list(range(1, 96))
    picture = picture_of(*(row(number) for number in numbers))
    there = FakeList([listed(number, "RUNNING") for number in numbers], understands=False)
    sweeps = Sweeps()
    walk(sweeps, there, picture)
    walk(sweeps, there, picture, now=NOW + 1)
    shown: set[str] = set()
    while True:
        page = there.answer(sweeps.next_query(NOW + 2, at=INSTANT, picture=picture))
        shown.update(each.task_id for each in page.rows)
        if sweeps.take(page, now=NOW + 2, unfinished_count=95) is not None:
            break
        del there.rows[len(there.rows) // 2]
    assert {each.task_id for each in there.rows} <= shown


def test_the_shorter_way_is_walked_and_the_other_one_now_and_then() -> None:
    open_numbers, ended = range(1, 101), range(101, 121)
    picture = picture_of(*(row(number) for number in (*open_numbers, *ended)))
    rows = [listed(number, "RUNNING") for number in open_numbers] + [listed(number, "SUCCEEDED") for number in ended]
    there, sweeps = FakeList(rows), Sweeps()
    walk(sweeps, there, picture)
    assert there.asked[:3] == [("", 1), ("SUCCEEDED", 1), ("SUCCEEDED", 2)]
    there.asked.clear()
    words = []
    for step in range(1, 100):
        walk(sweeps, there, picture, now=NOW + step)
        words.append(there.asked[-1][0])
        there.asked.clear()
    assert set(words) == {"SUCCEEDED", "FAILED", "RUNNING"}
    assert 1 <= words.count("RUNNING") <= 2


def test_a_window_that_is_misunderstood_is_not_relied_on() -> None:
    picture = picture_of(*(row(number) for number in range(1, 31)))
    there = FakeList([listed(number, "RUNNING") for number in range(1, 31)], understands=False)
    sweeps = Sweeps()
    for step in range(5):
        walk(sweeps, there, picture, now=NOW + step)
    assert not sweeps.is_understood
    assert Counter(word for word, _ in there.asked)[""] == 1


def test_a_page_that_is_refused_is_asked_for_smaller_and_one_that_fails_later() -> None:
    picture, sweeps = picture_of(*(row(number) for number in range(1, 31))), Sweeps()
    sizes = []
    for _ in range(4):
        sizes.append(sweeps.next_query(NOW, at=INSTANT, picture=picture).page_size)
        sweeps.fail(NOW, refused=True)
    assert sizes == [1_000, 100, 10, 10]
    assert not sweeps.may_list(NOW + 4)
    assert sweeps.pages(NOW, unfinished_count=30) > 1_000
    assert sweeps.may_list(NOW + 16)


def test_a_server_that_cuts_its_pages_is_believed() -> None:
    picture = picture_of(*(row(number) for number in range(1, 31)))
    there, sweeps = FakeList([listed(number, "RUNNING") for number in range(1, 31)], most=7), Sweeps()
    walk(sweeps, there, picture)
    assert sweeps.page_size == 7


def test_a_young_task_is_missing_from_no_list() -> None:
    picture = picture_of(row(1, age=LIST_LAG_SECONDS - 1), row(2, age=LIST_LAG_SECONDS + 1))
    assert [task.id.int for task in picture.listed(at=AT)] == [2]


# --- the pace ------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def spend_all(pace: Pace, clock: Clock, *, seconds: float) -> list[float]:
    """Take every slot as it comes for so long; return when each was taken."""
    taken, until = [], clock.now + seconds
    while clock.now + pace.free_in() < until:
        clock.now += pace.free_in()
        pace.spend()
        taken.append(clock.now)
    clock.now = until
    return taken


def most_in_a_second(times: list[float]) -> int:
    return max(sum(at <= other < at + 1.0 - 1e-9 for other in times) for at in times)


def test_slots_are_even_and_none_is_lost() -> None:
    clock = Clock()
    taken = spend_all(Pace(RATE, monotonic=clock), clock, seconds=10)
    assert len(taken) == pytest.approx(10 * RATE, abs=1)
    assert all(b - a == pytest.approx(1 / RATE) for a, b in pairwise(taken))


@pytest.mark.parametrize(("stall", "lost_slots"), [(0.05, 0), (0.2, 0), (0.45, 5)])
def test_a_stall_is_made_up_for_inside_its_second_and_none_has_more_than_the_rate(
    stall: float, lost_slots: int
) -> None:
    clock = Clock()
    pace = Pace(RATE, monotonic=clock)
    taken = spend_all(pace, clock, seconds=2)
    clock.now += stall
    taken += spend_all(pace, clock, seconds=10)
    late = [at - taken[0] - number / RATE for number, at in enumerate(taken)]
    assert min(late[-int(RATE) :]) <= lost_slots / RATE + 1e-9
    assert most_in_a_second(taken) <= RATE
    assert min(b - a for a, b in pairwise(taken)) >= CLOSEST / RATE - 1e-9


def test_a_long_absence_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(RATE, monotonic=clock)
    spend_all(pace, clock, seconds=1)
    clock.now += 60
    taken = spend_all(pace, clock, seconds=2)
    assert len(taken) <= RATE * (2 + MOST_BEHIND_SECONDS) + 1
    assert most_in_a_second(taken) <= RATE


def test_whoever_had_nothing_to_call_makes_up_for_nothing() -> None:
    clock = Clock()
    pace = Pace(RATE, monotonic=clock)
    spend_all(pace, clock, seconds=1)
    pace.rest()
    clock.now += 0.4
    taken = spend_all(pace, clock, seconds=1)
    assert all(b - a == pytest.approx(1 / RATE) for a, b in pairwise(taken))


def test_a_refusal_holds_the_pace_and_then_halves_it_for_a_while() -> None:
    clock = Clock()
    pace = Pace(RATE, monotonic=clock)
    spend_all(pace, clock, seconds=1)
    pace.hold(1.0)
    pace.halve(60.0)
    assert pace.free_in() == pytest.approx(1.0)
    taken = spend_all(pace, clock, seconds=60)
    assert len(taken) == pytest.approx(59 * RATE / 2, abs=1)
    assert most_in_a_second(taken) <= RATE / 2
    assert len(spend_all(pace, clock, seconds=10)) == pytest.approx(10 * RATE, abs=1)


def test_a_pace_below_one_a_second_is_kept_too() -> None:
    clock = Clock()
    taken = spend_all(Pace(0.5, monotonic=clock), clock, seconds=20)
    assert all(b - a == pytest.approx(2.0) for a, b in pairwise(taken))


async def test_a_clock_that_stands_still_does_not_make_waits_longer() -> None:
    clock = Clock()
    pace = Pace(1_000.0, monotonic=clock)
    for _ in range(50):
        await pace.take()
    assert pace.free_in() <= 0.0011


def calls_of(wire: Wire, clock: Clock, seconds: float, count: int = 1) -> None:
    for _ in range(count):
        number = wire.begin()
        clock.now += seconds
        wire.end(number)


def on_wire(wire: Wire) -> int:
    """Begin as many calls as are allowed; return how many."""
    begun = 0
    while wire.free_in() == 0:
        wire.begin()
        begun += 1
    return begun


@pytest.mark.parametrize(("seconds", "most"), [(0.005, 2), (0.1, 3), (0.5, 11), (1.001, 2), (4.0, 2)])
def test_on_the_wire_is_what_the_pace_needs_and_two_and_only_two_when_answers_are_slow(
    seconds: float, most: int
) -> None:
    clock = Clock()
    wire = Wire(RATE, monotonic=clock)
    calls_of(wire, clock, seconds, count=30)
    clock.now += 1
    assert on_wire(wire) == most


def test_a_stall_makes_no_room_on_the_wire() -> None:
    clock = Clock()
    wire = Wire(RATE, monotonic=clock)
    calls_of(wire, clock, 0.06, count=30)
    calls_of(wire, clock, 0.8, count=5)
    assert on_wire(wire) == SPARE_ON_WIRE + 1


def test_a_call_that_has_been_out_for_a_second_is_a_slow_answer_already() -> None:
    clock = Clock()
    wire = Wire(RATE, monotonic=clock)
    calls_of(wire, clock, 0.3, count=30)
    wire.begin()
    wire.begin()
    assert wire.free_in() == 0
    clock.now += 1.1
    assert wire.free_in() == float("inf")


def send_at_the_pace(latency: Callable[[float], float], *, seconds: float) -> tuple[list[float], list[float]]:
    """Send what pace and wire allow over a link; return when calls left and when the other side received them.

    `latency`: how long a call that leaves then takes to arrive; its answer needs another 2 ms.
    """
    clock = Clock()
    pace, wire = Pace(RATE, monotonic=clock), Wire(RATE, monotonic=clock)
    left, received, answers = [], [], []
    until = clock.now + seconds
    while clock.now < until:
        while answers and answers[0][0] <= clock.now:
            wire.end(heapq.heappop(answers)[1])
        wait = max(pace.free_in(), wire.free_in())
        if wait > 0:
            clock.now = min([clock.now + wait, *(at for at, _ in answers)])
            continue
        pace.spend()
        arrives = clock.now + latency(clock.now)
        left.append(clock.now)
        received.append(arrives)
        heapq.heappush(answers, (arrives + 0.002, wire.begin()))
    return left, sorted(received)


@pytest.mark.parametrize("usual", [0.001, 0.06, 0.25])
def test_a_link_that_stalls_now_and_then_lets_no_more_than_two_above_the_rate_through_in_any_second(
    usual: float,
) -> None:
    dice = Random(7)
    stalls = [(NOW + at, NOW + at + dice.uniform(0.05, 0.9)) for at in range(3, 60, 3)]

    def latency(at: float) -> float:
        held_until = next((end for begin, end in stalls if begin <= at + usual < end), None)
        return usual if held_until is None else held_until - at

    left, received = send_at_the_pace(latency, seconds=60)
    assert most_in_a_second(left) <= RATE
    assert most_in_a_second(received) <= RATE + SPARE_ON_WIRE


@pytest.mark.parametrize("usual", [0.001, 0.06, 0.25, 0.9])
def test_a_steady_link_costs_nothing_of_the_pace_however_long_it_is(usual: float) -> None:
    left, _ = send_at_the_pace(lambda _: usual, seconds=60)
    assert len(left) >= 0.98 * 60 * RATE
