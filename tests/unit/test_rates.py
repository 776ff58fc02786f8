"""Rates without Redis: what passes, how long the rest waits, and that keys do not pile up."""

from app.lib.rates import MOST_KEYS, Rates, gcra
from app.lib.redis import RedisDoor


class Ticker:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def rates(ticker: Ticker) -> Rates:
    return Rates(RedisDoor(None), monotonic=ticker)


async def test_a_burst_passes_and_the_next_call_waits() -> None:
    ticker = Ticker()
    ours = rates(ticker)
    assert [await ours.take("a", per_second=2, burst=3) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


async def test_a_call_passes_when_it_has_waited_as_told_and_not_before() -> None:
    ticker = Ticker()
    ours = rates(ticker)
    await ours.take("a", per_second=2, burst=1)
    ticker.seconds += 0.4
    assert 0.09 < await ours.take("a", per_second=2, burst=1) < 0.11
    ticker.seconds += 0.11
    assert await ours.take("a", per_second=2, burst=1) == 0.0


async def test_refused_calls_cost_nothing() -> None:
    ticker = Ticker()
    ours = rates(ticker)
    for _ in range(100):
        await ours.take("a", per_second=1, burst=1)
    ticker.seconds += 1
    assert await ours.take("a", per_second=1, burst=1) == 0.0


async def test_over_a_long_time_as_many_pass_as_the_rate_says() -> None:
    ticker = Ticker()
    ours = rates(ticker)
    passed = 0
    for _ in range(10_000):  # ten tries a second
        ticker.seconds += 0.1
        passed += await ours.take("a", per_second=2.5, burst=5) == 0.0
    assert abs(passed - 2_500) <= 5


async def test_unless_told_a_seconds_worth_may_come_at_once() -> None:
    ours = rates(Ticker())
    assert [await ours.take("a", per_second=2.5) > 0 for _ in range(4)] == [False, False, False, True]
    assert [await ours.take("b", per_second=0.1) > 0 for _ in range(2)] == [False, True]


async def test_keys_know_nothing_of_each_other() -> None:
    ours = rates(Ticker())
    assert [await ours.take(key, per_second=1, burst=1) for key in "aabb"] == [0.0, 1.0, 0.0, 1.0]


async def test_keys_that_have_paid_off_are_forgotten_when_there_are_many() -> None:
    ticker = Ticker()
    ours = rates(ticker)
    for n in range(MOST_KEYS):
        await ours.take(f"early {n}", per_second=1, burst=1)
    ticker.seconds += 2
    assert await ours.take("late", per_second=1, burst=1) == 0.0
    assert set(ours._paid_at) == {"late"}


async def test_keys_are_bounded_even_if_nobody_pays_off() -> None:
    ours = rates(Ticker())
    for n in range(2 * MOST_KEYS):
        await ours.take(str(n), per_second=1, burst=1)
    assert len(ours._paid_at) <= MOST_KEYS
    assert await ours.take(str(2 * MOST_KEYS - 1), per_second=1, burst=1) == 1.0


def test_a_key_that_rested_for_long_has_no_more_than_its_burst() -> None:
    paid_at, waits = 0, []
    for _ in range(3):
        paid_at, wait = gcra(paid_at, 1_000_000, spacing=10, burst=2)
        waits.append(wait)
    assert waits == [0, 0, 10]
