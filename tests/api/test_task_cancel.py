"""POST /api/v1/tasks/{id}/cancel: one answer when it is so, and one for everything else, whoever asks."""

import asyncio
import json
from typing import Any

import httpx

from app.lib.ids import new_id
from app.simulator import BEIJING
from app.tasks.poll import poll_due
from tests.api.parts import without_database
from tests.steps.parts import queued, until
from tests.world import World

REFUSAL = {
    "code": "UnsupportedOperation",
    "message": "Failed to cancel the task, please confirm if the task is in PENDING status.",
}


async def cancel(world: World, task_id: str, team: str = "alpha") -> httpx.Response:
    return await world.http.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers(team))


async def pending(world: World) -> str:
    world.sim.set_limits(running_tasks=0)
    return await world.create()


async def cancel_upstream(world: World, task_id: str) -> httpx.Response:
    """Cancel a task that waits upstream, with the owner at work."""
    asking = asyncio.create_task(cancel(world, task_id))
    await until(lambda: len(world.res.waiters) == 1)
    await poll_due(world.res, watches=world.watches)
    return await asking


def plain(answer: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """An answer but for its request id."""
    own_id = answer.json()["request_id"]
    assert answer.headers["x-request-id"] == own_id
    headers = {name: value for name, value in answer.headers.items() if name != "x-request-id"}
    return answer.status_code, answer.content.replace(own_id.encode(), b"ID"), headers


async def test_a_task_that_waits_here_is_cancelled(world: World) -> None:
    (task_id,) = await queued(world, 1)
    answer = await cancel(world, task_id)
    assert (answer.status_code, answer.json().keys()) == (200, {"request_id"})
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output.keys()) == ("CANCELED", {"task_id", "task_status", "submit_time"})


async def test_a_task_that_waits_upstream_is_cancelled_and_reads_as_it_does_there(world: World) -> None:
    task_id = await pending(world)
    answer = await cancel_upstream(world, task_id)
    assert (answer.status_code, answer.json().keys()) == (200, {"request_id"})
    async with httpx.AsyncClient(trust_env=False) as direct:
        url = f"{world.sim.base_url(BEIJING)}/tasks/{world.sim.truth.tasks[0].id}"
        there = (await direct.get(url, headers={"Authorization": f"Bearer {world.sim.key(BEIJING)}"})).json()
    here = await world.read(task_id)
    assert here["output"].keys() == there["output"].keys()
    assert here["output"]["task_status"] == there["output"]["task_status"] == "CANCELED"


async def test_everything_that_is_not_cancelled_is_refused_in_the_same_words(world: World) -> None:
    ended = await world.create()
    await world.finish(ended)
    world.sim.set_durations(60, 60)
    running = await world.create()
    await world.advance(1.1)
    assert await world.status(running) == "RUNNING"
    relay = await world.create()
    await world.rows("UPDATE tasks SET mode = 'relay' WHERE id = $1::uuid", relay)
    asked: list[tuple[str, str]] = [
        *((ended, "alpha"), (running, "alpha"), (relay, "alpha")),
        *((ended, "beta"), (running, "beta"), (str(new_id()), "beta")),
        *(("no-id-at-all", "alpha"), (world.sim.truth.tasks[0].id, "alpha")),
    ]
    answers = [plain(await cancel(world, task_id, team)) for task_id, team in asked]
    assert [answer for answer in answers if answer != answers[0]] == []
    status, body, headers = answers[0]
    assert (status, json.loads(body)) == (400, {**REFUSAL, "request_id": "ID"})
    assert headers["x-should-retry"] == "false"


async def test_another_teams_waiting_task_is_refused_in_the_same_words_and_goes_on(world: World) -> None:
    there = await pending(world)
    world.sim.fail_next("create", "429")
    waiting = await world.create()
    answers = [plain(await cancel(world, task_id, "beta")) for task_id in (waiting, there, str(new_id()))]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0] == 400
    wishes = await world.rows("SELECT state, cancel_requested_at FROM tasks ORDER BY created_at")
    assert [tuple(row.values()) for row in wishes] == [("pending", None), ("queued", None)]


async def test_it_needs_a_key_and_may_end_in_a_slash(world: World) -> None:
    (task_id,) = await queued(world, 1)
    refused = await world.http.post(f"/api/v1/tasks/{task_id}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (401, "InvalidApiKey")
    answer = await world.http.post(f"/api/v1/tasks/{task_id}/cancel/", headers=world.headers())
    assert answer.status_code == 200


async def test_a_read_is_no_cancel(world: World) -> None:
    (task_id,) = await queued(world, 1)
    answer = await world.http.get(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers())
    assert (answer.status_code, answer.json()["code"]) == (405, "MethodNotAllowed")
    assert await world.status(task_id) == "PENDING"


async def test_while_the_database_is_away_it_is_a_503(world: World) -> None:
    (task_id,) = await queued(world, 1)
    async with without_database(world) as (_, teams, _):
        answer: Any = await teams.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers())
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
