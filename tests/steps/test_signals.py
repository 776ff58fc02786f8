"""Telling between processes: two of everything on one real Redis, or on one real Postgres where there is none."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from app.embedded import ValkeyServer, running_valkey
from app.lib.changes import MOST_KEYS, MOST_UNTOLD, POSTGRES_CHANNEL, REDIS_CHANNEL
from app.lib.db import Database, DatabaseAway
from app.lib.ids import new_id
from app.lib.rates import _TAKE, Rates, gcra
from app.lib.redis import RedisDoor
from app.lib.signals import Signals
from app.lib.waiters import Waiters
from tests.databases import STATE_DIR, run_sql
from tests.doors import CommitDoor, Door
from tests.processes import until

PATIENCE_SECONDS = 20.0
NEVER_SECONDS = 3_600.0
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
KILL_LISTENERS = f"SELECT pg_terminate_backend(pid) {OURS}"
SOMEBODY_LISTENS = f"SELECT count(*) > 0 {OURS}"
NOBODY_LISTENS = f"SELECT count(*) = 0 {OURS}"


@dataclass
class Process:
    """What a process has for telling and hearing, and what it heard."""

    db: Database
    signals: Signals
    rates: Rates
    heard: list[UUID] = field(default_factory=list)
    messages: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, keys: Collection[UUID]) -> None:
        self.heard += keys
        self.messages += 1
        self._news.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until what was heard makes something so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def process(database_url: str, redis_url: str | None) -> AsyncIterator[Process]:
    """Open the parts that tell and hear, as `open_resources` does."""
    db = Database(database_url, pool_size=2)
    async with RedisDoor(redis_url) as redis, Signals(redis, db) as signals:
        yield Process(db, signals, Rates(redis))
    await db.close()


@pytest.fixture(params=["redis", "postgres"])
def channel(request: pytest.FixtureRequest, redis_url: str) -> str | None:
    """The Redis that processes tell each other by, or None for Postgres."""
    return redis_url if request.param == "redis" else None


@pytest.fixture
async def pair(database_url: str, channel: str | None) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes; the second hears what the first says."""
    async with process(database_url, channel) as one, process(database_url, channel) as other:
        other.signals.hear_changes(other.hear)
        await heard_from(one, other)
        yield one, other


async def heard_from(one: Process, other: Process) -> None:
    """Tell until it is heard: listening takes a moment to begin."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not other.heard:
            one.signals.tell(new_id())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(other._news.wait(), 0.05)
    marker = new_id()
    one.signals.tell(marker)
    await other.until(lambda: marker in other.heard)
    other.heard.clear()
    other.messages = 0


async def test_a_change_is_heard_in_its_own_process_at_once_and_only_once(pair: tuple[Process, Process]) -> None:
    one, other = pair
    one.signals.hear_changes(one.hear)
    await heard_from(other, one)
    key, marker = new_id(), new_id()
    one.signals.tell(key)
    assert one.heard == [key]
    await other.until(lambda: key in other.heard)
    other.signals.tell(marker)
    await one.until(lambda: marker in one.heard)
    assert one.heard == [key, marker]


async def test_a_change_is_heard_in_another_process(pair: tuple[Process, Process]) -> None:
    one, other = pair
    key = new_id()
    one.signals.tell(key)
    await other.until(lambda: key in other.heard)
    assert other.heard == [key]


async def test_changes_told_within_a_moment_are_one_message(pair: tuple[Process, Process]) -> None:
    one, other = pair
    keys = [new_id() for _ in range(2 * MOST_KEYS + 1)]
    for key in [*keys, *keys]:
        one.signals.tell(key)
    await other.until(lambda: len(other.heard) == len(keys))
    assert other.heard == keys
    assert other.messages == 3


async def test_what_is_not_told_yet_is_bounded(database_url: str) -> None:
    async with process(database_url, None) as one:
        for _ in range(MOST_UNTOLD + 10):
            one.signals.tell(new_id())
        assert len(one.signals._changes._untold) == MOST_UNTOLD


async def test_a_stranger_on_the_channel_disturbs_nobody(
    pair: tuple[Process, Process], channel: str | None, database_url: str
) -> None:
    one, other = pair
    for message in ("", "hello", "a:b,c", "a:", ":" + "x" * 1_000, "é:é"):
        if channel:
            async with Redis.from_url(channel) as redis:
                await redis.publish(REDIS_CHANNEL, message)
        else:
            await run_sql(database_url, f"NOTIFY {POSTGRES_CHANNEL}, '{message}'")
    key = new_id()
    one.signals.tell(key)
    await other.until(lambda: key in other.heard)
    assert other.heard == [key]


async def test_bytes_that_are_no_text_disturb_nobody_either(database_url: str, redis_url: str) -> None:
    async with process(database_url, redis_url) as one, process(database_url, redis_url) as other:
        other.signals.hear_changes(other.hear)
        await heard_from(one, other)
        async with Redis.from_url(redis_url) as redis:
            await redis.publish(REDIS_CHANNEL, b"\xff:\xff")
        key = new_id()
        one.signals.tell(key)
        await other.until(lambda: key in other.heard)


async def test_nobody_listens_before_somebody_wants_to_hear(own_database: str) -> None:
    async with process(own_database, None) as one:
        one.signals.tell(new_id())
        assert await ask(own_database, NOBODY_LISTENS)
        one.signals.hear_changes(one.hear)
        await until(lambda: ask(own_database, SOMEBODY_LISTENS), "it listens")


async def test_hearing_comes_back_when_its_connection_was_lost(own_database: str) -> None:
    async with process(own_database, None) as one, process(own_database, None) as other:
        other.signals.hear_changes(other.hear)
        await heard_from(one, other)
        assert await ask(own_database, KILL_LISTENERS) is True
        await heard_from(one, other)


async def test_hearing_begins_when_the_database_comes_back(own_database: str) -> None:
    async with CommitDoor(own_database) as door:
        door.shut()
        async with process(own_database, None) as one, process(door.url, None) as other:
            other.signals.hear_changes(other.hear)
            with pytest.raises(DatabaseAway):
                await other.db.notify(POSTGRES_CHANNEL, "")
            other.signals.tell(new_id())  # nobody is told, and nobody is hurt
            other.heard.clear()
            door.open()
            await heard_from(one, other)
            one.signals.hear_changes(one.hear)
            await heard_from(other, one)


async def test_hearing_comes_back_with_redis(database_url: str, valkey: ValkeyServer) -> None:
    async with Door(str(valkey.socket_path)) as door:
        url = f"redis://127.0.0.1:{door.port}"
        async with process(database_url, valkey.url) as one, process(database_url, url) as other:
            other.signals.hear_changes(other.hear)
            await heard_from(one, other)
            door.shut()
            key = new_id()
            other.signals.tell(key)
            assert other.heard == [key]
            other.heard.clear()
            door.open()
            await heard_from(one, other)


async def test_nothing_listens_after_closing(own_database: str) -> None:
    async with process(own_database, None) as one, process(own_database, None) as other:
        other.signals.hear_changes(other.hear)
        await heard_from(one, other)
        assert await ask(own_database, SOMEBODY_LISTENS)
    await until(lambda: ask(own_database, NOBODY_LISTENS), "the server has noticed")


async def test_a_waiter_of_one_process_is_woken_by_a_change_of_another(pair: tuple[Process, Process]) -> None:
    one, other = pair
    rows = {new_id(): "pending"}
    key = next(iter(rows))
    seen = asyncio.Event()

    async def read(keys: Sequence[UUID]) -> Mapping[UUID, str]:
        seen.set()
        return dict(rows)

    waiters: Waiters[str] = Waiters(other.signals.hear_changes, every_seconds=NEVER_SECONDS)
    waiting: Awaitable[str | None] = asyncio.ensure_future(
        waiters.wait(key, lambda row: row == "done", read=read, timeout_seconds=NEVER_SECONDS)
    )
    await seen.wait()
    rows[key] = "done"
    one.signals.tell(key)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await waiting == "done"
    await waiters.close()


async def test_wake_ups_pass_between_processes_until_told_to_stop(database_url: str, redis_url: str) -> None:
    stop, woken = asyncio.Event(), asyncio.Event()
    async with process(database_url, redis_url) as one, process(database_url, redis_url) as other:
        listening = asyncio.ensure_future(other.signals.listen({"submit": woken}, stop))
        for _ in range(2):  # the first is for what was said before listening began
            async with asyncio.timeout(PATIENCE_SECONDS):
                await woken.wait()
            woken.clear()
            one.signals.wake("submit")
        stop.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listening


async def test_a_loop_without_redis_hears_its_own_process_and_stops(database_url: str) -> None:
    stop, woken = asyncio.Event(), asyncio.Event()
    async with process(database_url, None) as one:
        listening = asyncio.ensure_future(one.signals.listen({"submit": woken}, stop))
        await asyncio.sleep(0)
        one.signals.wake("submit")
        assert woken.is_set()
        stop.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await listening


async def test_a_rate_is_shared_by_all_processes(database_url: str, redis_url: str) -> None:
    key = str(new_id())
    async with process(database_url, redis_url) as one, process(database_url, redis_url) as other:
        waits = [await which.rates.take(key, per_second=0.001, burst=3) for which in (one, other, one, other)]
    assert waits[:3] == [0.0] * 3
    assert 0 < waits[3] <= 1_000


async def test_a_rates_key_lives_until_it_is_paid_off(database_url: str, redis_url: str) -> None:
    key = str(new_id())
    async with process(database_url, redis_url) as one, Redis.from_url(redis_url) as redis:
        await one.rates.take(key, per_second=0.01, burst=5)
        assert 0 < await redis.pttl(f"dashgate:rate:{key}") <= 100_000


async def test_rates_are_kept_by_each_process_while_redis_is_away(database_url: str, tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path / 'nobody.sock'}"
    async with process(database_url, nobody) as one, process(database_url, nobody) as other:
        waits = [await which.rates.take("a", per_second=0.001, burst=1) for which in (one, other, one, other)]
    assert [wait > 0 for wait in waits] == [False, False, True, True]


async def test_redis_judges_a_call_as_this_process_does(redis_url: str) -> None:
    script = _TAKE.replace("redis.call('TIME')", "{ARGV[3], ARGV[4]}")
    assert script != _TAKE
    now = 1_795_000_000_000_000
    paid_at = waited = 0
    key = f"dashgate:rate:{new_id()}"
    async with Redis.from_url(redis_url) as redis:
        for number in range(300):
            spacing, burst = (100_000_000, 3) if number % 100 < 70 else (77_777_777, 2)
            now += (number * 7_919 % 13) * 9_999_999
            paid_at, wait = gcra(paid_at, now, spacing=spacing, burst=burst)
            arguments = map(str, (spacing, burst, now // 1_000_000, now % 1_000_000))
            assert await redis.eval(script, 1, key, *arguments) == wait
            assert int(await redis.get(key)) == paid_at
            waited += wait > 0
    assert 0 < waited < 300


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Redis of the test's own."""
    with running_valkey(STATE_DIR, announce=lambda _: None) as server:
        yield server


async def ask(database_url: str, query: str) -> object:
    connection = await asyncpg.connect(database_url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()
