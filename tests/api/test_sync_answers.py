"""A task that has ended, told as a synchronous call is: the results alone, or the error with its own status."""

import json
from typing import Any
from uuid import UUID

import pytest

from app.delivery.answers import CANCELED_CODE, SyncAnswer, sync_answer
from app.lib.crypto import pack
from app.lib.ids import new_id
from tests.steps.parts import DAY, queued
from tests.world import World


async def told(world: World, task_id: str, team: str = "alpha") -> SyncAnswer:
    (row,) = await world.rows("SELECT id FROM teams WHERE slug = $1", team)
    return await sync_answer(world.res, row["id"], UUID(task_id))


async def failed(world: World, code: str | None, message: str | None = "why", **values: Any) -> str:
    """A task that failed so, as its row has it."""
    (task_id,) = await queued(world, 1)
    await world.rows(
        "UPDATE tasks SET state = 'failed', finished_at = now(), code = $1, message = $2, last_request_id = $3,"
        " answer_status = $4",
        *(code, message, values.get("request_id"), values.get("status")),
    )
    return task_id


async def keep(world: World, task_id: str, body: bytes) -> None:
    """Put an answer of the upstream's in the place of a task's."""
    sealed = world.res.keyring.seal(pack(body), place=f"task_bodies.answer:{task_id}")
    await world.rows("UPDATE task_bodies SET answer = $1 WHERE task_id = $2::uuid", sealed, task_id)


async def test_what_was_made_is_told_without_a_word_of_a_task(world: World) -> None:
    task_id = await world.create(n=2)
    await world.finish(task_id)
    answer = await told(world, task_id)
    body = json.loads(answer.body)
    assert answer.status == 200
    assert body.keys() == {"output", "usage", "request_id"}
    assert body["output"].keys() == {"choices", "finished"}
    read = await world.read(task_id)
    assert body["output"] == {name: read["output"][name] for name in ("choices", "finished")}
    assert body["usage"] == read["usage"]
    last = await world.row("SELECT last_request_id FROM tasks")
    assert body["request_id"] == last["last_request_id"]


async def test_the_links_are_the_teams(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    body = json.loads((await told(world, task_id)).body)
    (content,) = body["output"]["choices"][0]["message"]["content"]
    assert content["image"].startswith("http://gateway/assets/")
    assert world.sim.truth.tasks[0].id not in json.dumps(body)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("DataInspectionFailed", 400),
        ("InvalidParameter", 400),
        ("ModelNotFound", 404),
        ("InternalError.Timeout", 500),
        ("SomethingNew", 500),
        ("Dashgate.QueueTimeout", 500),
        ("Dashgate.NotAccepted", 500),
        ("Dashgate.OutcomeUnknown", 500),
        ("Dashgate.ResultExpired", 500),
    ],
)
async def test_an_end_without_a_result_is_an_error_with_the_status_of_its_code(
    world: World, code: str, status: int
) -> None:
    answer = await told(world, await failed(world, code, request_id="upstreams"))
    assert answer.status == status
    assert json.loads(answer.body) == {"code": code, "message": "why", "request_id": "upstreams"}


async def test_without_an_id_of_the_upstreams_the_error_has_our_own(world: World) -> None:
    answer = await told(world, await failed(world, "Dashgate.QueueTimeout", message=None))
    mine = await world.row("SELECT request_id FROM tasks")
    assert json.loads(answer.body) == {
        "code": "Dashgate.QueueTimeout",
        "message": "",
        "request_id": mine["request_id"],
    }


async def test_our_accounts_trouble_keeps_its_details_and_is_a_503(world: World) -> None:
    answer = await told(world, await failed(world, "Dashgate.UpstreamAccount", message=None))
    assert answer.status == 503
    assert "operator" in json.loads(answer.body)["message"]


async def test_the_upstreams_own_error_is_passed_on_byte_for_byte(world: World) -> None:
    own = b'{"message":"n must be 1 to 4" , "code":"InvalidParameter","request_id":"r"}'
    task_id = await failed(world, "InvalidParameter", status=422)
    await keep(world, task_id, own)
    assert await told(world, task_id) == SyncAnswer(422, own)


async def test_what_was_refused_in_the_creates_own_answer_can_be_told_again(world: World) -> None:
    assert (await world.post(world.order(n=9))).status_code == 400
    (row,) = await world.rows("SELECT id, code FROM tasks WHERE refused_inline")
    answer = await told(world, str(row["id"]))
    assert (answer.status, json.loads(answer.body)["code"]) == (400, row["code"])


async def test_a_call_whose_task_was_cancelled_says_so(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.http.post(f"/api/v1/tasks/{task_id}/cancel", headers=world.headers())
    answer = await told(world, task_id)
    assert (answer.status, json.loads(answer.body)["code"]) == (400, CANCELED_CODE)


async def test_a_task_that_the_upstream_forgot_is_an_error_too(world: World) -> None:
    task_id = await world.create()
    await world.advance(DAY + 1)
    answer = await told(world, task_id)
    assert (answer.status, json.loads(answer.body)["code"]) == (500, "Dashgate.ResultExpired")


async def test_what_has_not_ended_or_is_not_the_teams_has_no_answer(world: World) -> None:
    world.sim.set_limits(running_tasks=0)
    open_one, never = await world.create(), str(new_id())
    for task_id, team in ((open_one, "alpha"), (open_one, "beta"), (never, "alpha")):
        with pytest.raises(LookupError):
            await told(world, task_id, team)


async def test_a_task_whose_call_was_synchronous_reads_as_a_task(world: World) -> None:
    task_id = await world.create()
    await world.finish(task_id)
    read = await world.read(task_id)
    choices = [{"finish_reason": "stop", "message": {"role": "assistant", "content": [{"text": "no picture"}]}}]
    own = {"output": {"choices": choices, "finished": True}, "usage": {"image_count": 0}, "request_id": "r"}
    await keep(world, task_id, json.dumps(own).encode())
    await world.rows("DELETE FROM assets")
    await world.rows("UPDATE tasks SET upstream_call = 'sync', started_at = submitted_at")
    output = (await world.read(task_id))["output"]
    assert output.keys() == {
        *("task_id", "task_status", "submit_time", "scheduled_time", "end_time"),
        *("choices", "finished"),
    }
    assert (output["task_id"], output["task_status"]) == (task_id, "SUCCEEDED")
    assert output["submit_time"] == read["output"]["submit_time"]
    assert output["choices"] == choices
    assert json.loads((await told(world, task_id)).body) == own


async def test_a_synchronous_call_on_the_wire_reads_as_running(world: World) -> None:
    (task_id,) = await queued(world, 1)
    await world.rows("UPDATE tasks SET upstream_call = 'sync'")
    assert await world.status(task_id) == "PENDING"
    await world.rows("UPDATE tasks SET state = 'submitting', attempt = 1")
    assert await world.status(task_id) == "RUNNING"
