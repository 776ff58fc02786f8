"""Outcome: what the upstream made of a task is one fact, recorded once, whoever brings it and however often."""

import asyncio
import json
from typing import Any

import pytest

from app.tasks.outcome import record_outcome
from app.upstream import answers
from tests.steps.parts import polled, task, works
from tests.world import World

LINK = "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1d/a/{}.png?Expires={}&Signature=hush"


def succeeded(*links: str, usage: Any = None, **output: Any) -> answers.Succeeded:
    """An answer that names these files."""
    choices = [{"message": {"content": [{"type": "image", "image": link}]}} for link in links]
    answer: dict[str, Any] = {"output": {"task_status": "SUCCEEDED", "choices": choices, **output}}
    if usage is not None:
        answer["usage"] = usage
    return answers.Succeeded("upstream-request", answer, json.dumps(answer).encode())


def link(world: World, number: int = 1, *, lives: int = 3_600) -> str:
    return LINK.format(number, int(world.res.clock.now().timestamp()) + lives)


async def a_task(world: World, team: str = "alpha", **parameters: Any) -> Any:
    """A pending task as the poller reads it."""
    await world.create(team=team, **parameters)
    (row,) = await polled(world)
    return row


async def state_of(world: World, row: Any) -> str:
    return str((await task(world, str(row["id"])))["state"])


async def lines(world: World) -> list[tuple[str, int, str | None]]:
    rows = await world.rows("SELECT kind, quantity, flag FROM ledger_entries")
    return [(row["kind"], int(row["quantity"]), row["flag"]) for row in rows]


# --- made ----------------------------------------------------------------------------------------------------------


async def test_a_success_is_state_files_work_line_and_answer_at_once(world: World) -> None:
    row = await a_task(world)
    assert await record_outcome(world.res, row, succeeded(link(world, 1), link(world, 2), usage={"image_count": 2}))
    assert await state_of(world, row) == "delivering"
    assert [asset["state"] for asset in await world.rows("SELECT state FROM assets")] == ["waiting"] * 2
    assert len(await works(world, "deliver")) == 2
    assert await lines(world) == [("usage", 2, None)]
    assert (await world.row("SELECT answer IS NOT NULL AS kept FROM task_bodies"))["kept"]


async def test_the_bill_does_not_wait_for_the_files(world: World) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded(link(world), usage={"image_count": 1}))
    line = await world.row("SELECT * FROM ledger_entries")
    assert line["upstream_request_id"] == "upstream-request"
    assert line["billed_at"] == world.res.clock.now()
    day = await world.row("SELECT quantity, entries FROM usage_daily")
    assert (day["quantity"], day["entries"]) == (1, 1)


async def test_the_same_outcome_told_twice_changes_nothing(world: World) -> None:
    row = await a_task(world)
    made = succeeded(link(world), usage={"image_count": 1})
    assert await record_outcome(world.res, row, made)
    assert not await record_outcome(world.res, row, made)
    assert len(await world.rows("SELECT 1 FROM assets")) == 1
    assert await lines(world) == [("usage", 1, None)]


async def test_two_who_learn_the_same_at_once_record_it_once(world: World) -> None:
    row = await a_task(world, "gamma")
    made = succeeded(link(world), usage={"image_count": 1})
    assert sorted(await asyncio.gather(*(record_outcome(world.res, row, made) for _ in range(4)))) == [0, 0, 0, 1]
    assert await lines(world) == [("usage", 1, None)]
    assert len(await world.rows("SELECT 1 FROM webhook_events")) == 1


async def test_a_later_word_takes_nothing_back(world: World) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded(link(world), usage={"image_count": 1}))
    for late in (
        answers.Running("r"),
        answers.Pending("PENDING", "r"),
        answers.Failed("r", "InternalError", "", b"{}"),
        answers.Canceled("r", b"{}"),
    ):
        assert not await record_outcome(world.res, row, late)
    assert await state_of(world, row) == "delivering"


async def test_the_outcome_of_an_earlier_attempt_is_not_the_present_ones(world: World) -> None:
    row = await a_task(world)
    await world.rows("UPDATE tasks SET attempt = 2")
    assert not await record_outcome(world.res, row, succeeded(link(world), usage={"image_count": 1}))
    assert await lines(world) == []


async def test_running_is_noted_once_with_its_instant(world: World) -> None:
    row = await a_task(world)
    assert await record_outcome(world.res, row, answers.Running("r"))
    started_at = (await task(world, str(row["id"])))["started_at"]
    assert started_at == world.res.clock.now()
    (again,) = await polled(world)
    assert not await record_outcome(world.res, again, answers.Running("r"))


# --- straight to the end -------------------------------------------------------------------------------------------


async def test_without_files_a_success_is_the_end(world: World) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded(usage={"image_count": 0}))
    assert await state_of(world, row) == "succeeded"
    assert [event["type"] for event in await world.rows("SELECT type FROM webhook_events")] == ["task.succeeded"]


async def test_without_a_destination_a_success_is_the_end_and_nothing_is_copied(world: World) -> None:
    row = await a_task(world, "gamma")
    await record_outcome(world.res, row, succeeded(link(world), usage={"image_count": 1}))
    assert await state_of(world, row) == "succeeded"
    assert await works(world, "deliver") == []
    assert (await world.row("SELECT state, place_id FROM assets"))["place_id"] is None


async def test_a_destination_that_came_later_is_not_this_tasks(world: World) -> None:
    row = await a_task(world, "gamma")
    await world.rows(
        "INSERT INTO destinations (team_id, place_id) SELECT t.id, p.id FROM teams t, places p "
        "WHERE t.slug = 'gamma' LIMIT 1"
    )
    await record_outcome(world.res, row, succeeded(link(world), usage={"image_count": 1}))
    assert await works(world, "deliver") == []


# --- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "output", "expected"),
    [
        ({"image_count": 2}, {}, ("usage", 2, None)),
        ({"image_count": 1}, {}, ("usage", 1, "counts_disagree")),
        ({"image_count": 2}, {"task_metrics": {"SUCCEEDED": 3}}, ("usage", 2, "counts_disagree")),
        ({"image_count": 2}, {"task_metrics": {"SUCCEEDED": 2}}, ("usage", 2, None)),
        (None, {}, ("usage", 2, "counted_artifacts")),
        ({}, {}, ("usage", 2, "counted_artifacts")),
        ({"tokens": 7}, {}, ("usage", 2, "unknown_usage")),
        ({"image_count": -3}, {}, ("usage", 2, "unknown_usage")),
        ({"image_count": 10**9}, {}, ("usage", 2, "unknown_usage")),
        ({"image_count": "2"}, {}, ("usage", 2, "unknown_usage")),
        ({"image_count": True}, {}, ("usage", 2, "unknown_usage")),
    ],
)
async def test_the_upstreams_count_is_billed_and_what_looks_odd_is_flagged(
    world: World, usage: Any, output: dict[str, Any], expected: tuple[str, int, str | None]
) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded(link(world, 1), link(world, 2), usage=usage, **output))
    assert await lines(world) == [expected]


async def test_blocked_images_beside_good_ones_cost_nothing(world: World) -> None:
    row = await a_task(world)
    results = [{"url": link(world)}, {"code": "DataInspectionFailed", "message": "x"}]
    await record_outcome(world.res, row, succeeded(usage={"image_count": 1}, results=results))
    assert await lines(world) == [("usage", 1, None)]
    assert (await world.row("SELECT json_path FROM assets"))["json_path"] == "results.0.url"


async def test_what_the_upstream_made_teaches_how_long_the_model_runs(world: World) -> None:
    row = await a_task(world)
    world.sim.advance(40)
    await record_outcome(world.res, row, succeeded(usage={"image_count": 0}))
    assert (await world.row("SELECT learned_seconds FROM account_models"))["learned_seconds"] == pytest.approx(40)


# --- links ---------------------------------------------------------------------------------------------------------


async def test_a_link_is_kept_sealed_with_the_instant_it_dies(world: World) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded(link(world, lives=7_200), usage={"image_count": 1}))
    asset = await world.row("SELECT source, source_expires_at FROM assets")
    assert b"Signature" not in asset["source"]
    assert 7_199 <= (asset["source_expires_at"] - world.res.clock.now()).total_seconds() <= 7_200


async def test_a_link_that_does_not_say_when_it_dies_lives_a_day(world: World) -> None:
    row = await a_task(world)
    await record_outcome(world.res, row, succeeded("https://host.example/1.png", usage={"image_count": 1}))
    asset = await world.row("SELECT source_expires_at FROM assets")
    assert (asset["source_expires_at"] - world.res.clock.now()).total_seconds() == 86_400


async def test_broken_links_are_files_like_others(world: World) -> None:
    row = await a_task(world)
    links = ("http://[broken/1.png", "https://half.example/\ud83d.png", "https://host.example/\x00.png")
    assert await record_outcome(world.res, row, succeeded(*links, usage={"image_count": 3}))
    assert len(await world.rows("SELECT 1 FROM assets")) == 3


# --- ended without a result ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "state", "told"),
    [
        (answers.Failed("r", "DataInspectionFailed", "blocked", b'{"output":{}}'), "failed", "task.failed"),
        (answers.Canceled("r", b'{"output":{}}'), "canceled", "task.canceled"),
    ],
)
async def test_what_failed_or_was_cancelled_costs_nothing_and_is_told(
    world: World, ending: answers.Look, state: str, told: str
) -> None:
    row = await a_task(world)
    assert await record_outcome(world.res, row, ending)
    assert await state_of(world, row) == state
    assert await lines(world) == []
    assert await world.rows("SELECT 1 FROM usage_daily") == []
    assert await world.rows("SELECT 1 FROM assets") == []
    assert [event["type"] for event in await world.rows("SELECT type FROM webhook_events")] == [told]
    assert not await record_outcome(world.res, row, ending)


async def test_a_task_that_is_gone_while_young_is_left_as_it_is(world: World) -> None:
    row = await a_task(world)
    assert not await record_outcome(world.res, row, answers.Gone("r"))
    assert await state_of(world, row) == "pending"


async def test_an_expired_task_is_expired_once(world: World) -> None:
    row = await a_task(world, n=2)
    world.sim.advance(86_401)
    assert await record_outcome(world.res, row, answers.Gone("r"))
    assert not await record_outcome(world.res, row, answers.Gone("r"))
    assert await lines(world) == [("presumed", 2, None)]
