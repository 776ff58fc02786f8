"""tasks/blame.py: a call that the upstream refuses because of a key of ours is made once more with another."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.models.accounts import Serving
from app.routing.accounts import all_accounts
from app.routing.changes import resume
from app.routing.keys import add_key
from app.simulator import BEIJING
from app.tasks.dispatch import dispatch_due
from tests.api.calling import RELAYED, SYNC_PATH, Line, call, create, ledger, relay_order, served, sync_task
from tests.api.streaming import telling_upstream
from tests.steps.failover import NO_MONEY, NO_RIGHT, UNKNOWN_KEY, asked_with, several_keys
from tests.steps.parts import states, until
from tests.world import World

TEN_MINUTES = 600
OTHER_MODEL = "wan2.6-t2i"


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway whose one account has two keys, the newest of which is `sk-second`."""
    async with several_keys(database_url, tmp_path) as world:
        await add_key(world.res, BEIJING, "sk-second")
        yield world


async def marks(world: World) -> dict[str, str | None]:
    """Why each key is left alone, the oldest first."""
    rows = await world.rows("SELECT bad_reason FROM account_keys ORDER BY created_at, id")
    return dict(zip(("sk-first", "sk-second", "sk-third"), (row["bad_reason"] for row in rows), strict=False))


async def bars(world: World) -> list[tuple[str, str]]:
    """Which models are barred from keys, and why."""
    rows = await world.rows("SELECT model, reason FROM account_key_models ORDER BY model, account_key_id")
    return [(row["model"], row["reason"]) for row in rows]


def other_order() -> dict[str, Any]:
    """The body of a create of another model."""
    messages = [{"role": "user", "content": [{"text": "a paper boat"}]}]
    return {"model": OTHER_MODEL, "input": {"messages": messages}, "parameters": {"n": 1}}


# --- one key of several --------------------------------------------------------------------------------------------


async def test_a_refused_key_is_marked_and_the_next_one_makes_the_call(world: World) -> None:
    world.sim.fail_next("create", "error", key="sk-second", **UNKNOWN_KEY)
    await world.create()
    assert asked_with(world) == ["sk-second", "sk-first"]
    assert (await states(world), len(world.sim.truth.tasks)) == (["pending"], 1)
    assert await marks(world) == {"sk-first": None, "sk-second": "InvalidApiKey"}
    row = await sync_task(world)
    assert (row["attempt"], row["refused_inline"]) == (1, False)


async def test_a_refused_key_is_left_alone_for_ten_minutes(world: World) -> None:
    world.sim.fail_next("create", "error", key="sk-second", **UNKNOWN_KEY)
    await world.create()
    world.sim.advance(TEN_MINUTES - 1)
    await world.create()
    world.sim.advance(2)
    await world.create()
    assert asked_with(world) == ["sk-second", "sk-first", "sk-first", "sk-second"]


@pytest.mark.parametrize("form", ["relay", "durable", "async for a model that answers at once"])
async def test_every_form_of_call_has_its_next_key(world: World, form: str) -> None:
    operation = "create" if form == "durable" else "sync"
    world.sim.fail_next(operation, "error", key="sk-second", **UNKNOWN_KEY)
    if form.startswith("async"):
        await Line(world, relay_order(), **{"X-DashScope-Async": "enable"}).answer()
        await dispatch_due(world.res)
        await until(lambda: len(world.sim.truth.calls) == 1)
        world.sim.advance(1)
        await world.res.calls.drain(5)
        await world.drain()
    else:
        line = await call(world, world.order() if form == "durable" else relay_order())
        assert (await served(world, line)).status_code == 200
        await world.drain()
    assert asked_with(world) == ["sk-second", "sk-first"]
    assert len(world.sim.truth.calls) + len(world.sim.truth.tasks) == 1
    assert (await states(world), await ledger(world)) == (["succeeded"], [("usage", "image", 1)])


async def test_a_key_without_right_to_a_model_is_barred_from_that_model_alone(world: World) -> None:
    world.sim.fail_next("create", "error", key="sk-second", **NO_RIGHT)
    await world.create()
    await world.create()
    await world.post(other_order())
    assert asked_with(world) == ["sk-second", "sk-first", "sk-first", "sk-second"]
    assert (await marks(world), await bars(world)) == (
        {"sk-first": None, "sk-second": None},
        [("wan2.6-image", "Model.AccessDenied")],
    )


async def test_each_key_that_is_left_is_tried(world: World) -> None:
    await add_key(world.res, BEIJING, "sk-third")
    for key in ("sk-third", "sk-second"):
        world.sim.fail_next("create", "error", key=key, **UNKNOWN_KEY)
    await world.create()
    assert asked_with(world) == ["sk-third", "sk-second", "sk-first"]
    assert await marks(world) == {"sk-first": None, "sk-second": "InvalidApiKey", "sk-third": "InvalidApiKey"}
    (account,) = await all_accounts(world.res)
    assert account.paused_until is None


async def test_a_call_that_was_refused_too_late_for_another_in_its_lease_waits_for_a_new_one(world: World) -> None:
    async with telling_upstream(world) as upstream:
        line = await create(world)
        told = await upstream.asked()
        world.sim.advance(10)
        refused = json.dumps(UNKNOWN_KEY).encode()
        await told.begin(f"Content-Length: {len(refused)}\r\n", status=401)
        await told._write(refused)
        assert (await line.answer()).json()["output"]["task_status"] == "PENDING"
        assert upstream.unanswered == 0
    assert await marks(world) == {"sk-first": None, "sk-second": "InvalidApiKey"}
    row = await sync_task(world)
    assert (row["state"], row["code"]) == ("queued", None)


# --- the last key --------------------------------------------------------------------------------------------------


async def test_when_no_key_is_left_the_account_is_at_fault(world: World) -> None:
    for key in ("sk-second", "sk-first"):
        world.sim.fail_next("create", "error", key=key, **UNKNOWN_KEY)
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")
    assert answer.headers["x-should-retry"] == "false"
    (account,) = await all_accounts(world.res)
    assert (account.paused_reason, (account.paused_until or world.res.clock.now()) > world.res.clock.now()) == (
        "InvalidApiKey",
        True,
    )
    assert await marks(world) == {"sk-first": None, "sk-second": "InvalidApiKey"}  # tried again with the account
    assert asked_with(world) == ["sk-second", "sk-first"]


async def test_a_model_that_no_key_may_call_is_left_alone_and_others_are_not(world: World) -> None:
    for key in ("sk-second", "sk-first"):
        world.sim.fail_next("create", "error", key=key, **NO_RIGHT)
    assert (await world.post(world.order())).status_code == 503
    assert (await world.post(world.order())).status_code == 503  # nobody is asked now
    assert (await world.post(other_order())).status_code == 200
    assert asked_with(world) == ["sk-second", "sk-first", "sk-second"]
    (account,) = await all_accounts(world.res)
    assert account.paused_until is None
    assert await bars(world) == [("wan2.6-image", "Model.AccessDenied")] * 2
    world.sim.advance(TEN_MINUTES + 1)
    assert (await world.post(world.order())).status_code == 200


async def test_what_no_other_key_would_mend_is_asked_with_no_other_key(world: World) -> None:
    world.sim.fail_next("create", "error", **NO_MONEY)
    assert (await world.post(world.order())).status_code == 503
    assert asked_with(world) == ["sk-second"]
    assert await marks(world) == {"sk-first": None, "sk-second": None}
    (account,) = await all_accounts(world.res)
    assert account.paused_reason == "Arrearage"


@pytest.mark.parametrize("code", ["AccessDenied.Unpurchased", "AllocationQuota.FreeTierOnly"])
async def test_a_model_that_the_account_may_not_use_is_left_alone_for_a_minute(world: World, code: str) -> None:
    world.sim.fail_next("create", "error", status=403, code=code, message="no")
    assert (await world.post(world.order())).status_code == 503
    assert (await world.post(world.order())).status_code == 503
    assert asked_with(world) == ["sk-second"]
    world.sim.advance(61)
    assert (await world.post(world.order())).status_code == 200


async def test_an_operator_who_resumes_the_account_has_everything_tried_again(world: World) -> None:
    for key in ("sk-second", "sk-first"):
        world.sim.fail_next("create", "error", key=key, **NO_RIGHT)
    await world.post(world.order())
    await resume(world.res, BEIJING)
    (account,) = await all_accounts(world.res)
    assert (account.serving, await bars(world)) == (Serving.ACTIVE, [])
    assert (await world.post(world.order())).status_code == 200


async def test_a_relay_without_a_key_is_a_503_that_tells_nothing(world: World) -> None:
    for key in ("sk-second", "sk-first"):
        world.sim.fail_next("sync", "error", key=key, **UNKNOWN_KEY)
    answer = await Line(world, relay_order()).answer()
    assert (answer.status_code, answer.json()["code"]) == (503, "Dashgate.UpstreamAccount")
    assert (answer.headers["x-should-retry"], "InvalidApiKey" in answer.text) == ("false", False)
    assert (asked_with(world), await ledger(world)) == (["sk-second", "sk-first"], [])


async def test_the_callers_workspace_is_never_passed_on_and_the_accounts_always_is(world: World) -> None:
    await world.rows("UPDATE accounts SET workspace = 'ws-ours'")
    world.res.accounts.clear()
    forms: list[dict[str, Any]] = [
        {"body": world.order(), "path": SYNC_PATH, "X-DashScope-Async": "enable"},
        {"body": world.order(), "path": SYNC_PATH},
        {"body": {**relay_order(), "model": RELAYED}, "path": SYNC_PATH},
    ]
    async with telling_upstream(world) as upstream:
        for form in forms:
            line = Line(world, **form, **{"X-DashScope-WorkSpace": "ws-theirs"})
            told = await upstream.asked()
            assert told.request.headers["x-dashscope-workspace"] == "ws-ours"
            told.cut()
            line.hang_up()
            await line.answer()
            await world.rows("DELETE FROM account_models")  # the pause after a lost answer
