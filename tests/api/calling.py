"""Parts for tests of calls that are waited for: callers that wait while the clock is moved, or hang up meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import httpx

from app.lib.db import Database, DatabaseAway, DirectSession, Session
from app.main import create_app
from app.resources import Resources
from app.routing.accounts import limit_model
from app.simulator import BEIJING
from tests.steps.parts import until
from tests.world import CREATE_PATH, World

SYNC_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
RELAYED = "z-image-turbo"  # a model without an asynchronous form
PATIENCE_SECONDS = 10.0


def relay_order(prompt: str = "a paper boat") -> dict[str, Any]:
    """The body of a call that can only be relayed."""
    messages = [{"role": "user", "content": [{"text": prompt}]}]
    return {"model": RELAYED, "input": {"messages": messages}, "parameters": {}}


class Line:
    """One request on a connection of its own, as the server sees it: it may end before the answer does."""

    def __init__(
        self,
        world: World,
        body: Any,
        *,
        team: str = "alpha",
        path: str = SYNC_PATH,
        res: Resources | None = None,
        **headers: str,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()  # as httpx does
        sent = {**world.headers(team), "Content-Type": "application/json", **headers}
        self.messages: list[dict[str, Any]] = []
        self._read: list[dict[str, Any]] = [{"type": "http.request", "body": content, "more_body": False}]
        self._gone = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("gateway", 80),
        }
        self._serving = asyncio.ensure_future(create_app("teams", res or world.res)(scope, self._receive, self._send))

    def hang_up(self) -> None:
        """Close the connection."""
        self._gone.set()

    @property
    def is_answered(self) -> bool:
        return self._serving.done()

    async def answer(self) -> httpx.Response:
        """Wait for the answer; it is there although nobody may read it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.wait({self._serving})
        self._serving.result()
        start, *rest = self.messages
        return httpx.Response(
            start["status"], headers=start["headers"], content=b"".join(part["body"] for part in rest)
        )

    async def _receive(self) -> dict[str, Any]:
        if self._read:
            return self._read.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


class FickleDatabase(Database):
    """A database that is away when told so."""

    is_away, refused = False, 0

    def connect(self, *, autocommit: bool) -> contextlib.AbstractAsyncContextManager[Session]:
        self._refuse()
        return super().connect(autocommit=autocommit)

    def connect_direct(self) -> contextlib.AbstractAsyncContextManager[DirectSession]:
        self._refuse()
        return super().connect_direct()

    def _refuse(self) -> None:
        if self.is_away:
            self.refused += 1
            raise DatabaseAway("told so")


async def call(world: World, body: Any = None, *, team: str = "alpha", path: str = SYNC_PATH, **headers: str) -> Line:
    """Begin a synchronous call; returns when it waits for something, or is answered."""
    line = Line(world, body or world.order(), team=team, path=path, **headers)
    before = len(world.sim.truth.calls) + len(world.sim.truth.tasks)
    await until(lambda: line.is_answered or len(world.sim.truth.calls) + len(world.sim.truth.tasks) > before)
    return line


async def create(world: World, body: Any = None, **headers: str) -> Line:
    """Begin an asynchronous create on a connection of its own."""
    return Line(world, body or world.order(), path=CREATE_PATH, **{"X-DashScope-Async": "enable", **headers})


async def served(world: World, line: Line) -> httpx.Response:
    """Move the clock, and let every step do its part, until a call is answered."""
    for _ in range(30):
        world.sim.advance(1.1)
        if not len(world.res.calls):  # else something is on the wire, which the steps would wait for
            await world.drain()
        for _ in range(20):
            if line.is_answered:
                return await line.answer()
            await asyncio.sleep(0.005)
    return await line.answer()


async def fill(world: World, model: str = RELAYED) -> None:
    """Let there be no room for a model, for ever."""
    await limit_model(world.res, BEIJING, model, rps=100, running=1)
    await world.rows("UPDATE account_models SET paused_until = '2100-01-01'")


async def sync_task(world: World) -> dict[str, Any]:
    """The only row of a task."""
    return await world.row("SELECT * FROM tasks")


async def ledger(world: World) -> list[tuple[str, str, int]]:
    """The ledger: kind, unit, quantity."""
    rows = await world.rows("SELECT kind, unit, quantity FROM ledger_entries ORDER BY unit, id")
    return [(row["kind"], row["unit"], int(row["quantity"])) for row in rows]
