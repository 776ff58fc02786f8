"""The pump of a streamed call: read to its end whoever reads, pushed back by slow readers, honest about nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from app.delivery.deliver import deliver_due
from app.delivery.relayed import link_of
from app.relay.outlet import MOST_BYTES, Outlet
from app.relay.stream import Passage, pump
from app.routing.ways import Asked
from app.simulator import Simulator
from app.tasks.accept import Call, accept
from app.tasks.outcome import record_seen
from app.tasks.prepare import NothingTaken
from app.tasks.rescue import rescue_due
from app.teams.authenticate import authenticate
from app.upstream.answers import Refused
from app.upstream.streams import EVENT_MAX_BYTES, MOST_FILES
from tests.api.streaming import (
    TellingUpstream,
    Told,
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
from tests.steps.parts import locked
from tests.world import World, open_world

LOST = "Dashgate.OutcomeUnknown"
MEBIBYTE = 1024 * 1024


@dataclass
class Running:
    """A stream on its way, read by nobody until `events` is asked for."""

    world: World
    passage: Passage
    pumping: asyncio.Task[None]
    chunks: list[bytes] = field(default_factory=list)

    async def events(self) -> Sequence[bytes]:
        """Read to the end; return the events, once the pump has ended too."""
        async with asyncio.timeout(20):
            self.chunks += [chunk async for chunk in self.passage.outlet.read()]
            with contextlib.suppress(Exception):  # what fails in it is seen in the rows
                await self.pumping
        return [event + b"\n\n" for event in b"".join(self.chunks).split(b"\n\n") if event]

    async def task(self) -> dict[str, Any]:
        return await self.world.row("SELECT * FROM tasks WHERE id = $1", self.passage.attempt.task_id)


async def start(world: World, *, outlet: Outlet | None = None, team: str = "alpha") -> Running:
    """Accept a streamed call and start its pump."""
    caller = await authenticate(world.res, f"Bearer {world.keys[team]}")
    call = Call(
        asked=Asked("aigc/multimodal-generation/generation", streams=True),
        body=json.dumps(order()).encode(),
        model="wan2.6-image",
        parameters=order()["parameters"],
        headers={},
        request_id="ours",
    )
    accepted = await accept(world.res, caller, call)
    assert accepted.attempt is not None
    passage = Passage(accepted.attempt, lambda asset: link_of(world.res, asset), outlet=outlet or Outlet())
    return Running(world, passage, world.res.calls.start(pump(world.res, passage)))


@pytest.fixture
async def upstream(world: World) -> AsyncIterator[TellingUpstream]:
    async with telling_upstream(world) as upstream:
        yield upstream


async def say_all(told: Told, pieces: Sequence[bytes]) -> None:
    """Say everything that the other end takes."""
    with contextlib.suppress(ConnectionError):
        await told.say(*pieces)
        await told.end()


# --- slow readers -----------------------------------------------------------------------------------------------------


def twenty_mebibytes() -> list[bytes]:
    pieces = [framed(number, said(text(f"{number}" + "x" * 16_000))) for number in range(1, 1310)]
    return [*pieces, framed(1310, said(reason="stop"))]


async def test_a_slow_reader_pushes_back_on_the_upstream_and_a_quarter_mebibyte_waits(
    world: World, upstream: TellingUpstream
) -> None:
    running, pieces = await start(world), twenty_mebibytes()
    told = await upstream.opened()
    saying = asyncio.ensure_future(say_all(told, pieces))
    outlet = running.passage.outlet
    await until(lambda: told.is_pushed_back, "the upstream's writes wait")
    await until(lambda: outlet.held_bytes > MOST_BYTES - 2 * len(pieces[0]), "the outlet is full")
    assert outlet.held_bytes <= MOST_BYTES
    assert not saying.done()
    most_held = 0
    async for chunk in outlet.read():
        running.chunks.append(chunk)
        most_held = max(most_held, outlet.held_bytes)
    await saying
    assert b"".join(running.chunks) == b"".join(pieces)
    assert most_held <= MOST_BYTES
    assert sum(map(len, pieces)) > 20 * MEBIBYTE


async def test_a_reader_that_stalls_is_dropped_and_the_stream_is_recorded(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world, outlet=Outlet(stall_seconds=0.001))
    told = await upstream.opened()
    late = [framed(2000, said(image(upstream.link()), made=1)), framed(2001, said(made=1, reason="stop"))]
    await say_all(told, [*twenty_mebibytes()[:100], *late])
    async with asyncio.timeout(20):
        await running.pumping
    assert running.passage.outlet.held_bytes == 0
    assert (await running.task())["state"] == "delivering"
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_a_stream_ends_with_its_total_time_out(still_sim: Simulator, database_url: str, tmp_path: Path) -> None:
    async with (
        open_world(still_sim, database_url, tmp_path, relay_timeout_seconds=0.5) as world,
        telling_upstream(world) as upstream,
    ):
        running = await start(world)
        told = await upstream.opened(said(image(upstream.link()), made=1))
        _, last = await running.events()
        await told.left()
        assert upstream.connections == 0
        assert fields_in(last)["code"] == LOST
        assert ((await running.task())["code"], await occupied(world)) == (LOST, 0)
        assert await lines(world) == [("usage", "image", 1, "partial")]


# --- what comes after the end, and where there is none ----------------------------------------------------------------


async def test_the_last_event_waits_for_the_outcome_but_not_for_an_upstream_that_lingers(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.opened(said(text("a"), reason="stop"))
    reading = running.passage.outlet.read()
    async with asyncio.timeout(20):
        assert await anext(reading) == framed(1, said(text("a"), reason="stop"))
    assert (await running.task())["state"] == "succeeded"
    told.cut()


async def test_a_usage_that_comes_behind_the_last_word_is_the_one_that_is_billed(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    last = {"output": {"choices": []}, "usage": {"image_count": 2}, "request_id": "upstream-stream"}
    told = await upstream.opened(said(image(upstream.link()), made=1), said(made=1, reason="stop"), last)
    await told.end()
    assert len(await running.events()) == 3
    assert await lines(world) == [("usage", "image", 2, "counts_disagree")]


async def test_a_file_that_is_announced_behind_the_last_word_is_a_file(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    told = await upstream.opened(said(reason="stop"), said(image(upstream.link()), made=1, reason="stop"))
    await told.end()
    _, event = await running.events()
    assert links_in(event)[0].startswith("http://gateway/")
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_no_link_of_the_upstreams_reaches_a_reader_when_all_is_recorded(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.opened(said(image(upstream.link()), made=1, reason="stop"))
    await until(lambda: running.passage.is_recorded, "the upstream lingers")
    again = said(image(upstream.link()), made=1, reason="stop")
    await told.say(framed(2, again), framed(3, said(image(upstream.link("2.png")), made=2)))
    await told.end()
    first, second = await running.events()
    assert links_in(first) == links_in(second)
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_a_break_behind_the_last_word_breaks_nothing(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    told = await upstream.opened(said(text("a"), image(upstream.link()), made=1), said(made=1, reason="stop"))
    told.cut()
    assert len(await running.events()) == 2
    assert (await running.task())["state"] == "delivering"
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_what_had_arrived_before_a_break_is_kept(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    async with locked(world, "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"):  # its first commit waits
        told = await upstream.asked()
        await told.begin()
        await told.say(*(framed(n, said(image(upstream.link(f"{n}.png")), made=n)) for n in (1, 2)))
        told.cut()
        await until(lambda: upstream.connections == 0, "the connection is broken")
    assert len(await running.events()) == 3
    assert await lines(world) == [("usage", "image", 2, "partial")]


async def test_a_stream_that_says_no_reason_for_its_end_ends_where_its_framing_says_so(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.opened(said(image(upstream.link()), made=1))
    await told.end()
    assert len(await running.events()) == 1
    assert await lines(world) == [("usage", "image", 1, None)]


async def test_a_stream_that_ends_with_its_connection_alone_may_have_been_cut(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.asked()
    await told.begin("Content-Type: text/event-stream\r\nConnection: close\r\n")
    told.writer.write(framed(1, said(image(upstream.link()), made=1)))
    told.writer.close()
    _, last = await running.events()
    assert fields_in(last)["code"] == LOST
    assert await lines(world) == [("usage", "image", 1, "partial")]


async def test_a_call_that_never_left_says_so(world: World) -> None:
    await world.rows("UPDATE accounts SET base_url = 'http://127.0.0.1:1/api/v1'")
    world.res.accounts.clear()
    running = await start(world)
    assert await running.events() == []
    assert isinstance(await running.passage.opened, NothingTaken)
    assert await lines(world) == []


# --- hostile upstreams ------------------------------------------------------------------------------------------------

FIRST = framed(1, said(text("a")))
HOSTILE: dict[str, list[bytes]] = {
    "a line without end": [b"data:" + b"x" * MEBIBYTE] * 100,
    "an event that is too long": [framed(2, said(text("x" * EVENT_MAX_BYTES))), FIRST],
    "lines without an event's end": [b"data:x\n" * 50_000] * 100,
    "no text at all": [bytes(range(256)) * 4096] * 20,
    "text in no encoding": [b'id:2\nevent:result\ndata:{"output":"\xff\xfe"}\n\n', b"data:\xff\xfe\n\n"],
    "no JSON": [b"id:2\nevent:result\ndata:{this is none\n\n"],
    "JSON that is no object": [framed(2, "[1, 2]")],
    "a number that is none": [framed(2, '{"output":{"choices":[]},"usage":{"image_count":NaN}}')],
    "a number without bound": [framed(2, '{"output":{"choices":[]},"usage":{"image_count":1e999}}')],
    "JSON as deep as a well": [framed(2, '{"output":' + "[" * 100_000)],
    "JSON a little too deep": [framed(2, '{"output":{"choices":[],"a":' + "[" * 90 + "]" * 90 + "}}")],
    "comments without end": [b": nothing\n\n" * 100_000] * 100,
    "a comment without end": [b": nothing\n" * 100_000] * 100,
    "choices without end": [framed(2, {"output": {"choices": [{}] * 1_000}})],
    "an end without an answer": [],
}
NOTHING_SAID = {"an end without an answer"}


@pytest.mark.parametrize("hostility", HOSTILE)
async def test_nonsense_ends_a_stream_with_an_error_and_bills_nothing(
    world: World, upstream: TellingUpstream, hostility: str
) -> None:
    running, pieces = await start(world), HOSTILE[hostility]
    told = await upstream.asked()
    await told.begin()
    saying = asyncio.ensure_future(say_all(told, pieces if hostility in NOTHING_SAID else [FIRST, *pieces]))
    *before, last = await running.events()
    await saying  # to its end, or until nobody reads it any more
    assert before == ([] if hostility in NOTHING_SAID else [FIRST])
    assert last.split(b"\n")[1:3] == [b"event:error", b":HTTP_STATUS/500"]
    assert fields_in(last).keys() == {"code", "message", "request_id"}
    assert told.sent_bytes < 12 * MEBIBYTE
    task = await running.task()
    assert (task["state"], task["code"]) == ("failed", LOST)
    assert await lines(world) == [("uncertain", "image", 2, None)]


NONSENSE: dict[str, dict[str, Any]] = {
    "a count below nothing": {"image_count": -5},
    "a count beyond reason": {"image_count": 10**12},
    "a count in words": {"image_count": "many"},
    "texts that no row holds": {"note": "a\x00b\ud800", "a\x00b": 1, "image_count": "\x00"},
    "a usage within a usage": {"image_count": {"image_count": [1]}},
}


@pytest.mark.parametrize("usage", NONSENSE)
async def test_a_usage_that_is_nonsense_is_flagged_and_the_files_are_counted(
    world: World, upstream: TellingUpstream, usage: str
) -> None:
    running = await start(world)
    fields = {**said(image(upstream.link()), reason="stop"), "usage": NONSENSE[usage], "request_id": "a\x00b\ud800"}
    told = await upstream.asked()
    await told.begin()
    await told.say(framed(1, json.dumps(fields)))
    await told.end()
    (event,) = await running.events()
    assert links_in(event)[0].startswith("http://gateway/")
    assert await lines(world) == [("usage", "image", 1, "unknown_usage")]


async def test_after_nonsense_of_a_usage_a_break_bills_the_files_that_were_seen(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.opened({**said(image(upstream.link())), "usage": {"image_count": -5}})
    await told.say(FIRST)
    await until(lambda: len(running.passage.assets) == 1, "the file is seen")
    told.cut()
    await running.events()
    assert await lines(world) == [("usage", "image", 1, "partial")]


async def test_files_without_end_end_a_stream(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    told = await upstream.asked()
    await told.begin()
    many = [image(upstream.link(f"{number}.png")) for number in range(MOST_FILES + 1)]
    await told.say(framed(1, said(*many, made=1)))
    (last,) = await running.events()
    assert fields_in(last)["code"] == LOST
    assert await world.rows("SELECT 1 FROM assets") == []


async def test_a_file_in_the_place_of_another_is_never_taken_for_it(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    shapes = [{"output": {"results": [{"url": upstream.link(name)}]}} for name in ("1.png", "2.png")]
    told = await upstream.opened(*shapes)
    await told.end()
    _, last = await running.events()
    assert last.split(b"\n")[1] == b"event:error"


IMITATIONS = {
    "with a space": b'id:2\nevent: error\n:HTTP_STATUS/400\ndata:{"code":"Theirs","message":"m","request_id":"r"}\n\n',
    "with more behind": b'id:2\nevent:error-ish\n:HTTP_STATUS/400\ndata:{"code":"Theirs","message":"m"}\n\n',
    "in its data alone": b'id:2\nevent:result\n:HTTP_STATUS/400\ndata:{"code":"Theirs","message":"m"}\n\n',
    "with a status of success": b'event:error\n:HTTP_STATUS/200\ndata:{"code":"Theirs","message":"m"}\n\n',
    "without its words": b"event:error\ndata:{}\n\n",
    "without data": b"event:error\n\n",
}


@pytest.mark.parametrize("imitation", IMITATIONS)
async def test_an_error_of_any_form_ends_the_stream_in_the_form_that_readers_know(
    world: World, upstream: TellingUpstream, imitation: str
) -> None:
    running = await start(world)
    told = await upstream.opened(said(text("a")))
    await told.say(IMITATIONS[imitation])
    _, last = await running.events()
    _, event, status, data, *_ = last.split(b"\n")
    assert event == b"event:error"
    assert int(status.removeprefix(b":HTTP_STATUS/")) >= 400
    assert fields_in(last).keys() == {"code", "message", "request_id"}
    assert data.startswith(b"data:{")
    assert (await running.task())["state"] == "failed"
    assert await lines(world) == []


async def test_an_event_that_others_could_read_as_two_is_written_anew(world: World, upstream: TellingUpstream) -> None:
    running = await start(world)
    data = b'{"output":{"choices":[]},\rdata:"x"}'
    odd = [
        b"event:error\nevent:result\ndata:" + json.dumps(said(text("twice"))).encode() + b"\n\n",
        b"status:7\nevent:result\ndata:" + json.dumps(said(text("unknown"))).encode() + b"\n\n",
        b"event:result\ndata:" + data.replace(b'data:"x"', b'"x":1') + b"\n\n",
    ]
    told = await upstream.asked()
    await told.begin()
    await told.say(*odd, framed(4, said(reason="stop")))
    await told.end()
    events = await running.events()
    assert len(events) == 4
    for number, event in enumerate(events[:3], 1):
        assert event.startswith(b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:" % number)
        assert not {b"error", b"status:", b"\r"} & {part for part in (b"error", b"status:", b"\r") if part in event}


async def test_our_key_is_not_passed_on_should_the_upstream_say_it(world: World, upstream: TellingUpstream) -> None:
    running, key = await start(world), world.sim.key("cn-beijing")
    told = await upstream.opened(said(text(f"the key is {key}"), reason="stop"))
    await told.end()
    (event,) = await running.events()
    assert key.encode() not in event


# --- when our own side fails ------------------------------------------------------------------------------------------


async def test_a_pump_that_dies_leaves_what_was_seen_for_rescue_to_bill(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    await upstream.opened(said(image(upstream.link()), made=1), said(image(upstream.link("2.png")), made=2))
    await until(lambda: len(running.passage.assets) == 2, "both files are seen")
    running.pumping.cancel()
    world.sim.advance(640)
    assert await rescue_due(world.res) == 1
    task = await running.task()
    assert (task["state"], task["code"]) == ("failed", LOST)
    assert await lines(world) == [("usage", "image", 2, "partial")]
    (entry,) = await world.rows("SELECT upstream_request_id FROM ledger_entries")
    assert entry["upstream_request_id"] == "upstream-stream"
    assert len(await world.rows("SELECT 1 FROM work WHERE kind = 'deliver'")) == 2
    assert await rescue_due(world.res) == 0


async def test_what_a_dead_pump_had_announced_is_copied(world: World) -> None:
    world.sim.set_durations(60, 60)
    running = await start(world)
    await until(lambda: running.passage.events == 1, "the upstream works on it")
    world.sim.advance(30)
    await until(lambda: len(running.passage.assets) == 1, "a file is seen")
    running.pumping.cancel()
    world.sim.advance(640)
    await rescue_due(world.res)
    assert await deliver_due(world.res) == 1
    (asset,) = await world.rows("SELECT state, sha256 FROM assets")
    assert (asset["state"], asset["sha256"]) == ("stored", world.sim.truth.calls[0].pictures[0].sha256)


async def test_a_pump_that_dies_before_anything_was_made_leaves_an_uncertain_line(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    await upstream.opened(said(text("a")))
    await until(lambda: running.passage.events == 1, "an event has passed")
    running.pumping.cancel()
    world.sim.advance(640)
    assert await rescue_due(world.res) == 1
    assert await lines(world) == [("uncertain", "image", 2, None)]


async def test_a_pump_that_fails_says_so_to_its_reader_and_leaves_the_rest_to_rescue(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    running.passage.link_to = _fail
    await upstream.opened(said(image(upstream.link()), made=1))
    (last,) = await running.events()
    assert last.split(b"\n")[1:3] == [b"event:error", b":HTTP_STATUS/500"]
    assert fields_in(last)["code"] == "InternalError"
    assert (await running.task())["state"] == "running"
    world.sim.advance(640)
    assert await rescue_due(world.res) == 1
    assert await lines(world) == [("usage", "image", 1, "partial")]


def _fail(asset: dict[str, Any]) -> str:
    raise RuntimeError("no link today")


async def test_what_was_seen_may_be_written_again_when_nobody_knows_of_the_first_commit(
    world: World, upstream: TellingUpstream
) -> None:
    running = await start(world)
    told = await upstream.opened(said(image(upstream.link()), made=1))
    await until(lambda: len(running.passage.assets) == 1, "the file is seen")
    seen = {"usage": {"image_count": 1}, "request_id": "r"}
    await record_seen(world.res, running.passage.attempt, seen=seen, assets=list(running.passage.assets.values()))
    assert len(await world.rows("SELECT 1 FROM assets")) == 1
    told.cut()
    await running.events()


@pytest.mark.parametrize("is_framed", [False, True])
async def test_a_refusal_is_one_whether_or_not_it_comes_as_an_event(
    world: World, upstream: TellingUpstream, is_framed: bool
) -> None:
    running = await start(world)
    told = await upstream.asked()
    words = {"code": "InvalidParameter", "message": "no", "request_id": "r-1"}
    body = framed(1, words, event="error", status=400) if is_framed else json.dumps(words).encode()
    media_type = "text/event-stream" if is_framed else "application/json"
    await told.begin(f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n", status=400)
    told.writer.write(body)
    ended = await running.passage.opened
    assert isinstance(ended, Refused)
    assert (ended.status, ended.code, json.loads(ended.body)) == (400, "InvalidParameter", words)
    assert await running.events() == []
    assert await lines(world) == []
