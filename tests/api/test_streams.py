"""Streamed calls: every event when it comes, links of ours, what was made on the bill, whoever is listening.

The gateway is served at a port, as a stream needs it; its upstream is the simulator with a clock that stands still, or
one that says just what a test tells it to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dashscope.aigc.image_generation import ImageGeneration

from app.delivery.deliver import deliver_due
from app.main import create_app
from app.resources import open_resources
from app.simulator import BEIJING
from app.simulator.calls import CallState
from tests.api.streaming import (
    STREAM_PATH,
    Port,
    TellingUpstream,
    Told,
    at_a_port,
    ended,
    fields_in,
    framed,
    image,
    lines,
    links_in,
    occupied,
    order,
    said,
    telling_upstream,
    text,
)
from tests.processes import until
from tests.world import SimulatorTime, World


@pytest.fixture
async def port(world: World) -> AsyncIterator[Port]:
    async with at_a_port(world) as port:
        yield port


@pytest.fixture
async def upstream(world: World) -> AsyncIterator[TellingUpstream]:
    async with telling_upstream(world) as upstream:
        yield upstream


PNG = b"\x89PNG\r\n\x1a\n" + b"an image" * 100


def is_error(event: bytes, code: str, status: int) -> dict[str, Any]:
    """Demand that an event is an error in the upstream's framing; return what it says."""
    assert event.split(b"\n")[1:3] == [b"event:error", f":HTTP_STATUS/{status}".encode()]
    words = fields_in(event)
    assert words.keys() == {"code", "message", "request_id"}
    assert words["code"] == code
    return words


async def stored(world: World) -> list[str | None]:
    """The hashes of the files that lie where alpha's files belong, by what the rows say of them."""
    rows = await world.rows("SELECT object_key FROM assets WHERE state = 'stored' ORDER BY position")
    return [hashlib.sha256((world.folder / "alpha" / row["object_key"]).read_bytes()).hexdigest() for row in rows]


async def announced(port: Port, upstream: TellingUpstream) -> str:
    """Make a stream announce one file; return its link, at the port."""
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.opened(said(image(upstream.link()), made=1, reason="stop"))
    await told.end()
    _, (event,) = await streaming
    (link,) = links_in(event)
    return link.replace("http://gateway", port.url)


async def give_file(told: Told) -> None:
    """Answer a request for a file."""
    assert told.request.path.startswith("/files/")
    await told.begin(f"Content-Type: image/png\r\nContent-Length: {len(PNG)}\r\n")
    told.writer.write(PNG)


def waiting_for_files(world: World) -> int:
    """How many stand in line for files here."""
    return sum(world.res.lines._standing.values())


@contextlib.asynccontextmanager
async def unread(port: Port) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for a stream on a bare connection, and read nothing of it but what is asked for."""
    body = json.dumps(order()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]), limit=1024)
    key = port.world.keys["alpha"]
    head = f"POST {STREAM_PATH} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\nX-DashScope-SSE: enable\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    try:
        yield reader
    finally:
        writer.close()


async def leave_at_the_head(port: Port, sent: dict[str, str]) -> None:
    """Hang up as soon as the head of an answer is there."""
    async with port.stream(**sent):
        pass


# --- passing on -------------------------------------------------------------------------------------------------------


async def test_an_event_is_with_its_reader_before_the_next_has_left_the_upstream(
    port: Port, upstream: TellingUpstream
) -> None:
    opening = asyncio.ensure_future(upstream.opened(said(text("one"))))
    async with port.stream() as reader:
        assert b'"one"' in await reader.event()
        told = await opening
        await told.say(framed(2, said(text("two"))))
        assert b'"two"' in await reader.event()


async def test_events_of_words_alone_pass_byte_for_byte(port: Port, upstream: TellingUpstream) -> None:
    events = [
        framed(1, said(text("Fold \u7eb8 \U0001f6a2 http://no.link/"))),
        b'id:2\r\nevent: result\r\n: a remark\r\n:HTTP_STATUS/200\r\ndata: {"output":{"choices":[]} }\r\n\r\n',
        framed(3, said(text("the end"), reason="stop")),
    ]
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.asked()
    await told.begin()
    for piece in (b"".join(events)[at : at + 7] for at in range(0, len(b"".join(events)), 7)):
        await told.say(piece)
    await told.end()
    reader, _ = await streaming
    assert reader.answer.status_code == 200
    assert reader.raw == b"".join(events)


async def test_the_call_leaves_as_it_came_with_our_key_and_the_upstream_is_asked_to_stream(
    port: Port, upstream: TellingUpstream
) -> None:
    body = json.dumps(order(), indent=3).encode()
    streaming = asyncio.ensure_future(port.whole(body))
    told = await upstream.opened(said(text("a"), reason="stop"))
    await told.end()
    await streaming
    headers = told.request.headers
    assert told.request.body == body
    assert (headers["x-dashscope-sse"], headers["accept"]) == ("enable", "text/event-stream")
    assert headers["authorization"] == f"Bearer {port.world.sim.key(BEIJING)}"


async def test_links_are_the_teams_and_nothing_else_of_their_event_changes(
    port: Port, upstream: TellingUpstream
) -> None:
    fields = said(text("Then"), image(upstream.link()), made=1, seed=7)
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.opened(said(text("First")), fields)
    await told.say(framed(3, said(reason="stop", made=1)))
    await told.end()
    _, (_, shown, _) = await streaming
    (link,) = links_in(shown)
    assert link.startswith("http://gateway/assets/")
    assert shown == framed(2, fields).replace(upstream.link().encode(), link.encode())


async def test_an_image_that_is_said_twice_is_one_file_with_one_link(port: Port, upstream: TellingUpstream) -> None:
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.opened(said(image(upstream.link()), made=1), said(image(upstream.link()), made=1))
    await told.say(framed(3, said(image(upstream.link("2.png")), reason="stop", made=2)))
    await told.end()
    _, events = await streaming
    first, again, second = (links_in(event)[0] for event in events)
    assert first == again != second
    assert len(await port.world.rows("SELECT 1 FROM assets")) == 2


async def test_the_answer_has_its_own_headers_and_none_of_the_upstreams(port: Port, upstream: TellingUpstream) -> None:
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.asked()
    theirs = "Set-Cookie: a=b\r\nServer: theirs\r\nStrict-Transport-Security: max-age=1\r\nX-Powered-By: x\r\n"
    theirs += "Access-Control-Allow-Origin: *\r\nreq-cost-time: 5\r\nKeep-Alive: timeout=5\r\n"
    await told.begin(f"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n{theirs}")
    await told.say(framed(1, said(text("a"), reason="stop")))
    await told.end()
    reader, _ = await streaming
    headers = dict(reader.answer.headers)
    assert headers.pop("content-type") == "text/event-stream; charset=utf-8"
    (row,) = await port.world.rows("SELECT id FROM tasks")
    assert headers.pop("x-dashgate-task-id") == str(row["id"])
    assert headers.keys() == {
        *("cache-control", "x-accel-buffering", "x-should-retry", "x-request-id", "date", "transfer-encoding")
    }
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-store", "no")


async def test_the_header_decides_and_not_the_body(port: Port) -> None:
    sim, world = port.world.sim, port.world
    sim.set_durations(0, 0)
    reader, events = await port.whole(order())
    assert reader.answer.headers["content-type"].startswith("text/event-stream")
    assert len(events) > 2
    plain = {**world.headers(), "X-Dashgate-Durable": "false"}
    url = port.url + "/api/v1/services/aigc/multimodal-generation/generation"
    answer = await port.http.post(url, json=world.order(stream=True), headers=plain)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert [call.streamed for call in sim.truth.calls] == [True, False]


async def test_a_model_that_the_upstream_does_not_stream_is_answered_whole(
    port: Port, upstream: TellingUpstream
) -> None:
    streaming = asyncio.ensure_future(port.refused())
    told = await upstream.asked()
    whole = json.dumps(said(image(upstream.link()), made=1, reason="stop")).encode()
    await told.begin(f"Content-Type: application/json\r\nContent-Length: {len(whole)}\r\n")
    told.writer.write(whole)
    reader = await streaming
    assert reader.answer.headers["content-type"] == "application/json"
    assert b"http://gateway/assets/" in reader.raw
    assert await lines(port.world) == [("usage", "image", 1, None)]


# --- files while the stream goes on -----------------------------------------------------------------------------------


async def test_another_process_serves_an_announced_file_while_the_stream_is_still_open(
    port: Port, tmp_path: Path
) -> None:
    world = port.world
    world.sim.set_durations(60, 60)
    async with port.stream() as reader, open_resources(world.res.settings, clock=SimulatorTime(world.sim)) as other:
        world.sim.advance(30)
        while not (links := links_in(await reader.event())):
            pass
        transport = httpx.ASGITransport(app=create_app("teams", other))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as elsewhere:
            served = await elsewhere.get(links[0])
        (call,) = world.sim.truth.calls
        assert (served.status_code, call.state) == (200, CallState.RUNNING)
        assert served.content == call.pictures[0].content()
        (row,) = await world.rows("SELECT state, seen_usage FROM tasks")
        assert (row["state"], json.loads(row["seen_usage"])["usage"]["image_count"]) == ("running", 1)
        world.sim.advance(60)
        assert len(await reader.rest()) == 6


async def test_those_who_want_a_file_at_once_read_it_from_the_upstream_one_after_another(
    port: Port, upstream: TellingUpstream
) -> None:
    link = await announced(port, upstream)
    first = asyncio.ensure_future(port.http.get(link))
    told = await upstream.asked()
    second = asyncio.ensure_future(port.http.get(link))
    await until(lambda: waiting_for_files(port.world) == 2, "both stand in line")
    assert upstream.unanswered == 0
    await give_file(told)
    await give_file(await upstream.asked())
    assert [(await one).content for one in (first, second)] == [PNG, PNG]
    assert upstream.unanswered == 0


async def test_who_stood_in_line_for_a_file_finds_itstored(port: Port, upstream: TellingUpstream) -> None:
    world, link = port.world, await announced(port, upstream)
    first = asyncio.ensure_future(port.http.get(link))
    told = await upstream.asked()
    second = asyncio.ensure_future(port.http.get(link))
    await until(lambda: waiting_for_files(world) == 2, "both stand in line")
    delivering = asyncio.ensure_future(deliver_due(world.res))
    await give_file(await upstream.asked())
    assert await delivering == 1
    await give_file(told)
    assert [(await one).content for one in (first, second)] == [PNG, PNG]
    assert [("etag" in (await one).headers) for one in (first, second)].count(True) == 1
    assert upstream.unanswered == 0


async def test_a_file_whose_reader_leaves_is_free_for_the_next(port: Port, upstream: TellingUpstream) -> None:
    link = await announced(port, upstream)
    first = asyncio.ensure_future(port.http.get(link))
    told = await upstream.asked()
    second = asyncio.ensure_future(port.http.get(link))
    await until(lambda: waiting_for_files(port.world) == 2, "both stand in line")
    first.cancel()
    second_told = asyncio.ensure_future(upstream.asked())
    told.cut()
    await give_file(await second_told)
    assert (await second).content == PNG


# --- the bill ---------------------------------------------------------------------------------------------------------


async def test_a_stream_is_billed_once_by_the_last_usage_that_was_said(port: Port) -> None:
    world = port.world
    world.sim.set_durations(0, 0)
    reader, events = await port.whole()
    assert [fields_in(event)["usage"]["image_count"] for event in events][-1] == 2
    assert await lines(world) == [("usage", "image", 2, None)]
    await deliver_due(world.res)
    task = await ended(world, reader.task_id)
    assert (task["state"], task["mode"]) == ("succeeded", "relay")
    assert world.sim.truth.bill()[BEIJING] == {"wan2.6-image": 2}
    assert await stored(world) == [picture.sha256 for picture in world.sim.truth.calls[0].pictures]


async def test_a_stream_that_broke_off_says_so_and_bills_what_it_had_shown(port: Port) -> None:
    world = port.world
    world.sim.set_durations(0, 0)
    world.sim.fail_next("stream", "break", after_events=6)
    reader, events = await port.whole()
    task = await ended(world, reader.task_id)
    assert (task["state"], task["code"]) == ("failed", "Dashgate.OutcomeUnknown")
    assert len(events) == 7
    is_error(events[-1], "Dashgate.OutcomeUnknown", 500)
    (call,) = world.sim.truth.calls
    assert await lines(world) == [("usage", "image", call.billed_images, "partial")]
    (entry,) = await world.rows("SELECT upstream_request_id FROM ledger_entries")
    assert entry["upstream_request_id"] == call.id
    await deliver_due(world.res)
    assert await stored(world) == [picture.sha256 for picture in call.pictures]


async def test_a_stream_that_broke_off_before_anything_billable_leaves_an_uncertain_line(port: Port) -> None:
    world = port.world
    world.sim.set_durations(0, 0)
    world.sim.fail_next("stream", "break", after_events=2)
    reader, events = await port.whole()
    await ended(world, reader.task_id)
    is_error(events[-1], "Dashgate.OutcomeUnknown", 500)
    assert await lines(world) == [("uncertain", "image", 2, None)]


async def test_an_error_of_the_upstreams_own_is_passed_on_in_its_words_and_what_it_had_shown_is_billed(
    port: Port,
) -> None:
    world = port.world
    world.sim.set_durations(0, 0)
    words = {"status": 400, "code": "DataInspectionFailed", "message": "Output data may contain\u3002"}
    world.sim.fail_next("stream", "error_event", after_events=6, **words)
    reader, events = await port.whole()
    said_last = is_error(events[-1], "DataInspectionFailed", 400)
    assert (said_last["message"], said_last["request_id"]) == (words["message"], world.sim.truth.calls[0].id)
    task = await ended(world, reader.task_id)
    assert (task["state"], task["code"], task["message"]) == ("failed", words["code"], words["message"])
    assert await lines(world) == [("usage", "image", 1, "partial")]
    await deliver_due(world.res)
    assert len(await stored(world)) == 1


async def test_an_error_of_the_upstreams_own_before_anything_was_made_costs_nothing(port: Port) -> None:
    world = port.world
    world.sim.set_durations(0, 0)
    world.sim.fail_next("stream", "error_event", after_events=2, status=500, code="InternalError", message="no")
    reader, events = await port.whole()
    is_error(events[-1], "InternalError", 500)
    assert (await ended(world, reader.task_id))["state"] == "failed"
    assert await lines(world) == []


async def test_what_the_upstream_says_of_our_account_in_a_stream_stays_with_the_operator(
    port: Port, upstream: TellingUpstream
) -> None:
    streaming = asyncio.ensure_future(port.whole())
    told = await upstream.opened(said(text("a")))
    arrears = {"code": "Arrearage", "message": "account 1234 is in arrears", "request_id": "r-9"}
    await told.say(framed(2, arrears, event="error", status=400))
    await told.end()
    _, events = await streaming
    said_last = is_error(events[-1], "Dashgate.UpstreamAccount", 503)
    assert "1234" not in said_last["message"]
    (account,) = await port.world.rows("SELECT paused_reason FROM accounts WHERE paused_until IS NOT NULL")
    assert account["paused_reason"] == "Arrearage"


@pytest.mark.parametrize("is_scripted", [False, True])
async def test_what_is_refused_before_the_first_event_is_an_answer_like_any_other(
    port: Port, is_scripted: bool
) -> None:
    sim, body = port.world.sim, order(max_images=2 if is_scripted else 9)
    if is_scripted:
        words = {"status": 400, "code": "DataInspectionFailed", "message": "no"}
        sim.fail_next("stream", "error", times=2, **words)
    reader = await port.refused(body)
    straight = {"Authorization": f"Bearer {sim.key(BEIJING)}", "X-DashScope-SSE": "enable"}
    url = f"{sim.base_url(BEIJING)}/services/aigc/multimodal-generation/generation"
    expected = await port.http.post(url, json=body, headers=straight)
    assert (reader.answer.status_code, reader.answer.headers["content-type"]) == (400, "application/json")
    assert {**json.loads(reader.raw), "request_id": ""} == {**expected.json(), "request_id": ""}
    assert await lines(port.world) == []
    assert await occupied(port.world) == 0


# --- readers who leave ------------------------------------------------------------------------------------------------


async def test_a_stream_whose_reader_hangs_up_goes_on_to_its_end(port: Port) -> None:
    world = port.world
    world.sim.set_durations(60, 60)
    async with port.stream() as reader:
        await reader.event()
    world.sim.advance(61)
    task = await ended(world, reader.task_id)
    assert task["state"] in ("delivering", "succeeded")
    (call,) = world.sim.truth.calls
    assert (call.state, call.hung_up) == (CallState.SUCCEEDED, False)
    assert await lines(world) == [("usage", "image", 2, None)]
    assert await occupied(world) == 0
    await deliver_due(world.res)
    assert await stored(world) == [picture.sha256 for picture in call.pictures]
    assert len(world.res.calls) == 0


async def test_the_upstreams_connection_is_given_back_with_the_answer(port: Port, upstream: TellingUpstream) -> None:
    opening = asyncio.ensure_future(upstream.opened(said(text("a"))))
    async with port.stream() as reader:
        await reader.event()
    told = await opening
    await told.say(framed(2, said(reason="stop")))
    await told.end()
    await ended(port.world, reader.task_id)
    again = asyncio.ensure_future(port.whole(order("another")))
    second = await upstream.opened(said(text("a"), reason="stop"))
    await second.end()
    await again
    assert (second.writer is told.writer, upstream.connections) == (True, 1)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_reader_who_leaves_before_the_first_event_gets_the_answer_when_he_asks_again(
    port: Port, upstream: TellingUpstream, has_begun: bool
) -> None:
    world, gamma = port.world, port.world.headers("gamma")
    leaving = asyncio.ensure_future(leave_at_the_head(port, gamma))
    told = await upstream.asked()
    if has_begun:
        await told.begin()
        await leaving
    else:
        leaving.cancel()
    await until(lambda: port.world.rows("SELECT 1 FROM tasks WHERE unanswered_at IS NOT NULL"), "it is unanswered")
    if not has_begun:
        await told.begin()
    await told.say(framed(1, said(text("a"), image(upstream.link()), made=1)), framed(2, said(made=1, reason="stop")))
    await told.end()
    (row,) = await world.rows("SELECT id FROM tasks")
    assert (await ended(world, str(row["id"])))["state"] == "succeeded"
    reader, (event,) = await port.whole(**gamma)
    assert reader.task_id == str(row["id"])
    assert event.startswith(b"id:1\nevent:result\n:HTTP_STATUS/200\ndata:{")
    assert fields_in(event)["output"]["choices"][0]["finish_reason"] == "stop"
    assert links_in(event)[0].startswith("http://gateway/assets/")
    assert upstream.unanswered == 0
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_a_reader_who_left_in_the_middle_has_had_an_answer(port: Port, upstream: TellingUpstream) -> None:
    opening = asyncio.ensure_future(upstream.opened(said(text("a"))))
    async with port.stream() as reader:
        await reader.event()
    told = await opening
    await told.say(framed(2, said(reason="stop")))
    await told.end()
    assert (await ended(port.world, reader.task_id))["unanswered_at"] is None


# --- readers who are slow ---------------------------------------------------------------------------------------------


async def test_a_reader_who_does_not_read_keeps_the_upstream_from_writing(
    port: Port, upstream: TellingUpstream
) -> None:
    pieces = [framed(number, said(text("x" * 16_000))) for number in range(1, 2_000)]
    pieces.append(framed(2_000, said(reason="stop")))
    async with unread(port) as reader:
        told = await upstream.opened()
        saying = asyncio.ensure_future(told.say(*pieces, last=True))
        await until(lambda: told.is_pushed_back, "the upstream's writes wait")
        assert not saying.done()
        read = bytearray()
        while not read.endswith(b"0\r\n\r\n"):
            read += await reader.read(65_536)
        assert read.count(b"event:result") == 2_000


# --- the vendor's SDK -------------------------------------------------------------------------------------------------


def told_to(base_url: str, key: str, **options: Any) -> list[dict[str, Any]]:
    """Stream with the vendor's SDK, unmodified; return its answers with ids and links replaced."""
    messages = [{"role": "user", "content": [{"text": "folding"}]}]
    asked = {"model": "wan2.6-image", "enable_interleave": True, "max_images": 2, "size": "768*768", **options}
    answers = ImageGeneration.call(
        stream=True, api_key=key, base_address=base_url, messages=messages, timeout=20, **asked
    )
    return [replaced(dict(answer)) for answer in answers]


def replaced(value: Any, name: str = "") -> Any:
    match value:
        case dict():
            return {key: replaced(part, key) for key, part in value.items() if key != "headers"}
        case list():
            return [replaced(part) for part in value]
        case str() if name in ("request_id", "image"):
            return f"<{name}>"
    return value


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, None),
        ({"max_images": 9}, None),
        ({}, {"after_events": 0}),
        ({}, {"after_events": 3}),
        ({"enable_interleave": False, "n": 1}, None),
    ],
)
async def test_the_vendors_sdk_streams_from_us_what_it_streams_from_the_upstream(
    port: Port, options: dict[str, Any], fault: dict[str, Any] | None
) -> None:
    sim = port.world.sim
    sim.set_durations(0, 0)
    if fault is not None:
        sim.fail_next("stream", "error_event", times=2, status=400, code="DataInspectionFailed", message="no", **fault)
    theirs = await asyncio.to_thread(told_to, sim.base_url(BEIJING), sim.key(BEIJING), **options)
    ours = await asyncio.to_thread(told_to, f"{port.url}/api/v1", port.world.keys["alpha"], **options)
    assert ours == theirs
    assert len(ours) > 0


async def test_the_vendors_sdk_is_told_of_a_stream_that_broke_off(port: Port) -> None:
    sim = port.world.sim
    sim.set_durations(0, 0)
    sim.fail_next("stream", "break", after_events=3)
    *events, last = await asyncio.to_thread(told_to, f"{port.url}/api/v1", port.world.keys["alpha"])
    assert [event["status_code"] for event in events] == [200, 200, 200]
    assert (last["code"], last["message"]) == ("Dashgate.OutcomeUnknown", "The upstream broke off this stream.")
