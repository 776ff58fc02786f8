"""GET /api/v1/tasks/{id}: what a team is told of its tasks, and that nobody else is told anything."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from app.delivery.deliver import deliver_due
from app.lib.ids import new_id
from app.simulator import BEIJING
from app.tasks.poll import poll_due
from tests.api.parts import UPSTREAM_ID, choices, receipt, scripted_upstream, state, without_database
from tests.world import CREATE_PATH, World

ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")
LINK = re.compile(r'http://[^"]+')


async def read(world: World, task_id: str, team: str = "alpha") -> httpx.Response:
    return await world.http.get(f"/api/v1/tasks/{task_id}", headers=world.headers(team))


async def look(world: World) -> None:
    """Let the poller see what happened upstream; nothing is copied."""
    world.sim.advance(1.1)
    await poll_due(world.res, watches=world.watches)


def without_particulars(answer: str) -> Any:
    """Replace ids, times and links by placeholders."""
    for form, word in ((LINK, "LINK"), (ID, "ID"), (STAMP, "TIME")):
        answer = form.sub(word, answer)
    return json.loads(answer)


async def ended_by(world: World, **values: Any) -> str:
    """Make a task whose upstream gave these answers about it, looked at until it ended."""
    async with scripted_upstream(world) as upstream:
        upstream.create, upstream.look = receipt(), state(**values)
        task_id = await world.create(team="gamma")
        await look(world)
    return task_id


# --- a life, as its team sees it -----------------------------------------------------------------------------------


async def test_a_fresh_task_is_pending_since_its_acceptance(world: World) -> None:
    task_id = await world.create()
    body = (await read(world, task_id)).json()
    assert body["output"].keys() == {"task_id", "task_status", "submit_time"}
    assert (body["output"]["task_id"], body["output"]["task_status"]) == (task_id, "PENDING")
    assert STAMP.fullmatch(body["output"]["submit_time"])


@pytest.mark.parametrize("kind", ["429", "lost_answer"])
async def test_a_task_that_waits_or_is_in_doubt_is_pending(world: World, kind: str) -> None:
    world.sim.fail_next("create", kind)
    assert await world.status(await world.create()) == "PENDING"


async def test_a_task_at_work_upstream_is_running(world: World) -> None:
    world.sim.set_durations(60, 60)
    task_id = await world.create()
    await look(world)
    output = (await world.read(task_id))["output"]
    assert output["task_status"] == "RUNNING"
    assert STAMP.fullmatch(output["scheduled_time"])


async def test_a_task_whose_files_are_being_copied_is_running_and_shows_no_link(world: World) -> None:
    task_id = await world.create()
    await look(world)
    body = await world.read(task_id)
    assert body["output"]["task_status"] == "RUNNING"
    assert "http" not in json.dumps(body)
    await deliver_due(world.res)
    assert await world.status(task_id) == "SUCCEEDED"


async def test_the_final_answer_is_the_upstreams_but_for_ids_times_and_links(world: World) -> None:
    task_id = await world.create(n=2)
    await world.finish(task_id)
    async with httpx.AsyncClient(trust_env=False) as direct:
        url = f"{world.sim.base_url(BEIJING)}/tasks/{world.sim.truth.tasks[0].id}"
        upstream = await direct.get(url, headers={"Authorization": f"Bearer {world.sim.key(BEIJING)}"})
    assert without_particulars((await read(world, task_id)).text) == without_particulars(upstream.text)


async def test_the_final_answer_shows_neither_the_upstreams_id_nor_its_links(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    body = await world.read(task_id)
    assert world.sim.truth.tasks[0].id not in json.dumps(body)
    assert all(link.startswith("http://gateway/assets/") for link in LINK.findall(json.dumps(body)))


async def test_once_ended_a_task_gives_the_same_answer_within_the_hour(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    first = await world.read(task_id)
    await world.advance(5)
    second = await world.read(task_id)
    assert first | {"request_id": ""} == second | {"request_id": ""}


async def test_a_failed_task_says_why_in_the_upstreams_words(world: World) -> None:
    task_id = await world.create("[[forbidden]]")
    assert await world.finish(task_id) == "FAILED"
    output = (await world.read(task_id))["output"]
    assert (output["code"], output["task_id"]) == ("DataInspectionFailed", task_id)
    assert output["message"] == "Output data may contain inappropriate content."


async def test_a_cancelled_task_is_cancelled(world: World) -> None:
    assert await world.status(await ended_by(world, word="CANCELED"), "gamma") == "CANCELED"


async def test_half_a_character_in_the_upstreams_text_does_not_break_the_answer(world: World) -> None:
    cut = [{"message": {"content": [{"type": "text", "text": "a smile \ud83d"}]}}]
    task_id = await ended_by(world, word="SUCCEEDED", choices=cut, usage={"image_count": 0})
    answer = await read(world, task_id, "gamma")
    assert answer.status_code == 200
    assert answer.json()["output"]["choices"] == cut


async def test_a_link_that_is_no_url_costs_the_team_that_one_file(world: World) -> None:
    links = ["http://[broken/1.png", "https://half.example/\ud83d.png"]
    usage = {"image_count": 2}
    task_id = await ended_by(world, word="SUCCEEDED", choices=choices(*links), usage=usage)
    assert await world.status(task_id, "gamma") == "SUCCEEDED"
    for link in await world.links(task_id, "gamma"):
        assert (await world.http.get(link)).status_code in (410, 503)


# --- endings of our own --------------------------------------------------------------------------------------------


async def test_a_task_that_waited_too_long_says_so(world: World) -> None:
    world.sim.fail_next("create", "429", times=1000)
    task_id = await world.create()
    await world.advance(86_401)
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "Dashgate.QueueTimeout")
    assert output["message"]
    assert STAMP.fullmatch(output["end_time"])


async def test_a_task_whose_outcome_stayed_unknown_says_so(world: World) -> None:
    world.sim.fail_next("create", "lost_answer")
    task_id = await world.create()
    await world.advance(86_401)
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "Dashgate.OutcomeUnknown")


async def test_a_task_that_the_upstream_forgot_unread_says_so(world: World) -> None:
    task_id = await world.create()
    await world.advance(86_401)
    output = (await world.read(task_id))["output"]
    assert (output["task_status"], output["code"]) == ("FAILED", "Dashgate.ResultExpired")


# --- not theirs ----------------------------------------------------------------------------------------------------


async def test_a_foreign_task_is_unknown_exactly_like_one_that_never_was(world: World) -> None:
    foreign, never = await world.create(), str(new_id())
    answers = [await read(world, task_id, "beta") for task_id in (foreign, never)]
    bodies = [answer.json() | {"request_id": ""} for answer in answers]
    assert bodies[0] == {"request_id": "", "output": {"task_id": foreign, "task_status": "UNKNOWN"}}
    assert bodies[1] == {"request_id": "", "output": {"task_id": never, "task_status": "UNKNOWN"}}
    assert [answer.status_code for answer in answers] == [200, 200]
    ignored = {"x-request-id"}
    headers = [{name: answer.headers[name] for name in answer.headers.keys() - ignored} for answer in answers]
    assert headers[0] == headers[1]


async def test_a_foreign_task_stays_unknown_when_its_owner_has_just_read_it(world: World) -> None:
    task_id = await world.create()
    await read(world, task_id)
    assert (await read(world, task_id, "beta")).json()["output"]["task_status"] == "UNKNOWN"


async def test_a_foreign_task_stays_unknown_through_its_whole_life(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    assert await world.status(task_id, "beta") == "UNKNOWN"


async def test_the_upstreams_own_id_opens_nothing(world: World) -> None:
    await world.create()
    assert await world.status(world.sim.truth.tasks[0].id) == "UNKNOWN"


async def test_what_is_no_id_at_all_is_unknown_too(world: World) -> None:
    for nonsense in (
        "x",
        "7",
        "a" * 3_000,
        "%00",
        "' OR 1=1 --",
        "{0385dc79-5ff8-4d82-bcb6-000000000000}",
        "\U0001f600",
    ):
        answer = await read(world, nonsense)
        assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "UNKNOWN"), nonsense
        assert len(answer.content) < 600


# --- read often ----------------------------------------------------------------------------------------------------


async def test_a_task_may_be_read_as_often_as_one_likes(world: World) -> None:
    task_id = await world.create()
    answers = [await read(world, task_id) for _ in range(100)]
    assert {answer.status_code for answer in answers} == {200}
    assert world.sim.truth.journal.read(operation="query") == []


async def test_each_cached_answer_carries_the_id_of_its_own_request(world: World) -> None:
    task_id = await world.create()
    answers = [await read(world, task_id) for _ in range(3)]
    ids = [answer.json()["request_id"] for answer in answers]
    assert len(set(ids)) == 3
    assert ids == [answer.headers["x-request-id"] for answer in answers]


async def test_within_the_second_a_task_is_answered_without_the_database(world: World) -> None:
    task_id = await world.create()
    await read(world, task_id)
    async with without_database(world) as (_, teams, _):
        answer = await teams.get(f"/api/v1/tasks/{task_id}", headers=world.headers())
    assert answer.json()["output"]["task_status"] == "PENDING"


async def test_an_ending_is_never_hidden_behind_a_cached_answer_for_more_than_a_read(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    for _ in range(2):
        assert (await read(world, task_id)).json()["output"]["task_status"] == "SUCCEEDED"
    assert world.res.signals._statuses.find_fresh(f"x:{task_id}") is None


async def test_the_path_may_end_in_a_slash_and_the_id_be_written_large(world: World) -> None:
    task_id = await world.create()
    for written in (f"{task_id}/", task_id.upper()):
        assert (await read(world, written)).json()["output"]["task_id"] == task_id


# --- the database away ---------------------------------------------------------------------------------------------


async def test_a_read_while_the_database_is_away_is_held_back_and_then_a_503(world: World) -> None:
    async with without_database(world) as (_, teams, _):
        held = asyncio.create_task(teams.get(f"/api/v1/tasks/{new_id()}", headers=world.headers()))
        create = asyncio.create_task(teams.post(CREATE_PATH, json=world.order(), headers=world.headers()))
        first, _ = await asyncio.wait({held, create}, return_when=asyncio.FIRST_COMPLETED)
        assert first == {create}  # asked later, answered at once
        answer = await held
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
    assert answer.headers["x-should-retry"] == "true"


async def test_no_read_ever_reaches_the_upstream(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        task_id = await world.create()
        upstream.received.clear()
        for team in ("alpha", "beta"):
            await world.read(task_id, team)
            await world.read(UPSTREAM_ID, team)
    assert upstream.received == []
