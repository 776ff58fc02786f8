"""Waiting for rows: who is woken, who looks, how seldom, and what is left behind. The table is a dict."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

import pytest

from app.lib import db
from app.lib.db import DatabaseAway
from app.lib.ids import new_id
from app.lib.waiters import MOST_AT_ONCE, Waiters

NEVER_SECONDS = 3_600.0
SOON_SECONDS = 0.01
PATIENCE_SECONDS = 10.0
request_id: ContextVar[str] = ContextVar("request_id", default="nobody's")


class Table:
    """Rows that are a word each, and what the looks at them were like."""

    def __init__(self) -> None:
        self.rows: dict[UUID, str] = {}
        self.looks: list[Sequence[UUID]] = []
        self.under_way = self.most_under_way = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.began, self.looked = asyncio.Event(), asyncio.Event()
        self.contexts: set[str] = set()

    async def read(self, keys: Sequence[UUID]) -> Mapping[UUID, str]:
        self.looks.append(keys)
        self.contexts.add(request_id.get())
        self.under_way += 1
        self.began.set()
        self.most_under_way = max(self.most_under_way, self.under_way)
        found = {key: self.rows[key] for key in keys if key in self.rows}
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return found
        finally:
            self.under_way -= 1
            self.looked.set()

    def add(self, word: str = "pending") -> UUID:
        key = new_id()
        self.rows[key] = word
        return key

    async def next_look(self) -> None:
        self.looked.clear()
        await asyncio.wait_for(self.looked.wait(), PATIENCE_SECONDS)


class Telling:
    """What tells of changes."""

    def __init__(self) -> None:
        self.heard: list[Callable[[Collection[UUID]], None]] = []

    def listen(self, heard: Callable[[Collection[UUID]], None]) -> None:
        self.heard.append(heard)

    def tell(self, *keys: UUID) -> None:
        for heard in self.heard:
            heard(keys)


class Office:
    """A table, what tells of it, and the waiters; by default they look by themselves once an hour."""

    def __init__(self, every_seconds: float = NEVER_SECONDS) -> None:
        self.table, self.telling = Table(), Telling()
        self.waiters: Waiters[str] = Waiters(self.telling.listen, every_seconds=every_seconds)

    async def wait(
        self, key: UUID, *, until: str = "done", timeout_seconds: float = NEVER_SECONDS, lasting: bool = False
    ) -> str | None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.waiters.wait(
                key,
                lambda row: row == until,
                read=self.table.read,
                timeout_seconds=timeout_seconds,
                lasting=lasting,
            )

    async def begin(self, key: UUID, **how: object) -> "asyncio.Future[str | None]":
        """Begin to wait, and be past the first look."""
        waiting = asyncio.ensure_future(self.wait(key, **how))  # type: ignore[arg-type]
        await self.table.next_look()
        return waiting


@pytest.fixture
async def office():
    office = Office()
    yield office
    await office.waiters.close()


@pytest.fixture
async def wakeful():
    """An office whose waiters look by themselves all the time."""
    office = Office(every_seconds=SOON_SECONDS)
    yield office
    await office.waiters.close()


async def test_a_row_that_is_over_already_is_returned_after_one_look(office: Office) -> None:
    assert await office.wait(office.table.add("done")) == "done"
    assert len(office.table.looks) == 1


async def test_a_key_without_a_row_is_nothing_to_wait_for(office: Office) -> None:
    assert await office.wait(new_id()) is None


async def test_a_waiter_is_woken_by_what_it_hears_of_its_row(office: Office) -> None:
    key = office.table.add()
    waiting = await office.begin(key)
    office.table.rows[key] = "done"
    office.telling.tell(key)
    assert await waiting == "done"
    assert len(office.table.looks) == 2


async def test_a_change_that_is_not_what_is_waited_for_ends_nothing(office: Office) -> None:
    key = office.table.add()
    waiting = await office.begin(key)
    office.table.rows[key] = "running"
    office.telling.tell(key)
    await office.table.next_look()
    assert not waiting.done()
    office.table.rows[key] = "done"
    office.telling.tell(key)
    assert await waiting == "done"


async def test_a_change_heard_of_during_a_look_is_looked_at_again(office: Office) -> None:
    key = office.table.add()
    office.table.gate.clear()
    waiting = asyncio.ensure_future(office.wait(key))
    await office.table.began.wait()
    office.table.rows[key] = "done"  # too late for the look under way
    office.telling.tell(key)
    office.table.gate.set()
    assert await waiting == "done"
    assert len(office.table.looks) == 2


async def test_who_comes_during_a_look_is_shown_nothing_older_than_itself(office: Office) -> None:
    key = office.table.add("first")
    office.table.gate.clear()
    early = asyncio.ensure_future(office.wait(key, until="first"))
    await office.table.began.wait()
    office.table.rows[key] = "second"
    late = asyncio.ensure_future(office.wait(key))
    await asyncio.sleep(0)
    office.waiters.end_all()  # so that both take whatever they are shown next
    office.table.gate.set()
    assert await asyncio.gather(early, late) == ["first", "second"]


async def test_what_nobody_waits_for_is_not_looked_at(office: Office) -> None:
    key = office.table.add()
    waiting = await office.begin(key)
    office.telling.tell(*(new_id() for _ in range(10)))
    office.telling.tell(key)
    await office.table.next_look()
    waiting.cancel()
    assert {asked for look in office.table.looks for asked in look} == {key}


async def test_a_change_that_nobody_told_of_is_seen_by_the_next_look(wakeful: Office) -> None:
    key = wakeful.table.add()
    waiting = await wakeful.begin(key)
    wakeful.table.rows[key] = "done"
    assert await waiting == "done"


async def test_looks_at_everything_go_on_while_there_is_always_something_to_hear(wakeful: Office) -> None:
    busy, quiet = wakeful.table.add(), wakeful.table.add()
    waiting = [await wakeful.begin(quiet), await wakeful.begin(busy)]
    wakeful.table.rows[quiet] = "done"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not waiting[0].done():
            wakeful.telling.tell(busy)
            await wakeful.table.next_look()
    assert await waiting[0] == "done"
    waiting[1].cancel()


async def test_many_waiters_are_served_by_few_looks_of_bounded_size_one_at_a_time(office: Office) -> None:
    keys = [office.table.add() for _ in range(2 * MOST_AT_ONCE + 1)]
    waiting = [asyncio.ensure_future(office.wait(key)) for key in keys]
    while sum(map(len, office.table.looks)) < len(keys):
        await office.table.next_look()
    office.table.looks.clear()
    office.table.rows.update(dict.fromkeys(keys, "done"))
    for key in keys:
        office.telling.tell(key)
    assert set(await asyncio.gather(*waiting)) == {"done"}
    assert [len(look) for look in office.table.looks] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert office.table.most_under_way == 1


async def test_all_who_wait_for_one_row_are_served_by_one_look(office: Office) -> None:
    key = office.table.add()
    waiting = [asyncio.ensure_future(office.wait(key)) for _ in range(50)]
    await office.table.next_look()
    office.table.rows[key] = "done"
    office.telling.tell(key)
    assert set(await asyncio.gather(*waiting)) == {"done"}
    assert office.table.looks == [[key], [key]]


async def test_when_time_is_up_the_row_is_returned_as_it_was_last_seen(office: Office) -> None:
    assert await office.wait(office.table.add("running"), timeout_seconds=SOON_SECONDS) == "running"


async def test_no_time_at_all_is_enough_for_one_look(office: Office) -> None:
    assert await office.wait(office.table.add("running"), timeout_seconds=0) == "running"
    assert len(office.table.looks) == 1


async def test_a_waiter_waits_on_while_the_database_is_away(wakeful: Office) -> None:
    key = wakeful.table.add()
    wakeful.table.error = DatabaseAway("gone")
    waiting = await wakeful.begin(key)
    await wakeful.table.next_look()
    assert not waiting.done()
    wakeful.table.error = None
    wakeful.table.rows[key] = "done"
    assert await waiting == "done"


async def test_when_time_is_up_a_row_seen_before_the_database_went_away_is_returned(office: Office) -> None:
    key = office.table.add("running")
    waiting = await office.begin(key, timeout_seconds=2 * SOON_SECONDS)
    office.table.error = DatabaseAway("gone")
    office.telling.tell(key)
    assert await waiting == "running"


async def test_a_row_that_could_never_be_read_is_said_to_be_so_when_time_is_up(wakeful: Office) -> None:
    wakeful.table.error = DatabaseAway("gone")
    with pytest.raises(DatabaseAway):
        await wakeful.wait(wakeful.table.add(), timeout_seconds=5 * SOON_SECONDS)


async def test_of_a_database_that_is_away_nothing_more_is_asked_until_the_next_look_at_everything(
    office: Office,
) -> None:
    office.table.error = DatabaseAway("gone")
    waiting = [asyncio.ensure_future(office.wait(office.table.add())) for _ in range(2 * MOST_AT_ONCE)]
    await office.table.next_look()
    assert not office.waiters._to_read
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_another_failure_of_the_look_is_everybodys_who_asked(office: Office) -> None:
    office.table.error = ValueError("a bug")
    key = office.table.add()
    for ended in await asyncio.gather(office.wait(key), office.wait(key), return_exceptions=True):
        assert isinstance(ended, ValueError)
    office.table.error = None
    office.table.rows[key] = "done"
    assert await office.wait(key) == "done"


async def test_a_question_that_fails_is_its_own_waiters_failure(office: Office) -> None:
    key = office.table.add("done")

    def fails(_: str) -> bool:
        raise ValueError("a bug")

    failing = office.waiters.wait(key, fails, read=office.table.read, timeout_seconds=NEVER_SECONDS)
    ended = await asyncio.gather(failing, office.wait(key), return_exceptions=True)
    assert isinstance(ended[0], ValueError)
    assert ended[1] == "done"


async def test_whoever_waits_no_more_leaves_nothing_behind(office: Office) -> None:
    keys = [office.table.add(), office.table.add("done"), office.table.add()]
    waiting = [asyncio.ensure_future(office.wait(key, timeout_seconds=seconds)) for key in keys for seconds in (0, 60)]
    await office.table.next_look()
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(office.waiters) == 0
    assert not office.waiters._waiting
    assert not office.waiters._to_read


async def test_whoever_left_before_the_first_look_is_not_looked_for(office: Office) -> None:
    keys = [office.table.add("done"), office.table.add()]
    office.table.gate.clear()
    first = asyncio.ensure_future(office.wait(keys[0]))
    await office.table.began.wait()
    second = asyncio.ensure_future(office.wait(keys[1]))
    await asyncio.sleep(0)
    assert len(office.waiters) == 2
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert not office.waiters._to_read
    office.table.gate.set()
    assert await first == "done"


async def test_nobody_looks_when_nobody_waits(wakeful: Office) -> None:
    waiting = await wakeful.begin(wakeful.table.add())
    looking = wakeful.waiters._looking
    assert looking is not None
    waiting.cancel()
    await asyncio.wait_for(looking, PATIENCE_SECONDS)
    assert await wakeful.wait(wakeful.table.add("done")) == "done"


async def test_listening_begins_with_the_first_waiter_and_only_once(office: Office) -> None:
    assert not office.telling.heard
    for _ in range(2):
        await office.wait(office.table.add("done"))
    assert len(office.telling.heard) == 1


async def test_at_the_end_waits_that_do_not_last_end_with_the_present_state(office: Office) -> None:
    keys = [office.table.add("running"), office.table.add("running")]
    passing, lasting = await office.begin(keys[0]), await office.begin(keys[1], lasting=True)
    office.waiters.end_all()
    assert await passing == "running"
    assert not lasting.done()
    office.table.rows[keys[1]] = "done"
    office.telling.tell(keys[1])
    assert await lasting == "done"


async def test_a_wait_that_begins_at_the_end_is_one_look(office: Office) -> None:
    office.waiters.end_all()
    assert await office.wait(office.table.add("running")) == "running"


async def test_a_wait_that_has_seen_nothing_at_the_end_still_gets_its_look(office: Office) -> None:
    waiting = asyncio.ensure_future(office.wait(office.table.add("running")))
    await asyncio.sleep(0)
    office.waiters.end_all()
    assert await waiting == "running"


async def test_at_the_end_nobody_waits_for_a_database_that_is_away(office: Office) -> None:
    office.table.error = DatabaseAway("gone")
    waiting = await office.begin(office.table.add())
    office.waiters.end_all()
    with pytest.raises(DatabaseAway):
        await waiting


async def test_closing_ends_every_wait(office: Office) -> None:
    waiting = await office.begin(office.table.add("running"), lasting=True)
    await office.waiters.close()
    assert await waiting == "running"
    assert office.waiters._looking is None


async def test_nobody_waits_with_a_transaction_open(office: Office) -> None:
    with _open_transaction(), pytest.raises(RuntimeError):
        await office.wait(office.table.add("done"))


async def test_looks_are_taken_in_nobodys_name(office: Office) -> None:
    request_id.set("the first caller's")
    await office.wait(office.table.add("done"))
    assert office.table.contexts == {"nobody's"}


@contextmanager
def _open_transaction() -> Iterator[None]:
    with db._marked_open():
        yield
