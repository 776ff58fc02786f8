"""Parts to build a gateway with: an upstream that says what the simulator never says, and a database that is away."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from app.lib.db import Database
from app.main import create_app
from app.resources import Resources
from tests.world import World

UPSTREAM_ID = "11111111-2222-4333-8444-555555555555"


@dataclass(frozen=True)
class Received:
    """One request as it came over the wire; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedUpstream:
    """Gives every create, look and file the answer it was told: a status and the bytes. `hold` keeps answers back."""

    create: tuple[int, bytes] = (200, b"{}")
    look: tuple[int, bytes] = (200, b"{}")
    file: tuple[int, bytes] = (404, b"")
    received: list[Received] = field(default_factory=list)
    port: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def link(self, name: str = "1.png") -> str:
        return f"http://{self.host}/files/{name}?Expires=9999999999&Signature=hush"

    def hold(self) -> None:
        """Keep answers back until `let_go`; `arrived` is set when the next request is there."""
        self._go.clear()
        self.arrived.clear()

    def let_go(self) -> None:
        self._go.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _receive(reader)
            self.received.append(request)
            self.arrived.set()
            await self._go.wait()
            status, body = self._answer(request)
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    def _answer(self, request: Received) -> tuple[int, bytes]:
        if request.method == "POST":
            return self.create
        return self.file if request.path.startswith("/files/") else self.look


async def _receive(reader: asyncio.StreamReader) -> Received:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    method, path, _ = first.split(" ")
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


@contextlib.asynccontextmanager
async def scripted_upstream(world: World) -> AsyncIterator[ScriptedUpstream]:
    """Put a scripted upstream in the place of the world's simulator."""
    upstream = ScriptedUpstream()
    upstream.let_go()
    listener = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = listener.sockets[0].getsockname()[1]
    base_url = f"http://{upstream.host}/api/v1"
    await world.rows("UPDATE accounts SET base_url = $1, file_hosts = ARRAY[$2]", base_url, upstream.host)
    world.res.accounts.clear()
    async with listener:
        yield upstream
        upstream.let_go()


def receipt(upstream_task_id: str = UPSTREAM_ID) -> tuple[int, bytes]:
    """The upstream's answer to a create that it took."""
    output = {"task_status": "PENDING", "task_id": upstream_task_id}
    return 200, json.dumps({"output": output, "request_id": "upstream-request"}).encode()


def state(word: str, **more: Any) -> tuple[int, bytes]:
    """The upstream's answer about a task; `usage` stands beside `output`, everything else in it."""
    answer: dict[str, Any] = {"request_id": "upstream-look"}
    if "usage" in more:
        answer["usage"] = more.pop("usage")
    answer["output"] = {"task_id": UPSTREAM_ID, "task_status": word, **more}
    return 200, json.dumps(answer).encode()


def choices(*links: str) -> list[dict[str, Any]]:
    """One choice per link, as the upstream answers."""
    return [{"message": {"role": "assistant", "content": [{"type": "image", "image": link}]}} for link in links]


@contextlib.contextmanager
def _closed_port() -> Any:
    """A port of ours that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.asynccontextmanager
async def without_database(world: World) -> AsyncIterator[tuple[Resources, httpx.AsyncClient, httpx.AsyncClient]]:
    """The world's gateway as it is while Postgres is away: its resources, and a client of each surface."""
    with _closed_port() as port:
        res = dataclasses.replace(world.res, db=Database(f"postgresql://nobody@127.0.0.1:{port}/nowhere"))
        teams, operators = (
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=create_app(surface, res), raise_app_exceptions=False),
                base_url="http://gateway",
                headers=headers,
            )
            for surface, headers in (("teams", {}), ("operators", dict(world.operators.headers)))
        )
        async with teams, operators:
            yield res, teams, operators
        await res.db.close()
