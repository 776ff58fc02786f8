"""Parts for tests of streams: an upstream that says what it is told, piece by piece, and a reader that reads so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from aiohttp.test_utils import unused_port

from app.main import serve
from app.relay.outlet import HEARTBEAT
from tests.api.parts import Received, _receive
from tests.processes import until
from tests.world import World

STREAM_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
PATIENCE_SECONDS = 20.0
STREAM_HEADERS = "Content-Type: text/event-stream;charset=UTF-8\r\nTransfer-Encoding: chunked\r\n"


def order(prompt: str = "folding", **parameters: Any) -> dict[str, Any]:
    """The body of a streamed call: an illustrated text of two steps."""
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    given = {"enable_interleave": True, "max_images": 2, "size": "768*768", **parameters}
    return {"model": "wan2.6-image", "input": {"messages": messages}, "parameters": given}


def framed(number: int, fields: Any, *, event: str = "result", status: int = 200) -> bytes:
    """An event as the upstream writes it."""
    data = fields if isinstance(fields, str) else json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return f"id:{number}\nevent:{event}\n:HTTP_STATUS/{status}\ndata:{data}\n\n".encode()


def said(*items: dict[str, Any], made: int = 0, reason: str = "null", **beside: Any) -> dict[str, Any]:
    """What an event says: items of content, how many images were made so far, why it ended."""
    message = {"role": "assistant", "content": list(items)}
    output = {"choices": [{"message": message, "finish_reason": reason}], "finished": reason != "null", **beside}
    usage = {"image_count": made, "size": "1280*1280", "input_tokens": 28, "output_tokens": 1, "total_tokens": 29}
    return {"output": output, "usage": usage, "request_id": "upstream-stream"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str) -> dict[str, Any]:
    return {"type": "image", "image": url}


@dataclass(eq=False)
class Told:
    """One request that a `TellingUpstream` has read, and its answer as it is told."""

    request: Received
    writer: asyncio.StreamWriter
    sent_bytes: int = 0
    is_pushed_back: bool = False  # a write had to wait for the other end to read
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, headers: str = STREAM_HEADERS, *, status: int = 200) -> None:
        """Send the head of an answer."""
        await self._write(f"HTTP/1.1 {status} X\r\n{headers}\r\n".encode())

    async def say(self, *pieces: bytes, last: bool = False) -> None:
        """Send pieces of a chunked body; returns when all have left."""
        for piece in pieces:
            await self._write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.sent_bytes += len(piece)
        if last:
            await self.end()

    async def end(self) -> None:
        """Send the end of a chunked body."""
        await self._write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()

    async def left(self) -> None:
        """Wait until the other end has closed the connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.gone.wait()

    async def _write(self, piece: bytes) -> None:
        self.writer.write(piece)
        self.is_pushed_back = self.is_pushed_back or self.writer.transport.get_write_buffer_size() > 0
        await self.writer.drain()


@dataclass
class TellingUpstream:
    """Hands every request to the test, which tells the answer."""

    port: int = 0
    _requests: asyncio.Queue[Told] = field(default_factory=asyncio.Queue)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def link(self, name: str = "1.png") -> str:
        return f"http://{self.host}/files/{name}?Expires=9999999999&Signature=hush"

    @property
    def unanswered(self) -> int:
        """How many requests have come that no test has taken."""
        return self._requests.qsize()

    async def asked(self) -> Told:
        """Wait for the next request."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._requests.get()

    async def opened(self, *first: dict[str, Any]) -> Told:
        """Wait for the next request, begin a stream and say its first events."""
        told = await self.asked()
        await told.begin()
        await told.say(*(framed(number, fields) for number, fields in enumerate(first, 1)))
        return told

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._writers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        gone = asyncio.Event()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await _receive(reader)
                await self._requests.put(Told(request, writer, gone=gone))
        self._writers.discard(writer)
        gone.set()
        writer.close()

    def cut_all(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def telling_upstream(world: World) -> AsyncIterator[TellingUpstream]:
    """Put an upstream that tests speak for in the place of the world's simulator."""
    upstream = TellingUpstream()
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = listener.sockets[0].getsockname()[1]
    base_url = f"http://{upstream.host}/api/v1"
    await world.rows("UPDATE accounts SET base_url = $1, file_hosts = ARRAY[$2]", base_url, upstream.host)
    world.res.accounts.clear()
    try:
        yield upstream
    finally:
        listener.close()
        upstream.cut_all()


class Reader:
    """A client in the middle of an answer; `raw` is all that it has read."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.task_id = answer.headers.get("x-dashgate-task-id", "")
        self.raw = b""
        self._chunks = answer.aiter_raw()
        self._given = 0

    async def event(self) -> bytes:
        """Return the next event, byte for byte; empty when the stream has ended. Heartbeats are left out."""
        while (end := self.raw.find(b"\n\n", self._given)) < 0:
            if not await self._more():
                assert self._given == len(self.raw), "a stream that ended within an event"
                return b""
        event, self._given = self.raw[self._given : end + 2], end + 2
        return await self.event() if event == HEARTBEAT else event

    async def rest(self) -> list[bytes]:
        """Return all events to the end."""
        events = []
        while event := await self.event():
            events.append(event)
        return events

    async def whole(self) -> bytes:
        """Read an answer that is no stream."""
        while await self._more():
            pass
        return self.raw

    async def _more(self) -> bool:
        async with asyncio.timeout(PATIENCE_SECONDS):
            chunk = await anext(self._chunks, None)
        self.raw += chunk or b""
        return chunk is not None


def fields_in(event: bytes) -> dict[str, Any]:
    """What an event says."""
    (data,) = [line for line in event.split(b"\n") if line.startswith(b"data:")]
    return dict(json.loads(data.removeprefix(b"data:")))


def links_in(event: bytes) -> list[str]:
    """The links of an event's images."""
    content = [item for choice in fields_in(event)["output"]["choices"] for item in choice["message"]["content"]]
    return [item["image"] for item in content if "image" in item]


@dataclass
class Port:
    """A world's gateway at a port of its own, as a stream needs it."""

    world: World
    url: str
    http: httpx.AsyncClient

    @contextlib.asynccontextmanager
    async def stream(self, body: Any = None, **headers: str) -> AsyncIterator[Reader]:
        """Open a stream; leaving hangs up."""
        sent = {**self.world.headers(), "X-DashScope-SSE": "enable", **headers}
        content = body if isinstance(body, bytes) else json.dumps(body or order()).encode()
        sent["Content-Type"] = "application/json"
        async with self.http.stream("POST", self.url + STREAM_PATH, content=content, headers=sent) as answer:
            yield Reader(answer)

    async def whole(self, body: Any = None, **headers: str) -> tuple[Reader, list[bytes]]:
        """Read a stream from its first event to its last."""
        async with self.stream(body, **headers) as reader:
            return reader, await reader.rest()

    async def refused(self, body: Any = None, **headers: str) -> Reader:
        """Read an answer that is no stream."""
        async with self.stream(body, **headers) as reader:
            await reader.whole()
            return reader


@contextlib.asynccontextmanager
async def at_a_port(world: World) -> AsyncIterator[Port]:
    """Serve a world's gateway at a port while the block runs."""
    port, stop = unused_port(), asyncio.Event()
    serving = asyncio.ensure_future(serve(world.res, teams=f"127.0.0.1:{port}", operators=None, stop=stop))
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False) as http:
        door = Port(world, f"http://127.0.0.1:{port}", http)

        async def ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return (await http.get(f"{door.url}/livez")).status_code == 200
            return False

        await until(ready, "the gateway is ready")
        try:
            yield door
        finally:
            stop.set()
            await serving


async def ended(world: World, task_id: str) -> dict[str, Any]:
    """Wait until what goes on behind a stream has recorded its end; return the task's row."""

    async def find() -> dict[str, Any] | None:
        (row,) = await world.rows("SELECT * FROM tasks WHERE id = $1::uuid", task_id)
        return row if row["state"] not in ("submitting", "running") else None

    row = await until(find, f"task {task_id} is off the wire", seconds=PATIENCE_SECONDS)
    assert row is not None
    return row


async def lines(world: World) -> list[tuple[str, str, int, str | None]]:
    """The ledger: kind, unit, quantity, flag."""
    rows = await world.rows("SELECT kind, unit, quantity, flag FROM ledger_entries ORDER BY unit, id")
    return [(row["kind"], row["unit"], int(row["quantity"]), row["flag"]) for row in rows]


async def occupied(world: World) -> int:
    """How many places upstream are taken."""
    (row,) = await world.rows("SELECT count(*) AS n FROM tasks WHERE state IN ('submitting', 'pending', 'running')")
    return int(row["n"])
