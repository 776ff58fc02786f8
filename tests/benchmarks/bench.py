"""`make bench`: what a create and a status read cost beside a bare FastAPI route, in one interleaved run.

Prints figures, asserts nothing. CPU is that of the serving process alone (user + system, /proc), which is pinned to
one core; the client and the simulator are other processes. Ratios travel between machines, milliseconds do not.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
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


async def start(arguments: list[str], url: str, environment: dict[str, str], *, ready: str = "/readyz") -> Server:
    """Start a server on one core and wait until it answers."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["taskset", "-c", str(CORE), sys.executable, *arguments],
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
