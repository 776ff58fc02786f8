"""A whole gateway in one process for tests: real Postgres, real HTTP to the simulator, and one clock that tests move.

The gateway's clock is the simulator's: it stands still until `advance`. `drain` runs every step until all are idle.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from app.delivery.deliver import deliver_due
from app.delivery.destinations import NewDestination, set_destination
from app.delivery.inputs import fill_inputs
from app.lib.clock import Clock
from app.main import create_app
from app.resources import Resources, open_resources
from app.routing.accounts import NewAccount, add_account
from app.settings import Settings
from app.simulator import BEIJING, Simulator
from app.tasks.chores import chore_due, ensure_chores
from app.tasks.dispatch import dispatch_due
from app.tasks.poll import Watches, poll_due
from app.tasks.rescue import rescue_due
from app.teams.teams import create_team, issue_key

SECRET_KEY = "a secret key for tests, 32 characters or more"
ADMIN_TOKEN = "an-admin-token-for-tests"
CREATE_PATH = "/api/v1/services/aigc/image-generation/generation"
ROUNDS_MOST = 50
SETTLE_SECONDS = 10


class SimulatorTime(Clock):
    """The gateway's clock in tests: the simulator's."""

    def __init__(self, sim: Simulator) -> None:
        self._sim = sim

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._sim.truth.clock.now(), UTC)

    def for_sql(self) -> datetime | None:
        return self.now()

    def monotonic(self) -> float:
        return self._sim.truth.clock.now()


@dataclass
class World:
    """Three teams: alpha has everything, beta must see none of it, gamma has no destination."""

    res: Resources
    sim: Simulator
    database_url: str
    folder: Path
    http: httpx.AsyncClient
    operators: httpx.AsyncClient
    keys: dict[str, str] = field(default_factory=dict)
    watches: Watches = field(default_factory=Watches)

    def headers(self, team: str = "alpha", **extra: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[team]}", **extra}

    def order(self, prompt: str = "a paper boat", **parameters: Any) -> dict[str, Any]:
        """Make the body of a create with one input picture and one result unless told otherwise."""
        content = [{"text": prompt}, {"image": "https://assets.example.com/cup.png"}]
        return {
            "model": "wan2.6-image",
            "input": {"messages": [{"role": "user", "content": content}]},
            "parameters": {"n": 1, **parameters},
        }

    async def post(self, body: Any, team: str = "alpha", **headers: str) -> httpx.Response:
        sent = {**self.headers(team), "X-DashScope-Async": "enable", **headers}
        return await self.http.post(CREATE_PATH, json=body, headers=sent)

    async def create(self, prompt: str = "a paper boat", team: str = "alpha", **parameters: Any) -> str:
        """Create a task that must be accepted; return its id."""
        answer = await self.post(self.order(prompt, **parameters), team)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["output"]["task_id"])

    async def read(self, task_id: str, team: str = "alpha") -> dict[str, Any]:
        """Read a task as its team does; a second later than before, so that no cache answers."""
        self.res.signals._statuses.clear()
        answer = await self.http.get(f"/api/v1/tasks/{task_id}", headers=self.headers(team))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def status(self, task_id: str, team: str = "alpha") -> str:
        return str((await self.read(task_id, team))["output"]["task_status"])

    async def links(self, task_id: str, team: str = "alpha") -> list[str]:
        choices = (await self.read(task_id, team))["output"]["choices"]
        content = [item for choice in choices for item in choice["message"]["content"]]
        return [item["image"] for item in content if "image" in item]

    async def drain(self) -> int:
        """Run every step until all are idle; return how many rounds it took."""
        for round_number in range(ROUNDS_MOST):
            worked = [
                await rescue_due(self.res),
                await self.dispatch(),
                await poll_due(self.res, watches=self.watches),
                await deliver_due(self.res),
                await chore_due(self.res),
            ]
            if not any(worked):
                return round_number
        raise AssertionError("the steps never became idle")

    async def dispatch(self, limit: int = 20) -> int:
        """Send what is queued, and wait until each call has recorded its end."""
        sent = await dispatch_due(self.res, limit=limit)
        await self.res.calls.drain(SETTLE_SECONDS)
        return sent

    async def advance(self, seconds: float) -> None:
        """Move the one clock, then let every step do what became due."""
        self.sim.advance(seconds)
        await self.drain()

    async def finish(self, task_id: str, team: str = "alpha") -> str:
        """Advance second by second until a task has ended; return its status."""
        for _ in range(60):
            await self.advance(1.1)
            if (status := await self.status(task_id, team)) not in ("PENDING", "RUNNING"):
                return status
        raise AssertionError("the task never ended")

    async def rows(self, query: str, *args: Any) -> list[dict[str, Any]]:
        """Ask the database itself."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *args)]
        finally:
            await connection.close()

    async def row(self, query: str, *args: Any) -> dict[str, Any]:
        rows = await self.rows(query, *args)
        assert len(rows) == 1, rows
        return rows[0]

    async def events(self, task_id: str) -> list[str]:
        """Return the states a task moved through, in order."""
        rows = await self.rows("SELECT state FROM task_events WHERE task_id = $1::uuid ORDER BY at, attempt", task_id)
        return [row["state"] for row in rows]


def settings_for_tests(database_url: str, folder: Path, **changes: Any) -> Settings:
    """Return settings that ask nothing of the environment."""
    values = {
        "database_url": database_url,
        "database_pool_size": 5,
        "redis_url": None,
        "secret_key": SECRET_KEY,
        "admin_token": ADMIN_TOKEN,
        "public_url": "http://gateway",
        "state_dir": folder,
        "poll_calls_per_second": 1000,
        "call_timeout_seconds": 2,
        "inline_wait_seconds": 5,
        "log_level": "error",
    }
    return Settings(**{**values, **changes})


@contextlib.asynccontextmanager
async def open_world(
    sim: Simulator, database_url: str, folder: Path, *, regions: Sequence[str] = (BEIJING,), **changes: Any
) -> AsyncIterator[World]:
    """Open a gateway on an empty migrated database, with an account per region and the three teams."""
    settings = settings_for_tests(database_url, folder, **changes)
    async with (
        open_resources(settings, clock=SimulatorTime(sim), fill_inputs=fill_inputs) as res,
        _client(create_app("teams", res)) as http,
        _client(create_app("operators", res), Authorization=f"Bearer {ADMIN_TOKEN}") as operators,
    ):
        world = World(res, sim, database_url, folder, http, operators)
        for region in regions:
            await _add_account(world, region)
        for slug in ("alpha", "beta", "gamma"):
            await create_team(res, slug, regions=list(regions) or [BEIJING])
            _, world.keys[slug] = await issue_key(res, slug)
        for slug in ("alpha", "beta"):
            await set_destination(res, slug, NewDestination(url=f"file://{folder / slug}"))
        await ensure_chores(res)
        yield world
        await res.calls.drain(5)


async def _add_account(world: World, region: str) -> None:
    sim = world.sim
    account = NewAccount(
        name=region,
        region=region,
        base_url=sim.base_url(region),
        api_key=sim.key(region),
        file_hosts=(sim.file_host,),
    )
    await add_account(world.res, account)


def _client(app: Any, **headers: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers, timeout=30)
