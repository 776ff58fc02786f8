"""What a relayed call costs beside a bare pass-through, and what a waited-for durable call holds, in interleaved runs.

Prints figures, asserts nothing. Both serving processes share one core in turn; the upstream is a stub that answers at
once, so that what is measured is ours. The bare one passes the same bytes through httpx on aiohttp and stores nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from rich.console import Console
from rich.table import Table

from tests.benchmarks.bench import Server, free_port, measure, prepare, start
from tests.databases import running_databases
from tests.world import ADMIN_TOKEN, SECRET_KEY

SYNC_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
MODEL, DURABLE_MODEL = "qwen-image-max", "wan2.6-image"
ROUNDS, CALLS = 5, 400
A_SECOND, PACED_CALLS = 200, 1_000
WAITING = 5_000
BODY_BYTES = 2_000
REGION = "cn-beijing"


def body(model: str) -> dict[str, Any]:
    """A call of two kilobytes."""
    content = [{"text": "a boat " * (BODY_BYTES // 7)}, {"image": "https://h.example/a.png"}]
    return {"model": model, "input": {"messages": [{"role": "user", "content": content}]}, "parameters": {"n": 1}}


class Caller:
    """Calls both ends, as a team's service would."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Server, bare: Server, key: str) -> None:
        self._session, self._gateway, self._bare = session, gateway, bare
        self._headers = {"Authorization": f"Bearer {key}"}

    async def relayed(self) -> None:
        await self._post(self._gateway.url)

    async def bare(self) -> None:
        await self._post(self._bare.url)

    async def durable(self) -> None:
        """A durable call that is never answered here."""
        url = self._gateway.url + SYNC_PATH
        async with self._session.post(url, json=body(DURABLE_MODEL), headers=self._headers) as answer:
            await answer.read()

    async def _post(self, url: str) -> None:
        async with self._session.post(url + SYNC_PATH, json=body(MODEL), headers=self._headers) as answer:
            text = await answer.text()
            if answer.status != 200 or "choices" not in text:
                raise RuntimeError(f"{answer.status}: {text[:200]}")


async def paced(call: Callable[[], Awaitable[None]]) -> list[float]:
    """Make calls at a steady pace; return how long each took, in milliseconds."""
    took: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1000)

    started = time.perf_counter()
    running = []
    for number in range(PACED_CALLS):
        await asyncio.sleep(max(0.0, started + number / A_SECOND - time.perf_counter()))
        running.append(asyncio.create_task(one()))
    await asyncio.gather(*running)
    return sorted(took)


async def wait_many(caller: Caller, gateway: Server, database_url: str) -> tuple[float, int]:
    """Let thousands of durable calls wait; return the kilobytes each holds, and the sessions in use meanwhile."""
    before = gateway.resident_mib()
    calls = []
    for _ in range(WAITING):
        calls.append(asyncio.create_task(caller.durable()))
        await asyncio.sleep(1 / A_SECOND)  # all at once would be refused: a full pool says so
    await asyncio.sleep(5)
    waiting = sum(not call.done() for call in calls)
    held = (gateway.resident_mib() - before) * 1024 / waiting
    connection = await asyncpg.connect(database_url)
    try:
        in_use = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state LIKE 'idle in transaction%'"
        )
        sessions = max([int(await connection.fetchval(in_use)) for _ in range(200)])
    finally:
        await connection.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    Console().print(f"{waiting} of {WAITING} durable calls wait at once")
    return held, sessions


def report(gateway: Server, bare: Server, *, took: dict[str, list[float]], held: float, busy: int) -> None:
    cpu = {name: statistics.median(values) for name, values in (gateway.milliseconds | bare.milliseconds).items()}
    half, most = PACED_CALLS // 2, int(PACED_CALLS * 0.99)
    table = Table("what", "Dashgate", "bare", "aim", title="Dashgate beside a bare pass-through")
    ratio = f"{cpu['relay'] / cpu['pass']:.1f} times"
    table.add_row("CPU ms a relay", f"{cpu['relay']:.2f} ({ratio})", f"{cpu['pass']:.2f}", "at most 6 times")
    for name, at, aim in (("p50", half, 4), ("p99", most, 15)):
        ours, theirs = took["relay"][at], took["pass"][at]
        added = f"{ours:.1f} (+{ours - theirs:.1f})"
        table.add_row(f"ms at {A_SECOND}/s, {name}", added, f"{theirs:.1f}", f"at most +{aim}")
    table.add_row(f"kB held by each of {WAITING} waits", f"{held:.0f}", "", "at most 60")
    table.add_row("sessions held by them", str(busy), "", "none held")
    Console().print(table)


async def bench(database_url: str, scratch: Path) -> None:
    environment = {
        "DASHGATE_DATABASE_URL": database_url,
        "DASHGATE_SECRET_KEY": SECRET_KEY,
        "DASHGATE_ADMIN_TOKEN": ADMIN_TOKEN,
        "DASHGATE_STATE_DIR": str(scratch),
        "DASHGATE_LOG_LEVEL": "info",
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        upstream_url = f"http://127.0.0.1:{free_port()}"
        bare_arguments = ["-m", "tests.benchmarks.bare_relay"]
        stub = await start([*bare_arguments, "upstream", upstream_url], upstream_url, {}, ready="/ready", pinned=False)
        started.append(stub.process)
        place = {"base_url": f"{upstream_url}/api/v1", "key": "sk-stub"}
        key = await prepare(environment, {"regions": {REGION: place}}, models=(MODEL, DURABLE_MODEL))
        gateway_port, bare_url = free_port(), f"http://127.0.0.1:{free_port()}"
        arguments = ["-m", "app.cli", "serve", "--port", str(gateway_port), "--surface", "teams"]
        gateway = await start(arguments, f"http://127.0.0.1:{gateway_port}", environment)
        started.append(gateway.process)
        bare = await start([*bare_arguments, "pass", bare_url, upstream_url], bare_url, {}, ready="/ready")
        started.append(bare.process)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
            caller = Caller(session, gateway, bare, key)
            await measure(gateway, "warm", 50, caller.relayed)
            took: dict[str, list[float]] = {}
            for _ in range(ROUNDS):
                await measure(gateway, "relay", CALLS, caller.relayed)
                await measure(bare, "pass", CALLS * 2, caller.bare)
            took["pass"] = await paced(caller.bare)
            took["relay"] = await paced(caller.relayed)
            held, busy = await wait_many(caller, gateway, database_url)
            report(gateway, bare, took=took, held=held, busy=busy)
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def main() -> None:
    with running_databases() as databases, tempfile.TemporaryDirectory() as scratch:
        url = databases.clone()
        try:
            asyncio.run(bench(url, Path(scratch)))
        finally:
            databases.drop(url)


if __name__ == "__main__":
    main()
