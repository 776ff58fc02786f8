"""The simulator's native API: who may call, what is refused and how, what a task looks like while it lives."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import httpx
import pytest

from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from tests.contract.conftest import CREATE_PATH, UpstreamCaller

DAY_SECONDS = 24 * 60 * 60
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    """Take a refusal apart, and see that it has the three fields of a native error and no others."""
    body = answer.json()
    assert body.keys() == {"code", "message", "request_id"}
    return answer.status_code, body["code"], body["message"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic c2stc2lt"}])
async def test_a_missing_key_is_refused(upstream: UpstreamCaller, headers: dict[str, str]) -> None:
    upstream.headers = headers
    for answer in (await upstream.post(upstream.order()), await upstream.query("t-1"), await upstream.list()):
        assert refusal(answer) == (401, "InvalidApiKey", "No API-key provided.")


async def test_a_wrong_key_and_a_key_of_another_region_look_alike(sim: Simulator, upstream: UpstreamCaller) -> None:
    for secret in ("sk-mistyped", sim.key(SINGAPORE)):
        upstream.headers = {"Authorization": f"Bearer {secret}"}
        for answer in (await upstream.post(upstream.order()), await upstream.query("t-1"), await upstream.list()):
            assert refusal(answer) == (401, "InvalidApiKey", "Invalid API-key provided.")


async def test_a_create_without_the_async_header_is_refused(sim: Simulator, upstream: UpstreamCaller) -> None:
    answer = await upstream.post(upstream.order(), headers=upstream.headers)
    assert refusal(answer) == (403, "AccessDenied", "current user api does not support synchronous calls")
    assert sim.truth.tasks == ()


async def test_an_unknown_model_does_not_exist(upstream: UpstreamCaller) -> None:
    for model in ("wan9.9-image", None, 7, ["wan2.6-image"]):
        answer = await upstream.post({**upstream.order(), "model": model})
        assert refusal(answer) == (400, "InvalidParameter", "Model not exist.")


async def test_a_model_at_another_path_is_a_url_error(upstream: UpstreamCaller, http: httpx.AsyncClient) -> None:
    url = f"{upstream.base_url}/services/aigc/text2image/image-synthesis"
    answer = await http.post(url, json=upstream.order(), headers=upstream.headers)
    assert refusal(answer) == (400, "InvalidParameter", "url error, please check url")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 200_000, rb'{"model": "\ud800"}'])
async def test_a_body_that_is_no_json_object_is_refused(upstream: UpstreamCaller, content: bytes) -> None:
    answer = await upstream.post(None, content=content)
    assert refusal(answer)[:2] == (400, "InvalidParameter")


async def test_a_bad_parameter_makes_no_task(sim: Simulator, upstream: UpstreamCaller) -> None:
    assert refusal(await upstream.post(upstream.order(n=5)))[:2] == (400, "InvalidParameter")
    assert sim.truth.tasks == ()


async def test_unknown_paths_are_not_found(upstream: UpstreamCaller, http: httpx.AsyncClient) -> None:
    task_id = await upstream.create()
    for method, path in (("GET", f"/tasks/{task_id}/cancel"), ("DELETE", f"/tasks/{task_id}"), ("GET", "/files")):
        answer = await http.request(method, upstream.base_url + path, headers=upstream.headers)
        assert refusal(answer)[:2] == (404, "NotFound")


async def test_an_unknown_region_is_not_found(upstream: UpstreamCaller) -> None:
    upstream.base_url = upstream.base_url.replace(BEIJING, "us-east-1")
    assert refusal(await upstream.query("t-1"))[:2] == (404, "NotFound")


async def test_a_task_is_seen_running_and_then_succeeded(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(60, 60)
    task_id = await upstream.create(n=2, size="1370*770")
    running = await upstream.output(task_id)
    assert running.keys() == {"task_id", "task_status", "submit_time", "scheduled_time"}
    assert running["task_status"] == "RUNNING"
    sim.advance(60)
    body = (await upstream.query(task_id)).json()
    assert body.keys() == {"request_id", "output", "usage"}
    output = body["output"]
    assert (output["task_status"], output["finished"], len(output["choices"])) == ("SUCCEEDED", True, 2)
    assert all(TIME.fullmatch(output[name]) for name in ("submit_time", "scheduled_time", "end_time"))
    assert body["usage"] == {
        "size": "1376*768",
        "image_count": 2,
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
    }


async def test_interleaving_counts_tokens_and_answers_one_choice(sim: Simulator, upstream: UpstreamCaller) -> None:
    task_id = await upstream.create("how to fold a boat", enable_interleave=True, max_images=5)
    sim.advance(1)
    body = (await upstream.query(task_id)).json()
    content = body["output"]["choices"][0]["message"]["content"]
    made = body["usage"]["image_count"]
    assert [item["type"] for item in content] == ["text", "image"] * made
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"] > 0
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": made}


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("a [[forbidden]] boat", "DataInspectionFailed"), ("a [[broken]] boat", "InternalError.Algo")],
)
async def test_a_failed_task_tells_why_and_costs_nothing(
    sim: Simulator, upstream: UpstreamCaller, prompt: str, code: str
) -> None:
    task_id = await upstream.create(prompt)
    sim.advance(1)
    answer = await upstream.query(task_id)
    output = answer.json()["output"]
    assert answer.status_code == 200
    assert (output["task_status"], output["code"]) == ("FAILED", code)
    assert output["message"]
    assert "usage" not in answer.json()
    assert sim.truth.bill() == {BEIJING: {}, SINGAPORE: {}}


async def test_a_trailing_slash_makes_no_difference(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    task_id = await upstream.create()
    one = await http.get(f"{upstream.base_url}/tasks/{task_id}/", headers=upstream.headers)
    all_tasks = await http.get(f"{upstream.base_url}/tasks/", headers=upstream.headers)
    assert one.json()["output"]["task_id"] == task_id
    assert all_tasks.json()["total"] == 1


async def test_a_task_is_unknown_to_another_region(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    task_id = await upstream.create()
    stranger = UpstreamCaller(sim, http, SINGAPORE)
    assert await stranger.output(task_id) == {"task_id": task_id, "task_status": "UNKNOWN"}
    assert (await stranger.list()).json()["total"] == 0


async def test_keys_of_one_main_account_see_each_others_tasks(http: httpx.AsyncClient) -> None:
    keys = (SimulatorKey("k-1", BEIJING), SimulatorKey("k-2", BEIJING), SimulatorKey("k-3", BEIJING, "stranger"))
    async with running_simulator(SimulatorOptions(keys=keys)) as sim:
        upstream = UpstreamCaller(sim, http)
        task_id = await upstream.create()
        seen = {}
        for key in keys:
            upstream.headers = {"Authorization": f"Bearer {key.secret}"}
            seen[key.secret] = await upstream.status(task_id)
    assert seen["k-1"] == seen["k-2"] == "RUNNING"
    assert seen["k-3"] == "UNKNOWN"


async def test_a_task_is_forgotten_after_a_day(sim: Simulator, upstream: UpstreamCaller) -> None:
    task_id = await upstream.create()
    sim.advance(DAY_SECONDS - 1)
    assert await upstream.status(task_id) == "SUCCEEDED"
    sim.advance(1)
    assert await upstream.output(task_id) == {"task_id": task_id, "task_status": "UNKNOWN"}
    assert (await upstream.list()).json()["total"] == 0
    assert [task.id for task in sim.truth.tasks] == [task_id]
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 1}


async def test_every_answer_has_its_own_request_id(upstream: UpstreamCaller) -> None:
    task_id = await upstream.create()
    ids = {(await upstream.query(task_id)).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3


async def test_a_refused_create_says_which_path_it_took(sim: Simulator, upstream: UpstreamCaller) -> None:
    body: dict[str, Any] = upstream.order(n=9)
    await upstream.post(body)
    [entry] = sim.truth.journal
    assert dataclasses.asdict(entry) | {"at": 0, "received_monotonic": 0} == {
        "seq": entry.seq,
        "at": 0,
        "received_monotonic": 0,
        "region": BEIJING,
        "operation": "create",
        "method": "POST",
        "path": f"/{BEIJING}/api/v1{CREATE_PATH}",
        "key": "sk-sim-b…",
        "status": 400,
        "task_id": None,
        "fault": None,
        "body": body,
    }
