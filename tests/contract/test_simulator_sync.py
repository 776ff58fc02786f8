"""Synchronous calls: answered when the picture is made, billed whoever listens, never in the list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.simulator import BEIJING, Simulator, SimulatorOptions, running_simulator
from app.simulator.calls import Call, CallState
from tests.contract.conftest import UpstreamCaller

MULTIMODAL = "aigc/multimodal-generation/generation"
TEXT2IMAGE = "aigc/text2image/image-synthesis"
LONG_SECONDS = 600


async def until(condition: Callable[[], object]) -> None:
    """Let the simulator work until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the simulator tells nobody
            await asyncio.sleep(0)


async def begin(
    sim: Simulator, upstream: UpstreamCaller, body: Any = None
) -> tuple[asyncio.Task[httpx.Response], Call]:
    """Send a call and wait until the upstream works on it."""
    before = len(sim.truth.calls)
    sending = asyncio.create_task(upstream.call(MULTIMODAL, body or upstream.order()))
    await until(lambda: len(sim.truth.calls) > before)
    return sending, sim.truth.calls[-1]


async def test_a_call_is_answered_when_its_pictures_are_made(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(60, 60)
    sending, call = await begin(sim, upstream, upstream.order("a paper boat", n=2, size="1370*770"))
    sim.advance(59)
    assert (call.state, call.prompt, sim.truth.bill()[BEIJING]) == (CallState.RUNNING, "a paper boat", {})
    assert not sending.done()
    sim.advance(1)
    answer = await sending
    body = answer.json()
    assert (answer.status_code, body.keys()) == (200, {"output", "usage", "request_id"})
    assert body["output"].keys() == {"choices", "finished"}
    assert body["output"]["finished"] is True
    for choice in body["output"]["choices"]:
        [item] = choice["message"]["content"]
        assert (choice["finish_reason"], choice["message"]["role"], item["type"]) == ("stop", "assistant", "image")
        assert (await upstream.http.get(item["image"])).content.startswith(b"\x89PNG")
    assert len(body["output"]["choices"]) == 2
    tokens = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert body["usage"] == {"image_count": 2, "size": "1376*768", **tokens}
    assert body["request_id"] == call.id


async def test_a_running_clock_answers_by_itself(http: httpx.AsyncClient) -> None:
    async with running_simulator(SimulatorOptions(duration_seconds=(30, 30), clock_scale=1000)) as sim:
        upstream = UpstreamCaller(sim, http)
        answer = await upstream.call(MULTIMODAL, upstream.order())
        [call] = sim.truth.calls
    assert answer.status_code == 200
    assert call.ended_at == call.begun_at + 30


async def test_a_call_is_billed_like_a_task_but_is_none(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    await upstream.call(MULTIMODAL, upstream.order(n=3, size="768*768"))
    await upstream.create(n=1)
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 4}
    assert sim.truth.bill_units()[BEIJING] == {"wan2.6-image": {"image": 4}}
    assert (await upstream.list()).json()["total"] == len(sim.truth.tasks) == 1
    [call] = sim.truth.calls
    assert (call.state, call.billed_images, call.streamed, call.hung_up) == (CallState.SUCCEEDED, 3, False, False)


async def test_a_client_that_hangs_up_pays_all_the_same(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(60, 60)
    sending, call = await begin(sim, upstream, upstream.order(n=2))
    sending.cancel()
    await until(lambda: call.hung_up)
    assert (call.state, sim.truth.bill()[BEIJING]) == (CallState.RUNNING, {})
    sim.advance(60)
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 2}
    assert (call.state, call.ended_at) == (CallState.SUCCEEDED, call.begun_at + 60)


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("a [[forbidden]] boat", 400, "DataInspectionFailed"), ("a [[broken]] boat", 500, "InternalError.Algo")],
)
async def test_a_failed_call_has_a_status_and_costs_nothing(
    sim: Simulator, upstream: UpstreamCaller, prompt: str, status: int, code: str
) -> None:
    sim.set_durations(60, 60)
    sending, call = await begin(sim, upstream, upstream.order(prompt))
    sim.advance(60)
    answer = await sending
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["request_id"] == call.id
    assert (call.state, sim.truth.bill()[BEIJING]) == (CallState.FAILED, {})


async def test_a_scripted_outcome_fails_a_call_with_its_status(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("outcome", "error", status=400, code="InvalidURL", message="The request URL is invalid.")
    answer = await upstream.call(MULTIMODAL, upstream.order())
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidURL")


async def test_interleaving_needs_a_stream(sim: Simulator, upstream: UpstreamCaller) -> None:
    for parameters in ({}, {"stream": True}):
        answer = await upstream.call(MULTIMODAL, upstream.order(enable_interleave=True, **parameters))
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert sim.truth.calls == ()


async def test_a_refused_call_is_never_begun(sim: Simulator, upstream: UpstreamCaller) -> None:
    answer = await upstream.call(MULTIMODAL, upstream.order(n=9))
    assert (answer.status_code, answer.json()["message"]) == (400, "n must be an integer between 1 and 4")
    assert sim.truth.calls == ()
    [entry] = sim.truth.journal
    assert (entry.operation, entry.status) == ("sync", 400)


async def test_calls_and_creates_of_a_model_share_one_rate(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.set_limits(creates_per_second=2)
    first = await upstream.call(MULTIMODAL, upstream.order())
    await upstream.create()
    second = await upstream.call(MULTIMODAL, upstream.order())
    sim.advance(1)
    third = await upstream.call(MULTIMODAL, upstream.order())
    assert [answer.status_code for answer in (first, second, third)] == [200, 429, 200]
    assert second.json()["code"] == "Throttling.RateQuota"


async def test_two_text_models_answer_their_tasks_path_at_once(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    body = {"model": "wan2.2-t2i-flash", "input": {"prompt": "a boat"}, "parameters": {"n": 2}}
    answer = await upstream.call(TEXT2IMAGE, body)
    assert [result.keys() for result in answer.json()["output"]["results"]] == [
        {"url", "orig_prompt", "actual_prompt"}
    ] * 2
    assert answer.json()["usage"] == {"image_count": 2}
    assert sim.truth.tasks == ()


async def test_a_lost_answer_is_made_and_billed(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(60, 60)
    sim.fail_next("sync", "lost_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await upstream.call(MULTIMODAL, upstream.order())
    [call] = sim.truth.calls
    sim.advance(60)
    assert (sim.truth.calls[0].state, sim.truth.bill()[BEIJING]) == (CallState.SUCCEEDED, {"wan2.6-image": 1})
    [entry] = sim.truth.journal
    assert (entry.status, entry.fault, call.state) == (None, "lost_answer", CallState.SUCCEEDED)


@pytest.mark.parametrize("processed", [True, False])
async def test_a_hanging_call_takes_effect_or_not_as_told(
    sim: Simulator, upstream: UpstreamCaller, processed: bool
) -> None:
    sim.fail_next("sync", "hang", seconds=LONG_SECONDS, processed=processed)
    hanging = asyncio.create_task(upstream.call(MULTIMODAL, upstream.order()))
    await until(lambda: any(entry.fault for entry in sim.truth.journal))
    hanging.cancel()
    assert len(sim.truth.calls) == int(processed)


@pytest.mark.parametrize(
    ("kind", "details", "status"),
    [("429", {}, 429), ("5xx", {}, 503), ("error", {"status": 400, "code": "Arrearage"}, 400), ("garbage", {}, 200)],
)
async def test_a_fault_of_calls_hits_calls_only(
    sim: Simulator, upstream: UpstreamCaller, kind: str, details: dict[str, Any], status: int
) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("sync", kind, **details)
    await upstream.create()
    assert (await upstream.call(MULTIMODAL, upstream.order())).status_code == status
    assert sim.truth.calls == ()
    assert (await upstream.call(MULTIMODAL, upstream.order())).json()["output"]["finished"] is True


async def test_a_fault_of_creates_spares_calls(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("create", "429")
    assert (await upstream.call(MULTIMODAL, upstream.order())).status_code == 200
    assert (await upstream.post(upstream.order())).status_code == 429


async def test_a_reset_lets_go_of_who_waits(sim: Simulator, upstream: UpstreamCaller) -> None:
    sending, _ = await begin(sim, upstream)
    sim.reset()
    with pytest.raises(httpx.TransportError):
        await sending
    assert sim.truth.calls == ()


async def test_a_waiting_call_does_not_hold_up_the_end(http: httpx.AsyncClient) -> None:
    async with running_simulator(SimulatorOptions(clock_scale=0)) as sim:
        sending, _ = await begin(sim, UpstreamCaller(sim, http))
    with pytest.raises(httpx.TransportError):
        await sending


async def test_the_control_port_tells_of_calls_and_units(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    answer = await upstream.call(MULTIMODAL, upstream.order("a boat", size="768*768"))
    [call] = (await upstream.http.get(f"{sim.control_url}/calls")).json()["calls"]
    assert call["id"] == answer.json()["request_id"]
    assert (call["state"], call["prompt"], call["streamed"], call["hung_up"]) == ("SUCCEEDED", "a boat", False, False)
    assert (call["model"], call["billed_images"], len(call["images"])) == ("wan2.6-image", 1, 1)
    bill = (await upstream.http.get(f"{sim.control_url}/bill")).json()
    assert bill["images"][BEIJING] == {"wan2.6-image": 1}
    assert bill["units"][BEIJING] == {"wan2.6-image": {"image": "1"}}
