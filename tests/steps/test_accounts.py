"""Accounts and their keys as operators change them, and as submit marks them."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from app.errors import CommandRefused, UpstreamAccountAtFault
from app.lib.db import transaction
from app.lib.ids import new_id
from app.models.accounts import Serving
from app.routing.accounts import AccountInfo, NewAccount, add_account, get_account_by_name, upstream_of
from app.routing.changes import AccountChange, change_account, drain, pause, resume
from app.routing.keys import add_key, leave_refused_key, list_keys, retire_key
from app.routing.store import bar_key_from_model, mark_key_bad, pause_account
from app.simulator import BEIJING
from tests.steps.parts import MODEL, works
from tests.world import World

LONG = timedelta(minutes=10)
SHORT = timedelta(minutes=1)


async def account(world: World) -> AccountInfo:
    """The one account, as this process knows it once its cache has lapsed."""
    world.sim.advance(2.1)
    return await get_account_by_name(world.res, BEIJING)


async def mark_bad(world: World, key_id: UUID, *, for_: timedelta = LONG, reason: str = "InvalidApiKey") -> None:
    until = world.res.clock.now() + for_
    async with transaction(world.res) as session:
        await mark_key_bad(session, key_id, until=until, reason=reason)


async def bar(world: World, key_id: UUID, *, for_: timedelta = LONG, model: str = MODEL) -> None:
    until = world.res.clock.now() + for_
    async with transaction(world.res) as session:
        await bar_key_from_model(session, key_id, model, until=until, reason="Model.AccessDenied")


async def key_ids(world: World) -> list[UUID]:
    return [key.id for key in (await account(world)).keys]


async def usable_key(world: World, model: str = MODEL) -> UUID | None:
    key = (await account(world)).key_for(model, world.res.clock.now())
    return key.id if key else None


async def test_an_account_serves_with_weight_one_until_it_is_told_otherwise(world: World) -> None:
    new = await account(world)
    assert (new.weight, new.serving, new.takes_calls(world.res.clock.now())) == (1, Serving.ACTIVE, True)
    await change_account(world.res, BEIJING, AccountChange(weight=3))
    await pause(world.res, BEIJING, reason="a leak")
    paused = await get_account_by_name(world.res, BEIJING)
    assert (paused.weight, paused.serving, paused.paused_reason) == (3, Serving.PAUSED, "a leak")
    await drain(world.res, BEIJING)
    draining = await get_account_by_name(world.res, BEIJING)
    assert (draining.serving, draining.paused_reason) == (Serving.DRAINING, None)
    assert not paused.takes_calls(world.res.clock.now())
    assert not draining.takes_calls(world.res.clock.now())


async def test_what_another_process_changed_is_known_two_seconds_later(world: World) -> None:
    await account(world)
    await world.rows("UPDATE accounts SET weight = 7, serving = 'paused'")
    world.sim.advance(1.9)
    known = await get_account_by_name(world.res, BEIJING)
    assert (known.weight, known.serving) == (1, Serving.ACTIVE)
    world.sim.advance(0.2)
    known = await get_account_by_name(world.res, BEIJING)
    assert (known.weight, known.serving) == (7, Serving.PAUSED)


async def test_the_newest_key_is_used_and_an_older_one_while_it_is_bad(world: World) -> None:
    (old,) = await key_ids(world)
    new = await add_key(world.res, BEIJING, "sk-new")
    assert await usable_key(world) == new
    await mark_bad(world, new)
    assert await usable_key(world) == old
    world.sim.advance(LONG.total_seconds())
    assert await usable_key(world) == new


async def test_a_key_that_may_not_call_one_model_is_used_for_others(world: World) -> None:
    (old,) = await key_ids(world)
    new = await add_key(world.res, BEIJING, "sk-new")
    await bar(world, new)
    assert await usable_key(world) == old
    assert await usable_key(world, "wan2.7-image") == new
    world.sim.advance(LONG.total_seconds())
    assert await usable_key(world) == new


async def test_the_key_that_was_just_refused_is_not_the_next_one(world: World) -> None:
    await add_key(world.res, BEIJING, "sk-new")
    known, now = await account(world), world.res.clock.now()
    new, old = known.keys
    assert known.key_for(MODEL, now, but=new.id) is old
    assert known.key_for(MODEL, now, but=old.id) is new
    await retire_key(world.res, BEIJING, old.id)
    assert (await account(world)).key_for(MODEL, now, but=new.id) is None


async def test_marks_and_bars_end_when_the_longest_of_them_does(world: World) -> None:
    (key_id,) = await key_ids(world)
    await mark_bad(world, key_id)
    await mark_bad(world, key_id, for_=SHORT, reason="NOT AUTHORIZED")
    await bar(world, key_id)
    await bar(world, key_id, for_=SHORT)
    marked, barred = await world.row("SELECT * FROM account_keys"), await world.row("SELECT * FROM account_key_models")
    now = world.res.clock.now()
    assert (marked["bad_until"] - now, marked["bad_reason"]) == (LONG, "InvalidApiKey")
    assert (barred["bad_until"] - now, barred["reason"]) == (LONG, "Model.AccessDenied")


async def test_tasks_are_asked_about_with_a_bad_key_rather_than_with_none(world: World) -> None:
    (old,) = await key_ids(world)
    new = await add_key(world.res, BEIJING, "sk-new")
    await mark_bad(world, new, for_=SHORT)
    known, now = await account(world), world.res.clock.now()
    asked_with = known.any_key(now)
    assert asked_with is not None
    assert asked_with.id == old
    await mark_bad(world, old)
    known, now = await account(world), world.res.clock.now()
    soonest = known.any_key(now)
    assert soonest is not None
    assert soonest.id == new
    assert known.key_for(MODEL, now) is None


async def test_a_refused_question_leaves_its_key_alone_only_where_another_can_ask(world: World) -> None:
    alone = await account(world)
    assert await leave_refused_key(world.res, alone, alone.keys[0], reason="401 InvalidApiKey") is False
    assert not (await account(world)).keys[0].is_bad(world.res.clock.now())
    await add_key(world.res, BEIJING, "sk-wrong")
    known = await account(world)
    assert await leave_refused_key(world.res, known, known.keys[0], reason="401 InvalidApiKey") is True
    assert await get_account_by_name(world.res, BEIJING) != known
    known = await account(world)
    assert known.any_key(world.res.clock.now()) == known.keys[1]
    assert await leave_refused_key(world.res, known, known.keys[1], reason="401 InvalidApiKey") is False


async def test_open_tasks_are_followed_with_another_key_when_the_newest_is_refused(world: World) -> None:
    task_id = await world.create()
    await add_key(world.res, BEIJING, "sk-wrong")
    assert await world.finish(task_id) == "SUCCEEDED"
    (refused, _) = await list_keys(world.res, BEIJING)
    assert refused.bad_reason == "401 InvalidApiKey"


async def test_a_retired_key_is_never_used_again_but_still_listed(world: World) -> None:
    (old,) = await key_ids(world)
    new = await add_key(world.res, BEIJING, "sk-new-and-long-enough-to-show-some")
    await retire_key(world.res, BEIJING, new)
    first = (await world.row("SELECT retired_at FROM account_keys WHERE id = $1", new))["retired_at"]
    await retire_key(world.res, BEIJING, new)
    assert (await world.row("SELECT retired_at FROM account_keys WHERE id = $1", new))["retired_at"] == first
    assert await key_ids(world) == [old]
    listed = await list_keys(world.res, BEIJING)
    assert [(key.id, key.is_usable, key.retired_at) for key in listed] == [(new, False, first), (old, True, None)]
    assert listed[0].begins == "sk-new…"


async def test_the_last_usable_key_is_retired_only_by_force(world: World) -> None:
    (old,) = await key_ids(world)
    new = await add_key(world.res, BEIJING, "sk-new")
    await mark_bad(world, new)
    with pytest.raises(CommandRefused):
        await retire_key(world.res, BEIJING, old)
    await retire_key(world.res, BEIJING, new)
    await retire_key(world.res, BEIJING, old, force=True)
    keyless = await account(world)
    assert (keyless.keys, keyless.takes_calls(world.res.clock.now())) == ((), False)
    with pytest.raises(UpstreamAccountAtFault):
        upstream_of(world.res, keyless)


async def test_a_key_of_a_plan_or_one_that_is_there_already_is_refused(world: World) -> None:
    for key in ("sk-sp-plan", world.sim.key(BEIJING)):
        with pytest.raises(CommandRefused):
            await add_key(world.res, BEIJING, key)
    assert len(await key_ids(world)) == 1


async def test_a_key_of_another_account_or_of_none_is_not_retired(world: World) -> None:
    await add_account(world.res, NewAccount("other", BEIJING, world.sim.base_url(BEIJING), "sk-other"))
    other = (await get_account_by_name(world.res, "other")).keys[0].id
    for key_id in (other, new_id()):
        with pytest.raises(CommandRefused, match="has no key"):
            await retire_key(world.res, BEIJING, key_id, force=True)
    assert (await get_account_by_name(world.res, "other")).keys != ()


async def test_no_key_is_seen_in_what_is_logged_or_listed(world: World) -> None:
    await add_key(world.res, BEIJING, "sk-" + 8 * "0123")
    shown = f"{await account(world)!r} {await list_keys(world.res, BEIJING)!r}"
    assert world.sim.key(BEIJING) not in shown
    assert "0123" not in shown


async def test_resume_forgets_what_was_refused_to_the_account_and_its_keys(world: World) -> None:
    (key_id,) = await key_ids(world)
    await mark_bad(world, key_id)
    await bar(world, key_id)
    known = await account(world)
    async with transaction(world.res) as session:
        await pause_account(session, known.id, until=world.res.clock.now() + LONG, reason="Arrearage")
    await drain(world.res, BEIJING, reason="moving out")
    await resume(world.res, BEIJING)
    known = await get_account_by_name(world.res, BEIJING)
    assert (known.serving, known.paused_until, known.paused_reason) == (Serving.ACTIVE, None, None)
    assert known.key_for(MODEL, world.res.clock.now()) is not None
    assert await world.rows("SELECT 1 FROM account_key_models") == []


async def test_an_account_moves_to_another_address_and_learns_hosts(world: World) -> None:
    hosts = (await account(world)).file_hosts
    await change_account(
        world.res,
        BEIJING,
        AccountChange(base_url="https://h.example/api/v1/", workspace="ws-1", add_hosts=("new:443", hosts[0])),
    )
    moved = await get_account_by_name(world.res, BEIJING)
    assert (moved.base_url, moved.workspace) == ("https://h.example/api/v1", "ws-1")
    assert moved.file_hosts == (*hosts, "new:443")
    await change_account(world.res, BEIJING, AccountChange(workspace="", drop_hosts=hosts))
    moved = await get_account_by_name(world.res, BEIJING)
    assert (moved.workspace, moved.file_hosts) == (None, ("new:443",))


@pytest.mark.parametrize(
    "change",
    [
        AccountChange(),
        AccountChange(weight=-1),
        AccountChange(weight=10_000_000),
        AccountChange(base_url="https://h.example/compatible-mode/v1"),
        AccountChange(main_account=""),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(world: World, change: AccountChange) -> None:
    before = await world.row("SELECT * FROM accounts")
    with pytest.raises(CommandRefused):
        await change_account(world.res, BEIJING, change)
    assert await world.row("SELECT * FROM accounts") == before


async def test_commands_on_an_account_that_does_not_exist_are_refused(world: World) -> None:
    for command in (
        change_account(world.res, "nowhere", AccountChange(weight=1)),
        pause(world.res, "nowhere"),
        resume(world.res, "nowhere"),
        add_key(world.res, "nowhere", "sk-1"),
        list_keys(world.res, "nowhere"),
    ):
        with pytest.raises(CommandRefused, match="no account named nowhere"):
            await command


async def test_a_main_account_is_corrected_only_when_no_task_is_open(world: World) -> None:
    task_id = await world.create()
    change = AccountChange(main_account="the-real-one")
    with pytest.raises(CommandRefused, match="open tasks"):
        await change_account(world.res, BEIJING, change)
    assert [work["key"] for work in await works(world, "account")] == [f"{BEIJING}/{BEIJING}"]
    await world.finish(task_id)
    await change_account(world.res, BEIJING, change)
    assert {work["key"] for work in await works(world, "account")} == {
        f"{BEIJING}/{BEIJING}",
        f"the-real-one/{BEIJING}",
    }
    assert await world.finish(await world.create()) == "SUCCEEDED"
