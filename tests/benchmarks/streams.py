"""What a streamed call costs beside a bare pass-through, in interleaved rounds: CPU a stream, and an event's delay.

Prints figures, asserts nothing. Both serving processes share one core in turn, with the same streams open at once; the
upstream is a stub that writes into every event when it left, and the client is the other end of that clock.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from tests.benchmarks.bare_stream import EVENTS, EVERY_SECONDS
from tests.benchmarks.bench import Server, free_port, prepare, start
from tests.databases import running_databases
from tests.world import ADMIN_TOKEN, SECRET_KEY

PATH = "/api/v1/services/aigc/multimodal-generation/generation"
MODEL, REGION = "wan2.6-image", "cn-beijing"
ROUNDS, STREAMS = 3, 100
APART_SECONDS = 0.02  # between the beginnings of two streams
LEFT = re.compile(rb"left at ([0-9.]+) ")
BODY = {
    "model": MODEL,
    "input": {"messages": [{"role": "user", "content": [{"text": "a guide to folding a boat"}]}]},
    "parameters": {"enable_interleave": True, "max_images": 3, "stream": True},
}


@dataclass
class Figures:
    """What was seen of one server: CPU milliseconds a stream in each round, and every event's milliseconds."""

    cpu: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)

    def delay(self, share: float) -> float:
        return sorted(self.delays)[int(len(self.delays) * share)]


class Reader:
    """Reads streams of either server, as a team's service would."""

    def __init__(self, session: aiohttp.ClientSession, key: str) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}", "X-DashScope-SSE": "enable"}

    async def round(self, server: Server, figures: Figures) -> None:
        """Read so many streams at once, and note what they cost."""
        before = server.cpu_seconds()
        reading = []
        for _ in range(STREAMS):
            reading.append(asyncio.create_task(self._read(server, figures)))
            await asyncio.sleep(APART_SECONDS)
        await asyncio.gather(*reading)
        figures.cpu.append((server.cpu_seconds() - before) / STREAMS * 1000)

    async def _read(self, server: Server, figures: Figures) -> None:
        seen = 0
        async with self._session.post(server.url + PATH, json=BODY, headers=self._headers) as answer:
            async for chunk in answer.content.iter_any():
                now = time.monotonic()
                for left in LEFT.findall(chunk):
                    figures.delays.append((now - float(left)) * 1000)
                    seen += 1
        if seen != EVENTS:
            raise RuntimeError(f"{answer.status}: {seen} events of {EVENTS}")


def report(ours: Figures, bare: Figures) -> None:
    title = f"{STREAMS} streams at once, {EVENTS} events each, {1 / EVERY_SECONDS:.0f} a second"
    table = Table("what", "Dashgate", "bare", "aim", title=title)
    cpu, least = statistics.median(ours.cpu), statistics.median(bare.cpu)
    table.add_row("CPU ms a stream", f"{cpu:.1f} ({cpu / least:.2f} times)", f"{least:.1f}", "at most 2 times")
    for name, share, aim in (("p50", 0.5, ""), ("p99", 0.99, "at most +10")):
        mine, theirs = ours.delay(share), bare.delay(share)
        table.add_row(f"ms an event, {name}", f"{mine:.2f} (+{mine - theirs:.2f})", f"{theirs:.2f}", aim)
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
        upstream_url, bare_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        module = ["-m", "tests.benchmarks.bare_stream"]
        stub = await start([*module, "upstream", upstream_url], upstream_url, {}, ready="/ready", pinned=False)
        started.append(stub.process)
        place = {"base_url": f"{upstream_url}/api/v1", "key": "sk-stub"}
        key = await prepare(environment, {"regions": {REGION: place}}, models=(MODEL,))
        gateway_port = free_port()
        arguments = ["-m", "app.cli", "serve", "--port", str(gateway_port), "--surface", "teams"]
        gateway = await start(arguments, f"http://127.0.0.1:{gateway_port}", environment)
        started.append(gateway.process)
        bare = await start([*module, "pass", bare_url, upstream_url], bare_url, {}, ready="/ready")
        started.append(bare.process)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
            reader, ours, theirs = Reader(session, key), Figures(), Figures()
            await asyncio.gather(reader.round(gateway, Figures()), reader.round(bare, Figures()))  # warm
            for _ in range(ROUNDS):
                await reader.round(gateway, ours)
                await reader.round(bare, theirs)
        report(ours, theirs)
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
