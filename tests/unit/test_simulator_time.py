"""The simulator's clock, its rate windows, and what a moving clock does to waiting tasks."""

import asyncio

import pytest

from app.simulator.clock import SimulatorClock
from app.simulator.options import SimulatorKey
from app.simulator.rates import RateWindows
from app.simulator.task_queue import TaskQueue
from app.simulator.tasks import Failure, Order, Status, Task
from app.simulator.wire import stamp

ORDER = Order(model="wan2.6-image", prompt="a cup", width=1280, height=1280, image_count=1, interleave=False)
KEY = SimulatorKey("sk-sim-beijing", "cn-beijing")


class RealTime:
    """A real clock for the simulator's clock to lean on."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def make_clock(scale: float = 1.0, offset_seconds: float = 0.0) -> tuple[SimulatorClock, RealTime]:
    real = RealTime()
    return SimulatorClock(scale, offset_seconds, monotonic=real, epoch=lambda: 5000.0), real


def make_task(name: str, *, created_at: float = 0.0, seconds: float = 10.0, failure: Failure | None = None) -> Task:
    return Task(name, f"r-{name}", KEY, ORDER, created_at=created_at, duration_seconds=seconds, failure=failure)


def test_by_default_the_clock_tells_real_time() -> None:
    clock, real = make_clock()
    real.seconds += 7
    assert clock.now() == 5007


def test_scale_offset_and_advance_add_up() -> None:
    clock, real = make_clock(scale=10, offset_seconds=100)
    real.seconds += 2
    clock.advance(3)
    assert clock.now() == 5123


def test_a_new_scale_changes_the_future_only() -> None:
    clock, real = make_clock()
    real.seconds += 5
    clock.set_scale(0)
    real.seconds += 1000
    assert clock.now() == 5005


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_time_never_runs_backwards(seconds: float) -> None:
    clock, _ = make_clock()
    with pytest.raises(ValueError, match="0 or more"):
        clock.advance(seconds)
    with pytest.raises(ValueError, match="0 or more"):
        clock.set_scale(seconds)


def test_a_window_slides_and_refused_calls_do_not_count() -> None:
    rates = RateWindows()
    assert [rates.admit("a", limit=2, now=now) for now in (0.0, 0.5, 0.9)] == [True, True, False]
    assert [rates.admit("a", limit=2, now=now) for now in (1.0, 1.4, 1.5)] == [True, False, True]
    assert rates.admit("b", limit=2, now=0.9)


def test_a_waiting_task_starts_when_a_place_is_free_not_when_somebody_looks() -> None:
    line = TaskQueue()
    first, second, third = tasks = [make_task(name) for name in "abc"]
    for task in tasks:
        line.add(task)
    assert line.settle(0, running_limit=1) == []
    assert [task.status for task in tasks] == [Status.RUNNING, Status.PENDING, Status.PENDING]
    assert line.settle(25, running_limit=1) == [first, second]
    assert (second.scheduled_at, second.ended_at) == (10, 20)
    assert (third.status, third.scheduled_at) == (Status.RUNNING, 20)


def test_tasks_end_in_the_order_of_their_ends() -> None:
    line = TaskQueue()
    slow, quick = make_task("slow", seconds=10), make_task("quick", seconds=1)
    line.add(slow)
    line.add(quick)
    assert line.settle(60, running_limit=5) == [quick, slow]


def test_a_task_with_a_planned_failure_fails_at_its_end() -> None:
    line = TaskQueue()
    task = make_task("a", failure=Failure("InternalError.Algo", "no"))
    line.add(task)
    line.settle(9, running_limit=1)
    assert task.status is Status.RUNNING
    line.settle(10, running_limit=1)
    assert task.status is Status.FAILED


def test_more_room_helps_from_now_on_only() -> None:
    line = TaskQueue()
    line.add(make_task("a", seconds=100))
    waiting = make_task("b")
    line.add(waiting)
    line.settle(50, running_limit=1)
    line.settle(60, running_limit=2)
    assert (waiting.scheduled_at, waiting.ended_at) == (50, 60)


def test_times_are_written_without_a_zone_in_utc_plus_eight() -> None:
    assert stamp(1795312800.1) == "2026-11-22 10:00:00.100"
    assert stamp(1795312800.0) == "2026-11-22 10:00:00.000"


async def test_waiting_ends_when_the_clock_is_moved_far_enough() -> None:
    clock, _ = make_clock(scale=0)
    waiting = asyncio.ensure_future(clock.reach(clock.now() + 10))
    clock.advance(9)
    await asyncio.sleep(0)
    clock.advance(0.5)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(0.5)
    await waiting


async def test_waiting_ends_by_itself_when_the_clock_is_set_going() -> None:
    clock = SimulatorClock(0)
    waiting = asyncio.ensure_future(clock.reach(clock.now() + 10))
    await asyncio.sleep(0)
    clock.set_scale(100_000)
    await waiting


async def test_nobody_waits_for_the_past() -> None:
    clock, _ = make_clock(scale=0)
    await clock.reach(clock.now())
