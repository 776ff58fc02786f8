"""The task list: pages, filters, and what its rows hold back."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from app.simulator import Simulator
from tests.contract.conftest import UpstreamCaller

UPSTREAM_ZONE = timezone(timedelta(hours=8))


def written(instant: float) -> str:
    return datetime.fromtimestamp(instant, UPSTREAM_ZONE).strftime("%Y%m%d%H%M%S")


async def create_many(sim: Simulator, upstream: UpstreamCaller, count: int) -> list[str]:
    """Create tasks one second apart; return their ids, oldest first."""
    task_ids = []
    for _ in range(count):
        task_ids.append(await upstream.create())
        sim.advance(1)
    return task_ids


async def ids(upstream: UpstreamCaller, **wanted: object) -> list[str]:
    answer = await upstream.list(**wanted)
    assert answer.status_code == 200, answer.text
    return [row["task_id"] for row in answer.json()["data"]]


async def test_a_page_has_ten_rows_newest_first(sim: Simulator, upstream: UpstreamCaller) -> None:
    task_ids = await create_many(sim, upstream, 12)
    first, second, third = [(await upstream.list(page_no=page)).json() for page in (1, 2, 3)]
    assert {name: first[name] for name in ("total", "total_page", "page_no", "page_size")} == {
        "total": 12,
        "total_page": 2,
        "page_no": 1,
        "page_size": 10,
    }
    listed = [row["task_id"] for page in (first, second, third) for row in page["data"]]
    assert listed == task_ids[::-1]
    assert third["data"] == []


async def test_a_row_has_times_in_milliseconds_and_neither_results_nor_errors(
    sim: Simulator, upstream: UpstreamCaller
) -> None:
    answer = await upstream.post(upstream.order("[[broken]]"))
    sim.advance(1)
    [row] = (await upstream.list()).json()["data"]
    [task] = sim.truth.tasks
    assert task.ended_at is not None
    assert row == {
        "task_id": task.id,
        "status": "FAILED",
        "model_name": "wan2.6-image",
        "region": "cn-beijing",
        "request_id": answer.json()["request_id"],
        "gmt_create": int(task.created_at * 1000),
        "start_time": int(task.created_at * 1000),
        "end_time": int(task.ended_at * 1000),
        "api_key_id": row["api_key_id"],
        "caller_uid": "1000000000000001",
        "caller_parent_id": "1000000000000001",
        "user_api_unique_key": "apikey:v1:aigc:image-generation:generation:wan2.6-image",
    }
    assert row["api_key_id"].isdigit()


async def test_a_waiting_task_has_neither_start_nor_end(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_limits(running_tasks=0)
    await upstream.create()
    [row] = (await upstream.list(status="PENDING")).json()["data"]
    assert row.keys().isdisjoint({"start_time", "end_time"})


async def test_filters_select(sim: Simulator, upstream: UpstreamCaller) -> None:
    done = await upstream.create()
    sim.advance(1)
    failed = await upstream.create("[[broken]]")
    sim.advance(1)
    running = await upstream.create()
    assert await ids(upstream, status="SUCCEEDED") == [done]
    assert await ids(upstream, status="FAILED") == [failed]
    assert await ids(upstream, status="RUNNING") == [running]
    assert await ids(upstream, status="SUSPENDED") == []
    assert await ids(upstream, task_id=failed) == [failed]
    assert await ids(upstream, model_name="wan2.6-image") == [running, failed, done]
    assert await ids(upstream, model_name="wan2.7-image") == []
    assert await ids(upstream, region="ap-southeast-1") == []
    assert await ids(upstream, unheard_of="x") == [running, failed, done]


async def test_times_select_by_creation(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.advance(1 - sim.truth.clock.now() % 1)  # whole seconds, as precise as the filter is
    start = sim.truth.clock.now()
    first, second, third = await create_many(sim, upstream, 3)
    assert await ids(upstream, start_time=written(start + 1)) == [third, second]
    assert await ids(upstream, start_time=written(start + 1), end_time=written(start + 1)) == [second]
    assert await ids(upstream, end_time=written(start + 1)) == [second, first]


async def test_a_page_is_never_longer_than_the_simulator_allows(sim: Simulator, upstream: UpstreamCaller) -> None:
    answer = (await upstream.list(page_size=5000)).json()
    assert answer["page_size"] == sim.truth.options.max_page_size


@pytest.mark.parametrize(
    "wanted",
    [
        {"page_no": "0"},
        {"page_no": "x"},
        {"page_size": "-1"},
        {"start_time": "2026-11-22"},
        {"start_time": "20261120000000", "end_time": "20261122000000"},
    ],
)
async def test_a_senseless_list_is_refused(upstream: UpstreamCaller, wanted: dict[str, str]) -> None:
    answer = await upstream.list(**wanted)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
