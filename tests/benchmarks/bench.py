"""`make bench`: what a create and a status read cost beside a bare FastAPI route, in one interleaved run.

Prints figures, asserts nothing. CPU is that of the serving process alone (user + system, /proc), which is pinned to
one core; the client and the simulator are other processes. Ratios travel between machines, milliseconds do not.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from rich.console import Console
from rich.table import Table

from tests.databases import running_databases
from tests.world import ADMIN_TOKEN, CREATE_PATH, SECRET_KEY

ROUNDS = 5
CREATES, READS = 400, 2_000
IN_FLIGHT = 8
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
CORE = min(os.sched_getaffinity(0))
BODY = {
    "model": "wan2.6-image",
    "input": {"messages": [{"role": "user", "content": [{"text": "a boat"}, {"image": "https://h.example/a.png"}]}]},
    "parameters": {"n": 1},
}


@dataclass
class Server:
    """A serving process under measurement."""

    process: subprocess.Popen[bytes]
    url: str
    ready_seconds: float
    milliseconds: dict[str, list[float]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


async def measure(server: Server, name: str, count: int, call: Callable[[], Awaitable[None]]) -> None:
    """Make `count` calls, some at once, and note the serving process's CPU per call."""
    before = server.cpu_seconds()
    pending = iter(range(count))

    async def client() -> None:
        for _ in pending:
            await call()

    await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))
    used = (server.cpu_seconds() - before) / count * 1000
    server.milliseconds.setdefault(name, []).append(used)


async def start(
    arguments: list[str], url: str, environment: dict[str, str], *, ready: str = "/readyz", pinned: bool = True
) -> Server:
    """Start a server, on one core where it is measured, and wait until it answers."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*(("taskset", "-c", str(CORE)) if pinned else ()), sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    async with aiohttp.ClientSession() as session:
        while process.poll() is None:
            try:
                async with session.get(url + ready) as answer:
                    if answer.status == 200:
                        return Server(process, url, time.monotonic() - began)
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.01)
    raise RuntimeError(f"the server ended with {process.returncode}")


async def prepare(
    environment: dict[str, str], simulator: dict[str, Any], *, models: Sequence[str] = (str(BODY["model"]),)
) -> str:
    """Make account, team and key with limits that nothing here meets; return the API key."""

    def dashgate(*arguments: str) -> Any:
        command = [sys.executable, "-m", "app.cli", *arguments, "--json"]
        done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, check=True)
        return json.loads(done.stdout)

    region, place = next(iter(simulator["regions"].items()))
    account = ("--region", region, "--base-url", place["base_url"], "--api-key", place["key"])
    await asyncio.to_thread(dashgate, "account", "add", "bench", *account)
    limits = ("--rps", "100000", "--running", "10000000")
    for model in models:
        await asyncio.to_thread(dashgate, "account", "limit", "bench", model, *limits)
    await asyncio.to_thread(dashgate, "team", "create", "bench", "--region", region)
    key = await asyncio.to_thread(dashgate, "key", "create", "bench")
    return str(key["api_key"])


async def commits(database_url: str) -> int:
    """Return the next transaction id: it grows by one with each transaction that writes, on the whole server."""
    connection = await asyncpg.connect(database_url)
    try:
        return int(await connection.fetchval("SELECT pg_current_xact_id()::text"))
    finally:
        await connection.close()


class Client:
    """Calls both servers, as a team's service would."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Server, bare: Server, key: str) -> None:
        self._session, self._gateway, self._bare = session, gateway, bare
        self._headers = {"Authorization": f"Bearer {key}", "X-DashScope-Async": "enable"}
        self.task_ids: list[str] = []
        self._read_next = 0

    async def create(self) -> None:
        async with self._session.post(self._gateway.url + CREATE_PATH, json=BODY, headers=self._headers) as answer:
            fields = await answer.json()
            if answer.status != 200:
                raise RuntimeError(f"create answered {answer.status}: {fields}")
            self.task_ids.append(fields["output"]["task_id"])

    async def read_fresh(self) -> None:
        """Read a task that nobody read in the last second."""
        self._read_next += 1
        await self._read(self.task_ids[self._read_next % len(self.task_ids)])

    async def read_same(self) -> None:
        """Read one task again and again, as impatient clients do."""
        await self._read(self.task_ids[0])

    async def bare_post(self) -> None:
        async with self._session.post(self._bare.url + "/create", json=BODY, headers=self._headers) as answer:
            await answer.read()

    async def bare_get(self) -> None:
        async with self._session.get(self._bare.url + "/task", headers=self._headers) as answer:
            await answer.read()

    async def _read(self, task_id: str) -> None:
        url = f"{self._gateway.url}/api/v1/tasks/{task_id}"
        async with self._session.get(url, headers=self._headers) as answer:
            if answer.status != 200:
                raise RuntimeError(f"read answered {answer.status}")
            await answer.read()


async def run(client: Client, gateway: Server, bare: Server, database_url: str) -> float:
    """Interleave the rounds; return commits per create."""
    await measure(gateway, "warm", 50, client.create)
    committed = 0
    for _ in range(ROUNDS):
        before = await commits(database_url)
        await measure(gateway, "create", CREATES, client.create)
        committed += await commits(database_url) - before - 1  # one of them is our own look
        await measure(bare, "post", CREATES * 4, client.bare_post)
        await measure(gateway, "read fresh", READS, client.read_fresh)
        await measure(bare, "get", READS, client.bare_get)
        await measure(gateway, "read same", READS, client.read_same)
    return committed / (ROUNDS * CREATES)


def report(gateway: Server, bare: Server, *, commits_per_create: float, idle_mib: float) -> None:
    """Print the figures with what they are measured against."""
    cost = {name: statistics.median(values) for name, values in (gateway.milliseconds | bare.milliseconds).items()}
    table = Table("what", "CPU ms", "bare route", "ratio", "aim", title="Dashgate beside a bare FastAPI route")
    for name, beside, aim in (
        ("create", "post", "at most 3 ms"),
        ("read fresh", "get", "at most 3 times"),
        ("read same", "get", "at most 3 times"),
    ):
        ratio = cost[name] / cost[beside]
        table.add_row(name, f"{cost[name]:.2f}", f"{cost[beside]:.3f}", f"{ratio:.1f}", aim)
    table.add_row("commits per create", f"{commits_per_create:.2f}", "", "", "2")
    table.add_row("ready after", f"{gateway.ready_seconds:.1f} s", f"{bare.ready_seconds:.1f} s", "", "under 3 s")
    table.add_row("resident when idle", f"{idle_mib:.0f} MiB", f"{bare.resident_mib():.0f} MiB", "", "at most 120 MiB")
    Console().print(table)


async def bench(database_url: str, scratch: Path) -> None:
    environment = {
        "DASHGATE_DATABASE_URL": database_url,
        "DASHGATE_SECRET_KEY": SECRET_KEY,
        "DASHGATE_ADMIN_TOKEN": ADMIN_TOKEN,
        "DASHGATE_STATE_DIR": str(scratch),
        "DASHGATE_LOG_LEVEL": "info",
    }
    simulator = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "simulator", "--port", "0", "--control-port", "0", "--calm", "--json"],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
    )
    started = [simulator]
    try:
        assert simulator.stdout is not None
        described = json.loads(await asyncio.to_thread(simulator.stdout.readline))
        key = await prepare(environment, described)
        async with aiohttp.ClientSession() as session:
            limits = {"creates_per_second": 100_000, "running_tasks": 10_000_000, "task_calls_per_second": 100_000}
            await session.post(f"{described['control_url']}/limits", json=limits)
            await session.post(f"{described['control_url']}/durations", json={"seconds": [86_000, 86_000]})
            gateway_port, bare_port = free_port(), free_port()
            arguments = ["-m", "app.cli", "serve", "--port", str(gateway_port), "--surface", "teams"]
            gateway = await start(arguments, f"http://127.0.0.1:{gateway_port}", environment)
            started.append(gateway.process)
            bare = await start(
                ["-m", "tests.benchmarks.bare", str(bare_port)], f"http://127.0.0.1:{bare_port}", {}, ready="/task"
            )
            started.append(bare.process)
            idle_mib = gateway.resident_mib()
            client = Client(session, gateway, bare, key)
            commits_per_create = await run(client, gateway, bare, database_url)
            report(gateway, bare, commits_per_create=commits_per_create, idle_mib=idle_mib)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def free_port() -> int:

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    with running_databases() as databases, tempfile.TemporaryDirectory() as scratch:
        url = databases.clone()
        try:
            asyncio.run(bench(url, Path(scratch)))
        finally:
            databases.drop(url)


if __name__ == "__main__":
    main()
