"""Poll: one owner looks, within the pace; nobody else does, and what teaches nothing writes nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.errors import CouldNotFindOut
from app.routing.accounts import all_accounts
from app.simulator import BEIJING, SINGAPORE, Simulator
from app.tasks.listing_upstream import Window, list_window
from app.tasks.picture import Place
from app.tasks.poll import SUCCESSOR_WAIT_SECONDS, Watches, poll_due, release
from app.tasks.schedule import FEW
from app.tasks.watch import THROTTLED_PAUSE_SECONDS
from tests.api.parts import receipt, scripted_upstream, state
from tests.steps.parts import DAY, MODEL, allow, states, task, until, works
from tests.world import World, open_world


async def poll(world: World, watches: Watches | None = None) -> int:
    return await poll_due(world.res, watches=world.watches if watches is None else watches)


def looks(world: World) -> int:
    return len(world.sim.truth.journal.read(operation="query"))


async def long_task(world: World) -> str:
    """A task that runs for a minute."""
    world.sim.set_durations(60, 60)
    return await world.create()


async def row_versions(world: World) -> list[dict[str, Any]]:
    """Which transaction wrote each row that a look could touch."""
    tables = ("tasks", "work", "task_events", "account_models", "accounts", "task_bodies")
    return [row for table in tables for row in await world.rows(f"SELECT xmin::text, ctid::text FROM {table}")]  # noqa: S608


# --- the owner -----------------------------------------------------------------------------------------------------


async def test_the_first_poller_becomes_the_owner_and_looks(world: World) -> None:
    task_id = await long_task(world)
    assert await poll(world) == 1
    assert (await task(world, task_id))["state"] == "running"
    (work,) = await works(world, "account")
    assert (work["key"], work["epoch"]) == ("cn-beijing/cn-beijing", 1)
    assert (work["lease_until"] - world.res.clock.now()).total_seconds() == world.res.settings.account_lease_seconds


async def test_a_second_poller_gets_nothing_and_asks_nothing(world: World) -> None:
    await long_task(world)
    await poll(world)
    seen, second = looks(world), Watches()
    world.sim.advance(2)
    assert await poll(world, second) == 0
    assert (list(second), looks(world)) == ([], seen)


async def test_an_owner_at_work_keeps_its_lease_for_as_long_as_it_likes(world: World) -> None:
    await long_task(world)
    second = Watches()
    for _ in range(10):
        await poll(world)
        world.sim.advance(5)
        await poll(world, second)
    assert list(second) == []
    assert [work["epoch"] for work in await works(world, "account")] == [1]


async def test_a_dead_owner_is_replaced_when_its_lease_has_lapsed(world: World) -> None:
    await long_task(world)
    await poll(world)
    second = Watches()
    world.sim.advance(world.res.settings.account_lease_seconds - 0.1)
    assert await poll(world, second) == 0
    world.sim.advance(0.2)
    seen, claimed_at = looks(world), world.res.clock.monotonic()
    await poll(world, second)
    assert looks(world) == seen + 1
    assert [work["epoch"] for work in await works(world, "account")] == [2]
    # the dead one's last call may still have been on the wire
    assert second["cn-beijing/cn-beijing"].pace._next_at >= claimed_at + SUCCESSOR_WAIT_SECONDS


async def test_an_owner_that_wakes_up_too_late_asks_nothing_more(world: World) -> None:
    await long_task(world)
    await poll(world)
    second = Watches()
    world.sim.advance(16)
    await poll(world, second)
    seen = looks(world)
    world.sim.advance(2)
    assert await poll(world) == 0
    assert (list(world.watches), looks(world)) == ([], seen)


async def test_an_owner_whose_lease_ends_while_it_waits_for_its_slot_does_not_ask(world: World) -> None:
    task_id = UUID(await long_task(world))
    await poll(world)
    (watch,) = world.watches.values()
    seen, known = looks(world), watch.picture.find(task_id)
    world.sim.advance(1.1)
    watch.pace.hold(0.1)
    polling = asyncio.create_task(poll(world))
    await until(lambda: known is not None and known.place is Place.RIPE)
    world.sim.advance(20)
    assert await polling == 0
    assert looks(world) == seen


async def test_an_owner_that_leaves_hands_over_within_a_second(world: World) -> None:
    await long_task(world)
    await poll(world)
    await release(world.res, watches=world.watches)
    assert list(world.watches) == []
    second = Watches()
    await poll(world, second)
    assert list(second) == []  # its last call may still be on the wire
    world.sim.advance(1.1)
    await poll(world, second)
    assert list(second) == ["cn-beijing/cn-beijing"]


async def test_what_an_owner_remembers_is_never_needed(world: World) -> None:
    task_id = await world.create()
    await poll(world)
    world.sim.advance(20)
    await poll(world, Watches())  # a successor that knows nothing
    assert (await task(world, task_id))["state"] == "delivering"


# --- looking -------------------------------------------------------------------------------------------------------


async def test_a_task_is_looked_at_at_most_once_a_second(world: World) -> None:
    await long_task(world)
    for _ in range(5):
        await poll(world)
    assert looks(world) == 1
    world.sim.advance(1)
    await poll(world)
    assert looks(world) == 2


async def test_a_look_that_learned_nothing_writes_nothing(world: World) -> None:
    await long_task(world)
    await poll(world)
    before = await row_versions(world)
    world.sim.advance(1.1)
    assert await poll(world) == 0
    assert looks(world) == 2
    assert await row_versions(world) == before


async def test_a_task_still_waiting_upstream_is_nothing_new(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    await world.create()
    assert await poll(world) == 0
    assert await states(world) == ["pending"]


async def test_words_that_are_no_ending_end_nothing(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        await world.create()
        for word in ("SUSPENDED", "PENDING", "ARCHIVED", "succeeded", "", "\u6210\u529f"):
            upstream.look = state(word)
            world.sim.advance(1.1)
            assert await poll(world) == 0, word
        assert len(upstream.received) == 7
    assert await states(world) == ["pending"]


async def test_what_is_no_answer_ends_nothing(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        await world.create()
        for upstream.look in (
            (200, b""),
            (200, b"<html>"),
            (200, b"[]"),
            (200, b'{"output":null}'),
            (200, b'{"output":{"task_status":7}}'),
            (200, b'{"output":{}}'),
            (200, b"[" * 100_000),
            (200, b'{"output":{"task_status":"FAILED","x":"' + b"x" * 2_000_000 + b'"}}'),
            (404, b'{"code":"NotFound","message":"x"}'),
            (400, b'{"output":{"task_status":"FAILED"}}'),
            (401, b'{"code":"InvalidApiKey","message":"x"}'),
            (500, b'{"output":{"task_status":"FAILED"}}'),
            (301, b""),
        ):
            world.sim.advance(1.1)
            assert await poll(world) == 0, upstream.look
    assert await states(world) == ["pending"]


async def test_a_look_that_the_upstream_could_not_answer_is_asked_again(world: World) -> None:
    task_id = await world.create()
    for status in (500, 503):
        world.sim.fail_next("query", "5xx", status=status)
        world.sim.advance(1.1)
        assert await poll(world) == 0
    world.sim.advance(1.1)
    assert await poll(world) == 1
    assert (await task(world, task_id))["state"] == "delivering"


async def test_a_429_on_a_look_holds_the_owners_pace(world: World) -> None:
    await long_task(world)
    world.sim.fail_next("query", "429")
    assert await poll(world) == 0
    (watch,) = world.watches.values()
    held = watch.pace._next_at - world.res.clock.monotonic()
    assert held >= THROTTLED_PAUSE_SECONDS
    world.sim.advance(THROTTLED_PAUSE_SECONDS)
    await watch.pace.take()
    assert watch.pace.free_in() == pytest.approx(2 / world.res.settings.poll_calls_per_second, rel=1e-3)
    assert await states(world) == ["pending"]


async def test_one_tasks_trouble_does_not_keep_the_others_from_being_seen(world: World) -> None:
    ids = [await world.create(), await world.create()]
    await world.rows("UPDATE task_bodies SET answer = NULL")
    world.sim.fail_next("query", "5xx")
    world.sim.advance(1.1)
    assert await poll(world) == 1
    seen = sorted([(await task(world, task_id))["state"] for task_id in ids])
    assert seen == ["delivering", "pending"]


@contextlib.asynccontextmanager
async def unrecordable(world: World, task_id: str) -> AsyncIterator[None]:
    """A task whose row refuses to be changed."""
    await world.rows("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'poison'; END $$
    """)
    await world.rows(f"""
        CREATE TRIGGER poison BEFORE UPDATE ON tasks FOR EACH ROW WHEN (OLD.id = '{UUID(task_id)}')
        EXECUTE FUNCTION refuse()
    """)
    try:
        yield
    finally:
        await world.rows("DROP FUNCTION refuse CASCADE")


async def test_a_task_that_cannot_be_recorded_is_left_alone_for_a_minute_and_keeps_no_other_waiting(
    world: World,
) -> None:
    poison, other = await world.create(), await world.create()
    world.sim.advance(1.1)
    async with unrecordable(world, poison):
        assert await poll(world) == 1
        assert (await task(world, other))["state"] == "delivering"
        for _ in range(5):
            world.sim.advance(10)
            await poll(world)
        assert looks(world) == 2
    world.sim.advance(15)
    assert await poll(world) == 1
    assert (await task(world, poison))["state"] == "delivering"


# --- forgotten upstream --------------------------------------------------------------------------------------------


async def test_unknown_is_no_ending_for_a_young_task(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create, upstream.look = receipt(), state("UNKNOWN")
        await world.create()
        for seconds in (1.1, 3_600, DAY - 3_700):
            world.sim.advance(seconds)
            assert await poll(world) == 0
    assert await states(world) == ["pending"]


async def test_unknown_after_a_day_is_expired_and_presumed_made(world: World) -> None:
    task_id = await world.create(n=3)
    world.sim.advance(DAY + 1)
    assert await poll(world) == 1
    row = await task(world, task_id)
    assert (row["state"], row["code"]) == ("expired", "Dashgate.ResultExpired")
    line = await world.row("SELECT kind, quantity, unit, upstream_task_id FROM ledger_entries")
    assert (line["kind"], line["quantity"], line["unit"]) == ("presumed", 3, "image")
    assert line["upstream_task_id"] == world.sim.truth.tasks[0].id
    assert [row["type"] for row in await world.rows("SELECT type FROM webhook_events")] == ["task.expired"]


async def test_a_task_seen_running_expires_like_any_other(world: World) -> None:
    task_id = await long_task(world)
    await poll(world)
    world.sim.advance(DAY + 1)
    await poll(world, Watches())
    assert (await task(world, task_id))["state"] == "expired"


# --- many at once --------------------------------------------------------------------------------------------------

MANY = 2 * FEW + 4


async def many_tasks(world: World) -> list[str]:
    """More running tasks than are looked at one by one, half a minute old; they end a minute after they began."""
    world.sim.set_limits(running_tasks=1_000, creates_per_second=1_000)
    world.sim.set_durations(60, 60)
    await allow(world, running=1_000)
    ids = [await world.create(f"boat {number}") for number in range(MANY)]
    world.sim.advance(30)
    return ids


def lists(world: World) -> int:
    return len(world.sim.truth.journal.read(operation="list"))


async def poll_out(world: World) -> None:
    """Poll until nothing more is learned at this instant."""
    while await poll(world) or any(watch.round is not None for watch in world.watches.values()):
        pass


async def test_many_tasks_are_found_by_the_list_and_each_result_is_read_once(world: World) -> None:
    await many_tasks(world)
    await poll_out(world)
    assert await states(world) == ["running"] * MANY  # the list said so: nobody looked
    assert (looks(world), lists(world)) == (0, 3)
    world.sim.advance(31)
    await poll_out(world)
    assert await states(world) == ["delivering"] * MANY
    assert looks(world) == MANY
    assert lists(world) <= 8


async def test_what_a_list_showed_for_nothing_wrote_nothing(world: World) -> None:
    await many_tasks(world)
    await poll_out(world)
    before = await row_versions(world)
    world.sim.advance(2)
    seen = lists(world)
    await poll_out(world)
    assert lists(world) > seen
    assert await row_versions(world) == before


async def test_without_a_list_the_tasks_are_looked_at_one_by_one(world: World) -> None:
    await many_tasks(world)
    world.sim.fail_next("list", "5xx", times=50)
    await poll_out(world)
    assert lists(world) == 1
    assert looks(world) == MANY


async def test_a_list_that_never_showed_a_task_does_not_end_it(world: World) -> None:
    ids = await many_tasks(world)
    hidden = next(each for each in world.sim.truth.tasks if each.prompt == "boat 7")
    hidden.key = replace(hidden.key, main_account="hidden")  # as if the list knew it not; neither does a look
    await poll_out(world)
    assert sorted(await states(world)) == ["pending"] + ["running"] * (MANY - 1)
    assert (await task(world, ids[7]))["state"] == "pending"


async def test_a_window_of_the_list_is_walked_to_its_end(world: World) -> None:
    started_at = world.res.clock.now()
    await many_tasks(world)
    await poll(world)
    (watch,), (account,) = world.watches.values(), await all_accounts(world.res)
    window = Window(started_at - timedelta(minutes=10), started_at + timedelta(minutes=10), model=MODEL)
    listing = await list_window(world.res, account, window=window, owner=watch)
    assert listing.is_complete
    assert {row.task_id for row in listing.rows} == {each.id for each in world.sim.truth.tasks}
    past = Window(started_at - timedelta(minutes=30), started_at - timedelta(minutes=20))
    empty = await list_window(world.res, account, window=past, owner=watch)
    assert (empty.rows, empty.is_complete) == ((), True)
    forgotten = Window(started_at - timedelta(days=3), started_at - timedelta(days=2, hours=12))
    assert not (await list_window(world.res, account, window=forgotten, owner=watch)).is_complete


async def test_a_listing_is_refused_when_the_account_is_no_longer_ours(world: World) -> None:
    await poll(world)
    (watch,), (account,) = world.watches.values(), await all_accounts(world.res)
    now = world.res.clock.now()
    world.sim.advance(world.res.settings.account_lease_seconds + 1)
    with pytest.raises(CouldNotFindOut):
        await list_window(world.res, account, window=Window(now, now), owner=watch)
    assert lists(world) == 0


# --- several owners ------------------------------------------------------------------------------------------------


@pytest.fixture
async def two_accounts(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(still_sim, database_url, tmp_path, regions=(BEIJING, SINGAPORE)) as world:
        yield world


async def test_an_owner_that_is_alone_takes_every_account(two_accounts: World) -> None:
    await poll(two_accounts)
    assert len(two_accounts.watches) == 2


async def test_with_a_second_process_each_has_its_share(two_accounts: World) -> None:
    world, second = two_accounts, Watches()
    await poll(world)
    await poll(world, second)
    assert (len(world.watches), len(second)) == (2, 0)
    await poll(world)
    await poll(world, second)
    assert (len(world.watches), len(second)) == (1, 0)  # what was handed back rests for a second
    world.sim.advance(SUCCESSOR_WAIT_SECONDS + 0.1)
    await poll(world)
    await poll(world, second)
    assert (len(world.watches), len(second)) == (1, 1)
    assert not world.watches.keys() & second.keys()


async def test_the_accounts_of_a_process_that_died_go_to_those_that_live(two_accounts: World) -> None:
    world, second = two_accounts, Watches()
    for watches in (world.watches, second, world.watches):
        await poll(world, watches)
    world.sim.advance(SUCCESSOR_WAIT_SECONDS + 0.1)
    await poll(world, second)
    for _ in range(8):  # the second is heard of no more
        world.sim.advance(2)
        await poll(world)
    assert len(world.watches) == 2
    assert len(await works(world, "owner")) == 1
