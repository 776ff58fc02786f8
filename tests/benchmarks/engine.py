"""`make bench-engine`: how early the engine sees tasks finish, beside the limit line, with real processes.

Prints figures, asserts nothing. Gateway, worker and simulator are processes of their own on one machine; delays are
the gateway's `made_at` less the simulator's end of the task, calls are counted where the simulator received them.

    python -m tests.benchmarks.engine [--tasks 1000] [--only burst|drain|default] [--page-size 100]
    python -m tests.benchmarks.engine --only seeded [--tasks 100000] [--seconds 600]

* burst: that many tasks at once on one account with raised limits, ending at four fifths of the pace; pages of 100,
  then of 10.
* drain: as many ended while no worker ran; then one worker reads them. It is killed on the way, and another stopped.
* seeded: on request, as many ended tasks written straight into both sides, and one worker that reads for so long.
* default: an account as it comes, 5 creates a second and 5 running, tasks of 90 s, a long queue; beside the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table

from app.resources import open_resources
from app.routing.accounts import NewAccount, add_account, limit_model
from app.simulator import BEIJING
from app.teams.teams import create_team, issue_key
from tests.benchmarks.limits import CALLS_A_SECOND, Delays, Made, asking, knowing, listing, quantile
from tests.databases import running_databases
from tests.processes import REPOSITORY, Fleet, Process, running_fleet
from tests.world import settings_for_tests

MODEL = "wan2.6-image"
IN_FLIGHT = 16
UTILIZATION = 0.8
SHORTEST_SECONDS = 10.0
DEFAULT_SECONDS, DEFAULT_TASKS, DEFAULT_SLOTS, DEFAULT_TASK_SECONDS = 200.0, 40, 5, 90.0
DRAIN_TASKS = 700
DRAIN_LEASE_SECONDS = 4
DRAIN_ALONE_SECONDS = 40.0
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")

console = Console()


@dataclass
class Truth:
    """What the simulator made and received, and when the gateway knew."""

    tasks: dict[str, dict[str, Any]]
    calls: list[dict[str, Any]]
    seen: dict[str, float]  # by upstream task: when its outcome was recorded
    now: float

    @property
    def call_times(self) -> list[float]:
        """When a call under /tasks was received, by the simulator's clock."""
        return sorted(call["at"] for call in self.calls)

    def delays(self) -> list[float]:
        """Return how long each end went unseen."""
        return [at - self.tasks[task]["ended_at"] for task, at in self.seen.items()]

    def made(self) -> list[Made]:
        """Return the tasks as the limit line takes them."""
        ended = [task for task in self.tasks.values() if task["ended_at"] is not None]
        return [Made(task["made_at"], task["ended_at"]) for task in ended]


@dataclass
class Stage:
    """The processes of one scenario."""

    fleet: Fleet
    database_url: str
    folder: Path
    upstream: subprocess.Popen[bytes]
    where: dict[str, Any]
    key: str = ""

    async def count_open(self) -> int:
        """Return how many tasks have not ended for the gateway."""
        rows = await self.rows("SELECT count(*) AS count FROM tasks WHERE finished_at IS NULL")
        return int(rows[0]["count"])

    async def rows(self, query: str, *args: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(query, *args))
        finally:
            await connection.close()

    async def create(self, count: int) -> None:
        """Create tasks through a gateway process, as teams do."""
        gateway = await self.fleet.gateway(DASHGATE_LOG_LEVEL="warning")
        pending = iter(range(count))

        async def client() -> None:
            for number in pending:
                answer = await gateway.create(self.key, f"boat {number}")
                if answer.status_code != 200:
                    raise RuntimeError(f"create answered {answer.status_code}: {answer.text}")

        await asyncio.gather(*(client() for _ in range(IN_FLIGHT)))

    async def until_ended(self, *, seconds: float) -> None:
        """Wait until every task has ended."""
        give_up = time.monotonic() + seconds
        while await self.count_open():
            if time.monotonic() > give_up:
                raise RuntimeError(f"{await self.count_open()} tasks never ended:\n{self.fleet.tails()}")
            await asyncio.sleep(1)

    async def truth(self) -> Truth:
        """End the simulator and read what it leaves."""
        self.upstream.terminate()
        await asyncio.to_thread(self.upstream.wait)
        told = json.loads((self.folder / "truth.json").read_text())
        rows = await self.rows("SELECT upstream_task_id, made_at FROM tasks WHERE made_at IS NOT NULL")
        seen = {row["upstream_task_id"]: row["made_at"].timestamp() for row in rows}
        (self.folder / "seen.json").write_text(json.dumps(seen))
        return Truth({task["id"]: task for task in told["tasks"]}, told["calls"], seen, told["now"])


@contextlib.asynccontextmanager
async def stage(database_url: str, folder: Path, *, raised: bool, **told: Any) -> AsyncIterator[Stage]:
    """Start a simulator, and give the database an account and a team."""
    folder.mkdir(parents=True)
    arguments = json.dumps({"folder": str(folder), "raised": raised, **told})
    upstream = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.upstream", arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
    )
    try:
        assert upstream.stdout is not None
        where = json.loads(await asyncio.to_thread(upstream.stdout.readline))
        async with running_fleet(folder, database_url, DASHGATE_LOG_LEVEL="info") as fleet:
            there = Stage(fleet, database_url, folder, upstream, where)
            there.key = await furnish(there, raised=raised)
            yield there
    finally:
        upstream.terminate()
        await asyncio.to_thread(upstream.wait)


async def furnish(there: Stage, *, raised: bool) -> str:
    """Make an account and a team without a destination: nothing is measured here but the engine."""
    place = there.where["regions"][BEIJING]
    async with open_resources(settings_for_tests(there.database_url, there.folder)) as res:
        account = NewAccount(BEIJING, BEIJING, place["base_url"], place["key"], file_hosts=(there.where["file_host"],))
        await add_account(res, account)
        if raised:
            await limit_model(res, BEIJING, MODEL, rps=100_000, running=10_000_000)
        await create_team(res, "alpha", regions=[BEIJING])
        return (await issue_key(res, "alpha"))[1]


async def burst(database_url: str, folder: Path, *, count: int, page_size: int) -> Table:
    """Measure many tasks that end one after another, while a worker runs."""
    span = count / (UTILIZATION * CALLS_A_SECOND)
    seconds = (SHORTEST_SECONDS, SHORTEST_SECONDS + span)
    async with stage(database_url, folder, raised=True, page_size=page_size, seconds=seconds) as there:
        worker = await there.fleet.worker()
        await there.create(count)
        await there.until_ended(seconds=3 * span + 120)
        used = usage(worker)
        truth = await there.truth()
    made = truth.made()
    lines = {
        "listing, the limit line": await asyncio.to_thread(listing, made, page_size=page_size),
        "knowing every end": knowing(made),
        "asking one by one": asking(made),
    }
    title = f"burst of {count}, pages of {page_size}, ends at {UTILIZATION:.0%} of the pace"
    return compare(title, truth, lines=lines, used=used)


def compare(title: str, truth: Truth, *, lines: dict[str, Delays], used: str) -> Table:
    """Set the measured delays beside the lines."""
    delays = truth.delays()
    p50, p99 = quantile(delays, 0.5), quantile(delays, 0.99)
    table = Table("", "p50 s", "p99 s", "calls each", "factor p50", "factor p99", title=title)
    calls_each = len(truth.calls) / len(delays)
    table.add_row(f"measured ({len(delays)})", f"{p50:.2f}", f"{p99:.2f}", f"{calls_each:.2f}")
    for name, line in lines.items():
        factors = (f"{p50 / line.p50:.2f}", f"{p99 / line.p99:.2f}")
        table.add_row(name, f"{line.p50:.2f}", f"{line.p99:.2f}", f"{line.calls_each:.2f}", *factors)
    table.caption = (
        f"most calls in any second {most_in_a_second(truth.call_times)} (at most 20); {kinds(truth)}; {used}"
    )
    return table


async def drain(database_url: str, folder: Path, *, count: int, page_size: int) -> Table:
    """Measure what is read while everything has ended: the pace that is used, and the calls for each."""
    lease = {"DASHGATE_ACCOUNT_LEASE_SECONDS": str(DRAIN_LEASE_SECONDS)}
    async with stage(database_url, folder, raised=True, page_size=page_size, seconds=(0.1, 0.5)) as there:
        await there.create(count)
        first = await there.fleet.worker(**lease)
        await asyncio.sleep(min(DRAIN_ALONE_SECONDS, 0.7 * count / CALLS_A_SECOND))
        killed_at = time.time()
        first.kill()
        second = await there.fleet.worker(**lease)
        await asyncio.sleep(DRAIN_LEASE_SECONDS + 5)
        second.signal(signal.SIGTERM)
        await there.fleet.worker(**lease)
        await there.until_ended(seconds=count / CALLS_A_SECOND + 60)
        truth = await there.truth()
    times = [at for at in truth.call_times if at < killed_at]
    read = sum(at < killed_at for at in truth.seen.values())
    seconds = times[-1] - times[0]
    table = Table("", "measured", "aim", title=f"drain of {count} ended tasks, pages of {page_size}")
    table.add_row("pace used while ended tasks wait", f"{(len(times) - 1) / (CALLS_A_SECOND * seconds):.1%}", ">= 97 %")
    table.add_row("calls per finished task", f"{len(times) / read:.3f}", "<= 1.10")
    table.add_row("the same, with both take-overs", f"{len(truth.calls) / len(truth.seen):.3f}", "")
    most = most_in_a_second(truth.call_times)
    table.add_row("most calls in any second, through a kill and a stop", str(most), "<= 20")
    gaps = sorted((b - a for a, b in pairwise(truth.call_times)), reverse=True)[:2]
    table.add_row("pauses of the two take-overs", ", ".join(f"{gap:.1f} s" for gap in gaps), "")
    return table


SEED = """
    INSERT INTO tasks (id, team_id, api_key_id, mode, upstream_call, state, attempt, model, path, region, account_id,
                       main_account, most, request_id, upstream_task_id, queue_deadline_at, sent_at, submitted_at)
    SELECT gen_random_uuid(), teams.id, api_keys.id, 'async', 'async', 'running', 1, $1,
           'aigc/image-generation/generation', accounts.region, accounts.id, accounts.main_account, 1, 'seeded', seed,
           now() + interval '1 day', now(), now()
    FROM unnest($2::text[]) AS seed, teams, api_keys, accounts
"""


async def seeded(database_url: str, folder: Path, *, count: int, seconds: float) -> Table:
    """Measure a worker that finds very many ended tasks."""
    told = {"page_size": 100, "seconds": (0.1, 0.5), "seeded": count}
    async with stage(database_url, folder, raised=True, **told) as there:
        ids = json.loads((folder / "seeded.json").read_text())
        await there.rows(SEED, MODEL, ids)
        await there.rows("ANALYZE tasks")
        worker = await there.fleet.worker()
        await asyncio.sleep(seconds)
        used = usage(worker)
        truth = await there.truth()
    times = truth.call_times
    lasted = times[-1] - times[0]
    table = Table("", "measured", "aim", title=f"{count} ended tasks, {lasted:.0f} s of reading")
    table.add_row("pace used", f"{(len(times) - 1) / (CALLS_A_SECOND * lasted):.1%}", ">= 97 %")
    table.add_row("calls per finished task", f"{len(times) / len(truth.seen):.3f}", "<= 1.10")
    table.add_row("most calls in any second", str(most_in_a_second(times)), "<= 20")
    table.caption = f"{used} (aims: one core, 350 MiB); {kinds(truth)}"
    return table


async def default(database_url: str, folder: Path) -> Table:
    """Measure an account as it comes, with more to do than it can."""
    seconds = (DEFAULT_TASK_SECONDS, DEFAULT_TASK_SECONDS)
    async with stage(database_url, folder, raised=False, page_size=100, seconds=seconds) as there:
        worker = await there.fleet.worker()
        await there.create(DEFAULT_TASKS)
        await asyncio.sleep(DEFAULT_SECONDS)
        used = usage(worker)
        truth = await there.truth()
    begun = sorted(task["began_at"] for task in truth.tasks.values() if task["began_at"] is not None)
    since, until = begun[DEFAULT_SLOTS - 1], truth.now
    busy = sum(
        min(task["ended_at"] or until, until) - max(task["began_at"], since)
        for task in truth.tasks.values()
        if task["began_at"] is not None and (task["ended_at"] or until) > since
    )
    delays = truth.delays()
    table = Table("", "measured", "aim", title=f"default account, {DEFAULT_SECONDS:.0f} s")
    table.add_row("slots used", f"{busy / (DEFAULT_SLOTS * (until - since)):.1%}", ">= 95 %")
    table.add_row(f"finish seen p99 (of {len(delays)})", f"{quantile(delays, 0.99):.2f} s", "< 2 s")
    table.add_row("task calls a second", f"{len(truth.calls) / (until - begun[0]):.1f}", "")
    table.add_row("most in any second", str(most_in_a_second(truth.call_times)), "<= 20")
    table.caption = used
    return table


def most_in_a_second(times: Sequence[float]) -> int:
    """Return the highest count in any half-open second.

    >>> most_in_a_second([0.0, 0.5, 0.99, 1.0, 1.2])
    4
    """
    return max((bisect_left(times, at + 1.0) - index for index, at in enumerate(times)), default=0)


def kinds(truth: Truth) -> str:
    """Say what the calls were."""
    counts = {kind: sum(call["operation"] == kind for call in truth.calls) for kind in ("query", "list", "cancel")}
    refused = sum(call["status"] == 429 for call in truth.calls)
    told = [f"{count} {kind}" for kind, count in counts.items() if count]
    return ", ".join([*told, f"{refused} refused"] if refused else told)


def usage(process: Process) -> str:
    """Say what a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / TICKS_A_SECOND
    cpu = timedelta(seconds=(int(fields[11]) + int(fields[12])) / TICKS_A_SECOND)
    return f"worker {cpu.total_seconds() / running:.0%} of a core, at most {peak:.0f} MiB"


async def run(databases: Any, scratch: Path, options: argparse.Namespace) -> None:
    """Run the scenarios, the long one beside the others."""

    def wanted(name: str) -> bool:
        return options.only in (None, name)

    async def show(name: str, scenario: Any, **told: Any) -> None:
        url = await asyncio.to_thread(databases.clone)
        console.print(await scenario(url, scratch / name, **told))

    async def in_turn() -> None:
        sizes = [options.page_size] if options.page_size else [100, 10]
        for size in sizes if wanted("burst") else []:
            await show(f"burst-{size}", burst, count=options.tasks or 1_000, page_size=size)
        if options.only == "seeded":
            await show("seeded", seeded, count=options.tasks or 100_000, seconds=options.seconds)
        if wanted("drain"):
            await show("drain", drain, count=options.tasks or DRAIN_TASKS, page_size=sizes[0])

    async with asyncio.TaskGroup() as group:
        if wanted("default"):
            group.create_task(show("default", default))
        group.create_task(in_turn())


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--only", choices=["burst", "drain", "default", "seeded"])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--page-size", type=int)
    parser.add_argument("--keep", type=Path, help="leave logs and the simulator's truth in this folder")
    options = parser.parse_args()
    with running_databases() as databases, tempfile.TemporaryDirectory() as scratch:
        asyncio.run(run(databases, options.keep or Path(scratch), options))


if __name__ == "__main__":
    main()
