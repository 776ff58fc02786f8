"""The outlet between pump and reader: bounded, pushing back, and never waiting for a reader that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from dashscope.common.utils import _handle_aio_stream, _handle_stream
from dashscope.v2.resources._sse import _aiter_sse, _iter_sse

from app.relay.outlet import HEARTBEAT, MOST_BYTES, Outlet

NEVER = 3600.0
AT_ONCE = 0.001


async def turns(count: int = 5) -> None:
    """Let every task go on as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def taken(reading: AsyncIterator[bytes]) -> bytes:
    async with asyncio.timeout(10):
        return await anext(reading)


async def test_what_is_put_is_read_in_its_order_and_ends() -> None:
    outlet = Outlet()
    for chunk in (b"one", b"two", b"three"):
        await outlet.put(chunk)
    outlet.end()
    assert [chunk async for chunk in outlet.read()] == [b"one", b"two", b"three"]


async def test_a_reader_who_waits_is_given_a_chunk_as_soon_as_it_is_put() -> None:
    outlet = Outlet()
    reading = asyncio.ensure_future(taken(outlet.read()))
    await turns()
    assert not reading.done()
    await outlet.put(b"one")
    assert await reading == b"one"


async def test_no_more_than_its_bytes_wait_and_the_pump_waits_for_the_reader() -> None:
    outlet = Outlet(most_bytes=10, stall_seconds=NEVER)
    await outlet.put(b"12345")
    await outlet.put(b"67890")
    putting = asyncio.ensure_future(outlet.put(b"x"))
    await turns()
    assert (putting.done(), outlet.held_bytes) == (False, 10)
    reading = outlet.read()
    assert await taken(reading) == b"12345"
    await turns()
    assert (putting.done(), outlet.held_bytes) == (False, 10), "what the reader is taking has not left yet"
    assert await taken(reading) == b"67890"
    await turns()
    assert (putting.done(), outlet.held_bytes) == (True, 6)


async def test_a_chunk_larger_than_all_that_may_wait_passes_alone() -> None:
    outlet = Outlet(most_bytes=10, stall_seconds=NEVER)
    await outlet.put(b"x" * 50)
    putting = asyncio.ensure_future(outlet.put(b"y"))
    await turns()
    assert not putting.done()
    reading = outlet.read()
    assert [len(await taken(reading)), await taken(reading)] == [50, b"y"]


def test_a_quarter_of_a_mebibyte_may_wait() -> None:
    assert MOST_BYTES == 262_144


async def test_a_reader_that_takes_nothing_for_too_long_is_gone() -> None:
    outlet = Outlet(most_bytes=10, stall_seconds=AT_ONCE)
    await outlet.put(b"1234567890")
    await outlet.put(b"more")
    await outlet.put(b"and more")
    assert outlet.held_bytes == 0
    assert [chunk async for chunk in outlet.read()] == []


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_reader_that_leaves_is_waited_for_no_more(is_full: bool) -> None:
    outlet = Outlet(most_bytes=10, stall_seconds=NEVER)
    await outlet.put(b"1234567890" if is_full else b"1")
    putting = asyncio.ensure_future(outlet.put(b"more")) if is_full else asyncio.ensure_future(outlet.emptied())
    await turns()
    assert not putting.done()
    outlet.leave()
    await putting
    for _ in range(100):
        await outlet.put(b"x" * 1000)
    assert outlet.held_bytes == 0


async def test_a_reader_that_waits_and_leaves_is_at_its_end() -> None:
    outlet = Outlet()
    reading = asyncio.ensure_future(anext(outlet.read(), b"the end"))
    await turns()
    outlet.leave()
    assert await reading == b"the end"


async def test_it_is_empty_when_the_reader_has_asked_for_more_than_the_last_chunk() -> None:
    outlet = Outlet(stall_seconds=NEVER)
    await outlet.put(b"last")
    outlet.end()
    emptied = asyncio.ensure_future(outlet.emptied())
    reading = outlet.read()
    assert await taken(reading) == b"last"
    await turns()
    assert not emptied.done()
    assert [chunk async for chunk in reading] == []
    await emptied


async def test_where_nothing_comes_for_long_there_are_heartbeats() -> None:
    outlet = Outlet(heartbeat_seconds=AT_ONCE)
    reading = outlet.read()
    assert [await taken(reading) for _ in range(3)] == [HEARTBEAT] * 3
    assert not outlet.has_given
    await outlet.put(b"one")
    while (chunk := await taken(reading)) == HEARTBEAT:
        pass
    assert chunk == b"one"
    assert await taken(reading) == HEARTBEAT
    assert outlet.has_given


# --- heartbeats are nothing to the vendor's readers, sent between events at any place ---------------------------------

EVENT = b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{}}\n\n'
ERROR = b'id:2\nevent:error\n:HTTP_STATUS/500\ndata:{"code":"InternalError","message":"m"}\n\n'
BEATING = HEARTBEAT + EVENT + HEARTBEAT + HEARTBEAT + EVENT + HEARTBEAT + ERROR
STILL = EVENT + EVENT + ERROR


class Answer:
    """An answer as the vendor's SDKs read theirs: requests, aiohttp and httpx."""

    def __init__(self, body: bytes, *, is_text: bool = False) -> None:
        self._lines = body.decode().splitlines() if is_text else body.splitlines()
        self.content = self._each(body.splitlines(keepends=True))

    def iter_lines(self) -> list[Any]:
        return list(self._lines)

    def aiter_lines(self) -> AsyncIterator[Any]:
        return self._each(self._lines)

    async def _each(self, lines: list[Any]) -> AsyncIterator[Any]:
        for line in lines:
            yield line


async def read_by(reader: str, body: bytes) -> list[Any]:
    """What a reader of the vendor's finds in a stream: whether each is an error, and its data."""
    match reader:
        case "legacy":
            return [(bad, event.data) for bad, _, event in _handle_stream(Answer(body))]  # type: ignore[arg-type]
        case "legacy, asyncio":
            return [(bad, data) async for bad, _, data in _handle_aio_stream(Answer(body))]
        case "v2":
            return [(bad, data) for bad, _, data in _iter_sse(Answer(body, is_text=True))]
    return [(bad, data) async for bad, _, data in _aiter_sse(Answer(body, is_text=True))]


@pytest.mark.parametrize("reader", ["legacy", "legacy, asyncio", "v2", "v2, asyncio"])
async def test_the_vendors_readers_pass_over_heartbeats(reader: str) -> None:
    found = await read_by(reader, BEATING)
    assert found == await read_by(reader, STILL)
    assert [bad for bad, _ in found] == [False, False, True]
