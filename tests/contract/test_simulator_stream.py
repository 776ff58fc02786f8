"""Streamed answers: byte for byte as the vendor's SDKs parse them, paced by the clock, billed as far as announced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.simulator import BEIJING, Simulator
from app.simulator.calls import CallState
from tests.contract.conftest import UpstreamCaller
from tests.contract.test_simulator_sync import MULTIMODAL, until

GUIDE = "folding"  # in two steps: what the hash of this prompt decides
EVENTS = 12  # five words and a picture, twice
LONG_SECONDS = 600
STREAM = {"X-DashScope-SSE": "enable"}
FRAME = re.compile(rb"id:(\d+)\nevent:(\w+)\n:HTTP_STATUS/(\d+)\ndata:(\{[^\n]*\})\n\n")


def order(upstream: UpstreamCaller, prompt: str = GUIDE, **parameters: Any) -> dict[str, Any]:
    """Make the body of a call for two pictures with text between them."""
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    wanted = {"enable_interleave": True, "max_images": 2, "size": "768*768", **parameters}
    return {"model": "wan2.6-image", "input": {"messages": messages}, "parameters": wanted}


@contextlib.asynccontextmanager
async def streaming(
    upstream: UpstreamCaller, body: dict[str, Any], headers: dict[str, str] = STREAM
) -> AsyncIterator[httpx.Response]:
    url = f"{upstream.base_url}/services/{MULTIMODAL}"
    async with upstream.http.stream("POST", url, json=body, headers={**upstream.headers, **headers}) as answer:
        yield answer


async def read_all(upstream: UpstreamCaller, body: dict[str, Any]) -> bytes:
    async with streaming(upstream, body) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream;charset=UTF-8")
        return await answer.aread()


async def read_events(content: AsyncIterator[bytes], count: int) -> list[dict[str, Any]]:
    """Read exactly so many events and no more."""
    read = b""
    while read.count(b"\n\n") < count:
        read += await anext(content)
    assert read.count(b"\n\n") == count
    return [data for _, _, _, data in parse(read)]


def parse(content: bytes) -> list[tuple[int, str, int, dict[str, Any]]]:
    """Take a stream apart; nothing may be left between its frames."""
    assert FRAME.sub(b"", content) == b""
    return [
        (int(number), event.decode(), int(status), json.loads(data))
        for number, event, status, data in FRAME.findall(content)
    ]


def item(data: dict[str, Any]) -> dict[str, Any]:
    [choice] = data["output"]["choices"]
    [content] = choice["message"]["content"]
    return dict(content)


async def test_a_stream_is_framed_byte_for_byte(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    content = await read_all(upstream, order(upstream, "a boat", max_images=1))
    [call] = sim.truth.calls
    [picture] = call.pictures
    link = f"http://{sim.file_host}{picture.path}?{picture.query}"

    def frame(number: int, item: str, tokens: int, *, made: int = 0) -> str:
        size, reason, finished = ("768*768", "stop", "true") if made else ("0*0", "null", "false")
        return (
            f"id:{number}\nevent:result\n:HTTP_STATUS/200\n"
            f'data:{{"output":{{"choices":[{{"message":{{"content":[{item}],"role":"assistant"}},'
            f'"finish_reason":"{reason}"}}],"finished":{finished}}},'
            f'"usage":{{"total_tokens":{tokens + 6},"image_count":{made},"output_tokens":{tokens},'
            f'"size":"{size}","input_tokens":6}},"request_id":"{call.id}"}}\n\n'
        )

    words = ["Step ", "1 ", "of ", "1: ", "a ", "boat"]
    texts = [frame(n, f'{{"type":"text","text":"{word}"}}', n) for n, word in enumerate(words, 1)]
    image = frame(7, f'{{"type":"image","image":"{link}"}}', 200, made=1)
    assert content.decode() == "".join([*texts, image])


async def test_text_comes_in_pieces_and_pictures_whole_with_usage_so_far(
    sim: Simulator, upstream: UpstreamCaller
) -> None:
    sim.set_durations(0, 0)
    events = parse(await read_all(upstream, order(upstream)))
    created = await upstream.post(order(upstream))
    task_id = created.json()["output"]["task_id"]
    whole = (await upstream.query(task_id)).json()
    assert [number for number, *_ in events] == list(range(1, EVENTS + 1))
    assert {(event, status) for _, event, status, _ in events} == {("result", 200)}
    datas = [data for *_, data in events]
    texts: list[str] = [""]
    for data in datas:
        if item(data)["type"] == "text":
            texts[-1] += item(data)["text"]
        else:
            texts.append("")
    content = whole["output"]["choices"][0]["message"]["content"]
    assert texts == [*(part["text"] for part in content if part["type"] == "text"), ""]
    assert [data["usage"]["image_count"] for data in datas] == [0] * 5 + [1] * 6 + [2]
    tokens = [data["usage"]["output_tokens"] for data in datas]
    assert tokens == sorted(set(tokens))
    assert datas[-1]["usage"] == whole["usage"]
    reasons = [data["output"]["choices"][0]["finish_reason"] for data in datas]
    assert reasons == ["null"] * (EVENTS - 1) + ["stop"]
    assert [data["output"]["finished"] for data in datas] == [False] * (EVENTS - 1) + [True]
    assert len({data["request_id"] for data in datas}) == 1


async def test_a_standing_clock_lets_go_of_what_is_due(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(110, 110)
    async with streaming(upstream, order(upstream)) as answer:
        content = answer.aiter_raw()
        [call] = sim.truth.calls
        [first] = await read_events(content, 1)
        sim.advance(40)
        assert [item(data)["type"] for data in await read_events(content, 4)] == ["text"] * 4
        assert (call.billed_images, sim.truth.bill()[BEIJING]) == (0, {})
        sim.advance(10)
        [image] = await read_events(content, 1)
        assert (item(image)["type"], sim.truth.bill()[BEIJING]) == ("image", {"wan2.6-image": 1})
        assert (await upstream.http.get(item(image)["image"])).status_code == 200
        sim.advance(60)
        assert len(await read_events(content, 6)) == 6
        assert [chunk async for chunk in content] == []
    assert item(first) == {"type": "text", "text": "Step "}
    assert (call.state, call.streamed, call.billed_images) == (CallState.SUCCEEDED, True, 2)


@pytest.mark.parametrize("name", ["X-DashScope-SSE", "x-dashscope-sse", "X-DashScope-Sse"])
@pytest.mark.parametrize("parameters", [{}, {"stream": True}, {"stream": False}], ids=["none", "true", "false"])
async def test_the_header_alone_decides(
    sim: Simulator, upstream: UpstreamCaller, name: str, parameters: dict[str, Any]
) -> None:
    sim.set_durations(0, 0)
    async with streaming(upstream, order(upstream, **parameters), {name: "enable"}) as answer:
        assert len(parse(await answer.aread())) == EVENTS


@pytest.mark.parametrize(
    ("model", "count"), [("wan2.6-image", 4), ("wan2.6-t2i", 4), ("z-image-turbo", 1), ("qwen-image-max", 1)]
)
async def test_other_answers_are_one_event(sim: Simulator, upstream: UpstreamCaller, model: str, count: int) -> None:
    sim.set_durations(60, 60)
    content: list[dict[str, Any]] = [{"text": "a boat"}]
    if model == "wan2.6-image":
        content.append({"image": "https://assets.example.com/cup.png"})
    body = {"model": model, "input": {"messages": [{"role": "user", "content": content}]}}
    reading = asyncio.create_task(read_all(upstream, body))
    await until(lambda: sim.truth.calls)
    assert sim.truth.bill()[BEIJING] == {}
    sim.advance(60)
    [(number, event, status, data)] = parse(await reading)
    assert (number, event, status, data["output"]["finished"]) == (1, "result", 200, True)
    assert {choice["finish_reason"] for choice in data["output"]["choices"]} == {"stop"}
    assert data["usage"]["image_count"] == sim.truth.bill()[BEIJING][model] == count


async def test_a_reader_who_goes_away_pays_what_was_announced(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(110, 110)
    async with streaming(upstream, order(upstream)) as answer:
        sim.advance(50)
        await read_events(answer.aiter_raw(), 6)
    [call] = sim.truth.calls
    await until(lambda: call.hung_up)
    sim.advance(1000)
    assert (call.state, sim.truth.bill()[BEIJING]) == (CallState.BROKEN, {"wan2.6-image": 1})


async def test_a_refusal_before_the_first_event_is_no_stream(sim: Simulator, upstream: UpstreamCaller) -> None:
    async with streaming(upstream, order(upstream, n=2)) as answer:
        refusal = json.loads(await answer.aread())
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert refusal["message"] == "num_images_per_prompt must be 1"
    assert sim.truth.calls == ()


async def test_a_failure_comes_instead_of_the_last_event(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    *events, last = parse(await read_all(upstream, order(upstream, "[[forbidden]]")))
    [call] = sim.truth.calls
    number, event, status, data = last
    assert (number, event, status) == (len(events) + 1, "error", 400)
    assert data.keys() == {"code", "message", "request_id"}
    assert (data["code"], data["request_id"]) == ("DataInspectionFailed", call.id)
    assert (call.state, call.billed_images) == (CallState.FAILED, events[-1][3]["usage"]["image_count"])


async def test_a_failure_before_the_first_event_is_no_stream(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    async with streaming(upstream, upstream.order("[[broken]]")) as answer:
        refusal = json.loads(await answer.aread())
    assert (answer.status_code, refusal["code"]) == (500, "InternalError.Algo")
    assert (sim.truth.calls[0].state, sim.truth.bill()[BEIJING]) == (CallState.FAILED, {})


@pytest.mark.parametrize(("after_events", "billed"), [(0, 0), (5, 0), (6, 1), (99, 2)])
async def test_a_broken_stream_is_cut_after_so_many_events(
    sim: Simulator, upstream: UpstreamCaller, after_events: int, billed: int
) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "break", after_events=after_events)
    read = b""
    with pytest.raises(httpx.RemoteProtocolError):
        async with streaming(upstream, order(upstream)) as answer:
            async for chunk in answer.aiter_raw():
                read += chunk
    assert len(parse(read)) == min(after_events, EVENTS)
    [call] = sim.truth.calls
    assert (call.state, call.billed_images) == (CallState.BROKEN, billed)
    assert len(parse(await read_all(upstream, order(upstream)))) == EVENTS


@pytest.mark.parametrize("after_events", [0, 6])
async def test_an_error_event_ends_a_stream(sim: Simulator, upstream: UpstreamCaller, after_events: int) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "error_event", after_events=after_events, status=400, code="DataInspectionFailed")
    *events, (number, event, status, data) = parse(await read_all(upstream, order(upstream)))
    assert (len(events), number, event, status) == (after_events, after_events + 1, "error", 400)
    assert data["code"] == "DataInspectionFailed"
    assert sim.truth.calls[0].state is CallState.FAILED
    assert sim.truth.bill()[BEIJING] == ({"wan2.6-image": 1} if after_events else {})


async def test_a_stream_can_fall_silent(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "hang", after_events=6, seconds=LONG_SECONDS)
    async with streaming(upstream, order(upstream)) as answer:
        content = answer.aiter_raw()
        assert len(await read_events(content, 6)) == 6
        [call] = sim.truth.calls
        await until(lambda: call.state is CallState.BROKEN)
        assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 1}
        sim.reset()
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(content)


async def test_a_stream_whose_answer_is_lost_is_made_and_billed_whole(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.fail_next("stream", "lost_answer")
    with pytest.raises(httpx.RemoteProtocolError):
        await read_all(upstream, order(upstream))
    sim.advance(1)
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 2}


async def test_a_throttled_stream_is_refused_like_any_call(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(0, 0)
    sim.fail_next("stream", "429")
    async with streaming(upstream, order(upstream)) as answer:
        assert answer.status_code == 429
    assert (await upstream.call(MULTIMODAL, upstream.order())).status_code == 200


async def test_a_reset_cuts_a_stream(sim: Simulator, upstream: UpstreamCaller) -> None:
    sim.set_durations(110, 110)
    with pytest.raises(httpx.RemoteProtocolError):
        async with streaming(upstream, order(upstream)) as answer:
            content = answer.aiter_raw()
            await read_events(content, 1)
            sim.reset()
            await anext(content)
