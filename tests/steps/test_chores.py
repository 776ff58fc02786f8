"""Chores: each is one row of work, so whichever worker is free does it, and only one at a time."""

import asyncio
from collections.abc import Iterator

import pytest

from app.resources import Resources
from app.tasks import chores
from app.tasks.chores import CHORES, LEASE_SECONDS, Chore, chore_due, ensure_chores
from tests.steps.parts import DAY, queued, states, works
from tests.world import World


async def due_in(world: World) -> dict[str, float]:
    now = world.res.clock.now()
    return {work["key"]: (work["due_at"] - now).total_seconds() for work in await works(world, "chore")}


@pytest.fixture
def breaking(world: World) -> Iterator[str]:
    """A chore that always fails, beside the others."""

    async def fail(_: Resources) -> int:
        raise RuntimeError("as told")

    chores.CHORES["breaking"] = Chore(fail, 7)
    yield "breaking"
    del chores.CHORES["breaking"]


async def test_each_chore_has_its_row_however_often_they_are_made_sure_of(world: World) -> None:
    for _ in range(3):
        await ensure_chores(world.res)
    assert (await due_in(world)).keys() == CHORES.keys()


async def test_a_chore_that_is_not_due_stays_where_it_is(world: World) -> None:
    await chore_due(world.res)
    before = await works(world, "chore")
    await ensure_chores(world.res)
    assert await works(world, "chore") == before


async def test_after_its_run_each_chore_is_due_again_in_its_own_time(world: World) -> None:
    assert await chore_due(world.res) == 0
    assert await due_in(world) == {name: chore.every_seconds for name, chore in CHORES.items()}


async def test_it_tells_how_many_rows_were_changed(world: World) -> None:
    await queued(world, 3)
    world.sim.advance(DAY + 1)
    assert await chore_due(world.res) == 3
    assert await states(world) == ["failed"] * 3


async def test_two_workers_at_once_do_each_chore_once(world: World) -> None:
    await asyncio.gather(*(chore_due(world.res) for _ in range(3)))
    assert {work["epoch"] for work in await works(world, "chore")} == {1}


async def test_a_dead_workers_chore_is_done_when_its_lease_has_lapsed(world: World) -> None:
    await world.rows(
        "UPDATE work SET epoch = 1, due_at = $1, lease_until = $1 WHERE kind = 'chore'",
        world.res.clock.now().replace(year=2100),
    )
    assert await due_in(world) != {}
    await world.rows("UPDATE work SET due_at = $1 WHERE kind = 'chore'", world.res.clock.now())
    await chore_due(world.res)
    assert {work["epoch"] for work in await works(world, "chore")} == {2}


async def test_a_chore_that_fails_is_due_again_and_its_error_is_heard(world: World, breaking: str) -> None:
    await ensure_chores(world.res)
    with pytest.raises(RuntimeError, match="as told"):
        await chore_due(world.res)
    assert (await due_in(world))[breaking] == 7


async def test_a_chore_that_fails_does_not_keep_the_others_from_their_turn(world: World, breaking: str) -> None:
    await world.rows("DELETE FROM work WHERE kind = 'chore'")
    await ensure_chores(world.res)
    with pytest.raises(RuntimeError):
        await chore_due(world.res)
    assert await due_in(world) == {name: chore.every_seconds for name, chore in CHORES.items()}


async def test_a_chore_of_another_version_is_left_to_it(world: World) -> None:
    await world.rows("UPDATE work SET key = 'of_tomorrow' WHERE key = 'grace'")
    await chore_due(world.res)
    assert (await due_in(world))["of_tomorrow"] == LEASE_SECONDS
