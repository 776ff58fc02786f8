"""Doors to put between a process and what it leans on: slow, shut, or striking at a named point.

A door costs nothing where there is none: the code under test knows of no such thing.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from sqlalchemy.engine import make_url

CHUNK_BYTES = 65_536
PATIENCE_SECONDS = 30.0
When = Literal["before", "after"]


@dataclass
class Line:
    """One connection through a door."""

    client: asyncio.StreamReader
    back: asyncio.StreamWriter
    server: asyncio.StreamReader
    on: asyncio.StreamWriter
    statements: dict[bytes, bytes] = field(default_factory=dict)  # what Postgres was told to prepare, by name
    is_marked: bool = False  # the wanted statement ran in the open transaction
    is_committing: bool = False


def _nothing() -> None:
    """What a door does that was not armed."""


class Door:
    """A TCP door in front of a server: `target` is host and port, or the path of a socket."""

    def __init__(self, *target: Any) -> None:
        self._target = target
        self._lines: list[Line] = []
        self._is_shut = False
        self._strike: Callable[[], None] = _nothing
        self._struck = asyncio.Event()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.shut()

    def shut(self) -> None:
        """Break every connection, and let nobody in until `open`."""
        self._is_shut = True
        for line in self._lines:
            line.back.transport.abort()
            line.on.transport.abort()

    def open(self) -> None:
        """Let new connections in again."""
        self._is_shut = False

    async def struck(self) -> None:
        """Wait until what the door was armed for has happened, once for each arming."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._struck.wait()
        self._struck.clear()

    def _hit(self) -> None:
        strike, self._strike = self._strike, _nothing
        strike()
        self._struck.set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_shut:
            writer.transport.abort()
            return
        is_path = len(self._target) == 1
        there = await (asyncio.open_unix_connection if is_path else asyncio.open_connection)(*self._target)
        line = Line(reader, writer, *there)
        self._lines.append(line)
        ways = [asyncio.ensure_future(self._up(line)), asyncio.ensure_future(self._down(line))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)  # a broken connection is what doors are for
        self._lines.remove(line)
        line.on.close()
        line.back.close()

    async def _up(self, line: Line) -> None:
        while chunk := await line.client.read(CHUNK_BYTES):
            line.on.write(chunk)
            await line.on.drain()

    async def _down(self, line: Line) -> None:
        while chunk := await line.server.read(CHUNK_BYTES):
            line.back.write(chunk)
            await line.back.drain()


class SlowDoor(Door):
    """A door that keeps everything that passes for a random while, so that calls are on the wire for longer."""

    def __init__(self, *target: Any, dice: random.Random | None = None) -> None:
        super().__init__(*target)
        self._dice = dice or random.Random()
        self.most_seconds = 0.0

    async def _up(self, line: Line) -> None:
        while chunk := await line.client.read(CHUNK_BYTES):
            await asyncio.sleep(self._dice.uniform(0, self.most_seconds))
            line.on.write(chunk)

    async def _down(self, line: Line) -> None:
        while chunk := await line.server.read(CHUNK_BYTES):
            await asyncio.sleep(self._dice.uniform(0, self.most_seconds))
            line.back.write(chunk)


class PutDoor(Door):
    """A door to S3 that strikes in the middle of the body of a PUT."""

    PASSED_BYTES = 2_000  # of the request, so that the store has begun to take the body

    def arm(self, strike: Callable[[], None]) -> None:
        """Call `strike` once, when some of a PUT has passed; the rest never arrives."""
        self._strike = strike

    async def _up(self, line: Line) -> None:
        passed, is_put = 0, False
        while chunk := await line.client.read(1_000):
            is_put = is_put or chunk.startswith(b"PUT ")
            if is_put and self._strike is not _nothing and passed > self.PASSED_BYTES:
                self._hit()
                return
            passed += len(chunk)
            line.on.write(chunk)
            await line.on.drain()


class CommitDoor(Door):
    """A door to Postgres that strikes at the COMMIT of the first transaction with a given statement in it.

    "before": the COMMIT never arrives, so Postgres rolls back. "after": it is done, and nobody hears of it.
    """

    def __init__(self, database_url: str) -> None:
        self._url = make_url(database_url)
        folder, port = self._url.query.get("host"), self._url.query.get("port") or self._url.port or 5432
        super().__init__(*([f"{folder}/.s.PGSQL.{port}"] if folder else [self._url.host, port]))
        self._words, self._when = b"", "before"

    @property
    def url(self) -> str:
        """The database's URL, by way of this door."""
        return self._url.set(host="127.0.0.1", port=self.port, query={}).render_as_string(hide_password=False)

    def arm(self, words: str, when: When, strike: Callable[[], None]) -> None:
        """Call `strike` once, at the COMMIT after a statement with these words."""
        self._words, self._when, self._strike = words.encode(), when, strike

    async def _up(self, line: Line) -> None:
        await _greet(line)
        while True:
            head = await line.client.readexactly(5)
            body = await line.client.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            self._notice(line, head[:1], body)
            if head[:1] == b"Q" and line.is_marked and body.startswith(b"COMMIT"):
                line.is_committing = True
                if self._when == "before":
                    self._hit()
                    return
            line.on.write(head + body)
            await line.on.drain()

    async def _down(self, line: Line) -> None:
        while chunk := await line.server.read(CHUNK_BYTES):
            if line.is_committing:  # Postgres answers when it is done
                self._hit()
                return
            line.back.write(chunk)
            await line.back.drain()

    def _notice(self, line: Line, kind: bytes, body: bytes) -> None:
        """Follow the extended protocol: P names a statement, B is about to run it."""
        parts = body.split(b"\0", 2)
        if kind == b"P":
            line.statements[parts[0]] = parts[1]
        elif kind == b"B" and self._words and self._words in line.statements.get(parts[1], b""):
            line.is_marked, self._words = True, b""


async def _greet(line: Line) -> None:
    """Pass the start-up message on; a wish for TLS is declined, so that we can read along."""
    while True:
        length, code = struct.unpack("!II", await line.client.readexactly(8))
        rest = await line.client.readexactly(length - 8)
        if code >> 16 == 3:  # the protocol's version
            line.on.write(struct.pack("!II", length, code) + rest)
            return
        line.back.write(b"N")
