"""GET /api/v1/tasks: a team's own tasks, filtered and page by page, in DashScope's shape."""

import re
from datetime import timedelta
from typing import Any

import httpx
import pytest
from dashscope.v2.resources._jobs import JobList

from app.lib.clock import ALIBABA_ZONE
from app.models.tasks import State, UpstreamCall
from app.simulator import BEIJING
from app.tasks.states import upstream_word
from tests.steps.parts import queued
from tests.world import World

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


async def ask(world: World, team: str = "alpha", slash: str = "", **asked: Any) -> httpx.Response:
    return await world.http.get(f"/api/v1/tasks{slash}", params=asked, headers=world.headers(team))


async def page(world: World, team: str = "alpha", **asked: Any) -> dict[str, Any]:
    answer = await ask(world, team, **asked)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ids(world: World, team: str = "alpha", **asked: Any) -> list[str]:
    return [row["task_id"] for row in (await page(world, team, **asked))["data"]]


def time_of(world: World, *, hours: float = 0) -> str:
    """Now, or some hours off, as the list takes it."""
    instant = world.res.clock.now() + timedelta(hours=hours)
    return instant.astimezone(ALIBABA_ZONE).strftime("%Y%m%d%H%M%S")


# --- what it says --------------------------------------------------------------------------------------------------


async def test_a_row_says_what_dashscopes_says_with_our_ids(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    async with httpx.AsyncClient(trust_env=False) as direct:
        key = {"Authorization": f"Bearer {world.sim.key(BEIJING)}"}
        there = (await direct.get(f"{world.sim.base_url(BEIJING)}/tasks/", headers=key)).json()
    here = await page(world)
    assert {**here, "tasks": None}.keys() == {**there, "tasks": None}.keys()
    (row,), (row_there,) = here["data"], there["data"]
    assert row.keys() == row_there.keys()
    same = ("status", "model_name", "region", "user_api_unique_key")
    assert {name: row[name] for name in same} == {name: row_there[name] for name in same}
    mine = await world.row("SELECT * FROM tasks")
    assert (row["task_id"], row["request_id"], row["api_key_id"]) == (task_id, mine["request_id"], mine["api_key_id"])
    assert row["caller_uid"] == row["caller_parent_id"] == "alpha"
    milliseconds = [int(mine[name].timestamp() * 1000) for name in ("created_at", "finished_at")]
    assert [row["gmt_create"], row["end_time"]] == milliseconds
    assert all(isinstance(row[name], int) for name in ("gmt_create", "start_time", "end_time") if name in row)


async def test_it_shows_neither_links_nor_the_upstreams_ids(world: World) -> None:
    await world.finish(await world.create())
    text = (await ask(world)).text
    assert "http" not in text
    assert world.sim.truth.tasks[0].id not in text
    assert world.sim.truth.tasks[0].request_id not in text


async def test_the_same_tasks_stand_under_both_keys_and_the_new_client_reads_them(world: World) -> None:
    await world.finish(await world.create())
    world.sim.set_limits(running_tasks=0)
    await world.create()
    body = await page(world)
    assert [row["task_id"] for row in body["tasks"]] == [row["task_id"] for row in body["data"]]
    jobs = JobList.from_payload(body)
    assert [job.status for job in jobs.tasks] == ["PENDING", "SUCCEEDED"]
    assert (jobs.total, jobs.page_no, jobs.page_size) == (2, 1, 10)
    assert all(STAMP.fullmatch(job.submitted_at or "") for job in jobs.tasks)
    assert STAMP.fullmatch(jobs.tasks[1].finished_at or "")


async def test_a_team_without_tasks_has_an_empty_page(world: World) -> None:
    body = await page(world)
    assert body.keys() == {"request_id", "total", "total_page", "page_no", "page_size", "data", "tasks"}
    assert (body["total"], body["total_page"], body["page_no"], body["page_size"]) == (0, 0, 1, 10)
    assert body["data"] == body["tasks"] == []


async def test_it_may_be_asked_for_with_a_slash(world: World) -> None:
    task_id = await world.create()
    answer = await ask(world, slash="/")
    assert [row["task_id"] for row in answer.json()["data"]] == [task_id]


# --- whose tasks ---------------------------------------------------------------------------------------------------


async def test_another_teams_tasks_are_not_there_whatever_is_asked(world: World) -> None:
    task_id = await world.create()
    row = await world.row("SELECT * FROM tasks")
    empty = (await page(world, "beta")) | {"request_id": ""}
    for asked in ({"task_id": task_id}, {"api_key_id": row["api_key_id"]}, {"status": "PENDING"}):
        assert (await page(world, "beta", **asked)) | {"request_id": ""} == empty
    assert empty["total"] == 0


async def test_relays_and_creates_refused_at_once_are_no_tasks(world: World) -> None:
    shown = [await world.create(), await world.create()]
    await world.rows("UPDATE tasks SET mode = 'durable' WHERE id = $1::uuid", shown[0])
    hidden = await world.create()
    await world.rows("UPDATE tasks SET mode = 'relay' WHERE id = $1::uuid", hidden)
    assert (await world.post(world.order(n=9))).status_code == 400
    assert sorted(await ids(world)) == sorted(shown)
    assert await ids(world, task_id=hidden) == []


async def test_it_needs_a_key(world: World) -> None:
    answer = await world.http.get("/api/v1/tasks")
    assert (answer.status_code, answer.json()["code"]) == (401, "InvalidApiKey")


# --- filters -------------------------------------------------------------------------------------------------------


async def test_a_status_selects_exactly_what_reads_so(world: World) -> None:
    made = [await world.create(f"boat {n}") for n in range(2 * len(State))]
    kinds = [(state, call) for state in State for call in UpstreamCall]
    for task_id, (state, call) in zip(made, kinds, strict=True):
        await world.rows(
            "UPDATE tasks SET state = $2, upstream_call = $3, attempt = 1, finished_at = CASE WHEN $4 THEN now() END,"
            " upstream_task_id = id::text WHERE id = $1::uuid",
            *(task_id, str(state), str(call), state in ("succeeded", "failed", "canceled", "expired")),
        )
    for word in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED"):
        expected = {t for t, (state, call) in zip(made, kinds, strict=True) if upstream_word(state, call) == word}
        assert set(await ids(world, status=word, page_size=100)) == expected, word
    assert await ids(world, status="UNKNOWN") == await ids(world, status="queued") == []


async def test_each_filter_selects_its_own_and_all_of_them_together(world: World) -> None:
    first, second = await world.create(), await world.create()
    await world.rows("UPDATE tasks SET model = 'other', region = 'eu-central-1' WHERE id = $1::uuid", second)
    key_id = (await world.row("SELECT DISTINCT api_key_id FROM tasks"))["api_key_id"]
    assert await ids(world, task_id=first) == [first]
    assert await ids(world, task_id=first.upper()) == [first]
    assert await ids(world, model_name="other") == [second]
    assert await ids(world, region="eu-central-1") == [second]
    assert sorted(await ids(world, api_key_id=key_id)) == sorted([first, second])
    assert await ids(world, api_key_id="nobodys") == await ids(world, task_id="no-id") == []
    assert await ids(world, model_name="other", region=BEIJING) == []
    assert await ids(world, model_name="other", region="eu-central-1", api_key_id=key_id, status="") == [second]


async def test_only_the_last_day_is_listed_unless_another_is_asked_for(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    old = await world.create("old")
    world.sim.advance(25 * 3600)
    new = await world.create("new")
    assert await ids(world) == [new]
    assert await ids(world, end_time=time_of(world, hours=-2)) == [old]
    assert await ids(world, start_time=time_of(world, hours=-26)) == [old]  # a day from there
    assert await ids(world, start_time=time_of(world, hours=-1)) == [new]
    assert await ids(world, start_time=time_of(world, hours=-3), end_time=time_of(world, hours=-2)) == []
    assert await ids(world, start_time=time_of(world, hours=1), end_time=time_of(world, hours=-1)) == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"start_time": "20261121000000", "end_time": "20261122000001"}, "24 hours"),
        ({"start_time": "2026-11-22"}, "start_time must have the format YYYYMMDDhhmmss"),
        ({"end_time": "20261322000000"}, "end_time"),
        ({"end_time": "2026112200000"}, "end_time"),
        ({"end_time": "00010101000000"}, "end_time"),
        ({"start_time": "99991231235959"}, "start_time"),
        ({"start_time": "\u0662" * 14}, "start_time"),
        ({"page_no": "0"}, "page_no"),
        ({"page_no": "-1"}, "page_no"),
        ({"page_no": "1000000"}, "page_no"),
        ({"page_no": "9" * 5_000}, ""),
        ({"page_size": "0"}, "page_size"),
        ({"page_size": "ten"}, "page_size must be a positive integer"),
        ({"page_size": "1.5"}, "page_size"),
        ({"page_size": "\u0661"}, "page_size"),
        ({"model_name": "a\x00b"}, "malformed"),
        ({"status": "x" * 1_000}, "malformed"),
    ],
)
async def test_what_cannot_be_meant_is_refused(world: World, asked: dict[str, str], says: str) -> None:
    answer = await ask(world, **asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert says in answer.json()["message"]


async def test_what_nobody_has_ever_is_no_error(world: World) -> None:
    for asked in ({"task_id": "' OR 1=1 --"}, {"model_name": "%"}, {"colour": "red"}, {"region": "\U0001f600"}):
        assert (await ask(world, **asked)).status_code == 200, asked


# --- pages ---------------------------------------------------------------------------------------------------------


async def test_pages_hold_each_task_once_the_newest_first(world: World) -> None:
    made = await queued(world, 7)
    pages = [await page(world, page_no=number, page_size=3) for number in (1, 2, 3, 4)]
    assert [row["task_id"] for body in pages for row in body["data"]] == made[::-1]
    assert [len(body["data"]) for body in pages] == [3, 3, 1, 0]
    assert {(body["total"], body["total_page"], body["page_size"]) for body in pages} == {(7, 3, 3)}
    assert [body["page_no"] for body in pages] == [1, 2, 3, 4]


async def test_tasks_of_the_same_instant_keep_their_order_over_pages(world: World) -> None:
    made = await queued(world, 6)
    await world.rows("UPDATE tasks SET created_at = (SELECT min(created_at) FROM tasks)")
    found = [task_id for number in (1, 2, 3) for task_id in await ids(world, page_no=number, page_size=2)]
    assert found == made[::-1]


async def test_a_page_is_ten_unless_asked_and_a_hundred_at_most(world: World) -> None:
    await queued(world, 12)
    assert len(await ids(world)) == 10
    body = await page(world, page_size=1_000)
    assert (len(body["data"]), body["page_size"], body["total_page"]) == (12, 100, 1)
