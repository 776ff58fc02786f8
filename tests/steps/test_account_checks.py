"""What doctor finds out about accounts: one call for each key, and what their task lists have in common."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from app.cli.account_checks import account_checks
from app.cli.findings import Finding, Level
from app.lib.db import transaction
from app.routing.accounts import NewAccount, add_account, get_account_by_name, upstream_of
from app.routing.changes import drain, pause
from app.routing.keys import add_key, retire_key
from app.routing.store import bar_key_from_model, mark_key_bad
from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from tests.steps.parts import MODEL
from tests.world import World, open_world

KEYS = (
    SimulatorKey("sk-first", BEIJING, "1"),
    SimulatorKey("sk-second", BEIJING, "1"),
    SimulatorKey("sk-stranger", BEIJING, "2"),
    SimulatorKey("sk-singapore", SINGAPORE, "1"),
)


@pytest.fixture
async def bare(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway without an account, before an upstream where two main accounts have four keys."""
    async with (
        running_simulator(SimulatorOptions(keys=KEYS, clock_scale=0)) as sim,
        open_world(sim, database_url, tmp_path, regions=()) as world,
    ):
        sim.set_limits(task_calls_per_second=10_000, creates_per_second=1_000)
        yield world


async def add(world: World, name: str, secret: str, *, region: str = BEIJING, main_account: str | None = None) -> None:
    await add_account(
        world.res, NewAccount(name, region, world.sim.base_url(region), secret, main_account=main_account)
    )


async def use(world: World, *names: str) -> None:
    """Create a task with the newest key of each account, so that its list is not empty."""
    for name in names:
        account = await get_account_by_name(world.res, name)
        await upstream_of(world.res, account).create_task(
            "aigc/image-generation/generation", json.dumps(world.order()).encode(), headers={}, timeout_seconds=5
        )


async def examine(world: World) -> dict[str, Finding]:
    return {name: await check(world.res) for name, check in await account_checks(world.res)}


def listed(sim: Simulator) -> int:
    return len(sim.truth.journal.read(operation="list", since=0))


async def test_a_key_that_answers_elsewhere_is_said_to_be_in_the_wrong_region(bare: World) -> None:
    await add(bare, "mixed-up", "sk-singapore")
    await add(bare, "singapore", "sk-singapore", region=SINGAPORE)
    found = await examine(bare)
    assert found["account mixed-up"].level is Level.FAILED
    assert found["account mixed-up"].text.endswith("this key answers in ap-southeast-1: wrong region")
    assert found["account singapore"].level is Level.OK
    assert "main accounts" not in found
    assert listed(bare.sim) == 3


async def test_a_key_that_answers_nowhere_is_called_wrong(bare: World) -> None:
    await add(bare, "typo", "sk-frist")
    await add(bare, "singapore", "sk-singapore", region=SINGAPORE)
    text = (await examine(bare))["account typo"].text
    assert "answered 401" in text
    assert text.endswith("the key is wrong, or belongs to a region that no account here calls")


async def test_a_key_given_for_https_is_tried_nowhere_over_http(bare: World) -> None:
    await add_account(bare.res, NewAccount("real", "us-east-1", "https://127.0.0.1:1/api/v1", "sk-first"))
    await add(bare, "beijing", "sk-second")
    await examine(bare)
    assert listed(bare.sim) == 1  # beijing's own


async def test_two_accounts_with_one_main_account_are_found_out(bare: World) -> None:
    await add(bare, "a", "sk-first")
    await add(bare, "b", "sk-second")
    await add(bare, "c", "sk-stranger")
    await use(bare, "a", "c")
    found = await examine(bare)
    assert [found[f"account {name}"].level for name in "abc"] == [Level.OK] * 3
    warning = found["main accounts"]
    assert warning.level is Level.WARNING
    assert warning.text.startswith("accounts a and b are one main account: set --main-account")
    assert "c" not in warning.text.split(":")[0].split()


async def test_two_main_accounts_under_one_name_are_found_out(bare: World) -> None:
    await add(bare, "a", "sk-first", main_account="ours")
    await add(bare, "c", "sk-stranger", main_account="ours")
    await use(bare, "a", "c")
    warning = (await examine(bare))["main accounts"]
    assert warning == Finding(
        Level.WARNING, "accounts a and c are not one main account, though both are said to be ours"
    )


async def test_accounts_that_are_as_they_are_said_to_be_are_well(bare: World) -> None:
    await add(bare, "a", "sk-first", main_account="ours")
    await add(bare, "b", "sk-second", main_account="ours")
    await add(bare, "c", "sk-stranger")
    await use(bare, "a", "c")
    assert (await examine(bare))["main accounts"].level is Level.OK


@pytest.mark.parametrize("used", [(), ("a",)])
async def test_empty_task_lists_tell_nothing_and_that_is_said(bare: World, used: Sequence[str]) -> None:
    await add(bare, "a", "sk-first")
    await add(bare, "c", "sk-stranger")
    await use(bare, *used)
    finding = (await examine(bare))["main accounts"]
    assert finding.level is Level.WARNING
    assert finding.text.startswith("cannot be told yet for a and c")


async def test_one_key_in_two_accounts_is_one_main_account_even_when_it_was_never_used(bare: World) -> None:
    await add(bare, "a", "sk-first")
    await add(bare, "b", "sk-first")
    assert (await examine(bare))["main accounts"].text.startswith("accounts a and b are one main account")


async def test_each_key_of_an_account_is_asked(bare: World) -> None:
    await add(bare, "a", "sk-first")
    await use(bare, "a")
    second = await add_key(bare.res, "a", "sk-second")
    wrong = await add_key(bare.res, "a", "sk-wrong")
    found = await examine(bare)
    assert found[f"account a, key {wrong}"].level is Level.FAILED
    assert found[f"account a, key {second}"].level is Level.OK
    await retire_key(bare.res, "a", wrong)
    found = await examine(bare)
    assert f"account a, key {wrong}" not in found
    assert {finding.level for finding in found.values()} == {Level.OK}


async def test_keys_of_different_main_accounts_in_one_account_are_a_fault(bare: World) -> None:
    await add(bare, "a", "sk-first")
    await use(bare, "a")
    await add_key(bare.res, "a", "sk-stranger")
    await use(bare, "a")
    finding = (await examine(bare))["main accounts"]
    assert finding.level is Level.FAILED
    assert finding.text.startswith("the keys of a belong to different main accounts")


async def test_an_account_that_is_held_back_is_a_warning(bare: World) -> None:
    await add(bare, "a", "sk-first")
    await add(bare, "d", "sk-singapore", region=SINGAPORE)
    await pause(bare.res, "a", reason="a leak")
    await drain(bare.res, "d")
    found = await examine(bare)
    assert found["account a"] == Finding(Level.WARNING, "answers, but an operator paused it (a leak)")
    assert found["account d"] == Finding(Level.WARNING, "answers, but it is draining")


async def test_a_key_that_is_left_alone_is_a_warning(bare: World) -> None:
    await add(bare, "a", "sk-first")
    (key,) = (await get_account_by_name(bare.res, "a")).keys
    until = bare.res.clock.now().replace(year=2100)
    async with transaction(bare.res) as session:
        await mark_key_bad(session, key.id, until=until, reason="InvalidApiKey")
        await bar_key_from_model(session, key.id, MODEL, until=until, reason="Model.AccessDenied")
    bare.res.accounts.clear()
    finding = (await examine(bare))["account a"]
    assert finding.level is Level.WARNING
    assert "is left alone until" in finding.text
    assert finding.text.endswith(f"this key may not call {MODEL}")


async def test_an_account_without_a_key_is_a_fault(bare: World) -> None:
    await add(bare, "a", "sk-first")
    (key,) = (await get_account_by_name(bare.res, "a")).keys
    await retire_key(bare.res, "a", key.id, force=True)
    assert (await examine(bare))["account a"].level is Level.FAILED
