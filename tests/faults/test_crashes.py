"""Goal: whatever line a process dies at, no accepted task is lost, sent twice or billed wrongly.
Method: real processes, killed with SIGKILL: at named commits, by a door to Postgres that knows which statement runs in
which transaction; in the middle of outside calls, by a simulator that hangs and a door to S3 that stops half-way; and
at random moments of a seeded storm. Then books are kept by nobody's word: own SQL against the simulator's truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import pytest_asyncio

from app.delivery.destinations import NewDestination
from app.simulator import BEIJING
from tests.databases import Databases
from tests.doors import CommitDoor, PutDoor, SlowDoor, When
from tests.faults.books import TAMPERINGS, UNKNOWN, Books, good_books, open_books
from tests.processes import Fleet, Gateway, Process, RemoteSimulator, furnish, running_fleet, until
from tests.rclone import RunningS3, running_s3

# Whatever has to lapse lapses soon; only the sender's own margin of 15 s is no setting.
SHORT = {
    "DASHGATE_CALL_TIMEOUT_SECONDS": "2",
    "DASHGATE_DOUBTFUL_DEADLINE_SECONDS": "1",
    "DASHGATE_ACCOUNT_LEASE_SECONDS": "2",
    "DASHGATE_DELIVERY_LEASE_SECONDS": "3",
    "DASHGATE_LOG_LEVEL": "info",
}
RESCUE_SECONDS = 120.0  # call, margin, rescue, and the chore that ends doubts: 30 s, or 90 if a chore was killed, too
STORM_SECONDS = 15.0
STORM_TASKS = 30
STORM_CLIENTS = 4
STORM_PAUSE_SECONDS = (0.3, 0.7)
SLOW_SECONDS = 0.3


# --- the books --------------------------------------------------------------------------------------------------------


def test_good_books_bring_no_complaint() -> None:
    assert good_books().complaints() == []


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_books_that_were_tampered_with_bring_a_complaint(tampering: str) -> None:
    books = good_books()
    TAMPERINGS[tampering](books)
    assert books.complaints() != []


# --- the yard: one gateway whose processes are killed -----------------------------------------------------------------


@dataclass
class Yard:
    """A running gateway with its simulator and storage, and what clients were told."""

    fleet: Fleet
    sim: RemoteSimulator
    wire: SlowDoor  # between gateway and simulator
    gateway: Gateway
    key: str
    folder: Path  # where objects lie
    database_url: str
    accepted: dict[str, str] = field(default_factory=dict)
    workers: list[Process] = field(default_factory=list)

    async def create(self, *, gateway: Gateway | None = None, nonce: str | None = None) -> str:
        """Create a task of two images; return its id, or raise what a client whose gateway dies gets to see."""
        nonce = nonce or f"nonce-{os.urandom(6).hex()}"
        answer = await (gateway or self.gateway).create(self.key, nonce, n=2, **{"X-Dashgate-Tag": nonce})
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["output"]["task_id"]
        self.accepted[nonce] = task_id
        return task_id

    async def books(self) -> Books:
        return await open_books(self.database_url, self.sim, self.folder, self.accepted)

    async def settled(self) -> Books:
        """Wait until every task has ended and nothing is left to do; then the books must be in order."""
        with contextlib.suppress(AssertionError):  # then the books say what has not ended
            await until(lambda: self.ask(IS_SETTLED), "everything ends", seconds=RESCUE_SECONDS)
        books = await self.books()
        assert books.complaints() == []
        return books

    async def ask(self, query: str, *values: Any) -> Any:
        """Ask the database for one value."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()


IS_SETTLED = """
    SELECT NOT EXISTS (SELECT 1 FROM tasks WHERE finished_at IS NULL)
       AND NOT EXISTS (SELECT 1 FROM work WHERE kind IN ('submit', 'deliver'))
"""


@contextlib.asynccontextmanager
async def open_yard(
    databases: Databases, folder: Path, destination: NewDestination, files: Path
) -> AsyncIterator[Yard]:
    """Open a yard on a database of its own, without a worker."""
    url = await asyncio.to_thread(databases.clone)
    try:
        async with running_fleet(folder, url, **SHORT) as fleet:
            sim = await fleet.simulator()
            async with SlowDoor("127.0.0.1", sim.port) as wire:
                key = await furnish(fleet, replace(sim, port=wire.port), destination)
                yield Yard(fleet, sim, wire, await fleet.gateway(), key, files, url)
    finally:
        await asyncio.to_thread(databases.drop, url)


# --- at sea: gateways killed at named points, then a storm ------------------------------------------------------------


@dataclass(frozen=True)
class Wreck:
    """A gateway killed at a point, and what becomes of the create it was busy with."""

    point: str
    ending: tuple[str, str | None] | None  # state and code; None: there is no row
    submissions: int
    words: str = ""  # killed at the commit of a statement with these words
    when: When = "before"
    hangs: bool | None = None  # killed while the create hangs, having taken effect or not

    @property
    def nonce(self) -> str:
        return self.point.replace(" ", "-")


WRECKS = (
    Wreck("accept is not committed", None, 0, "INSERT INTO tasks", "before"),
    Wreck("accept is committed and nothing sent", ("failed", UNKNOWN), 0, "INSERT INTO tasks", "after"),
    Wreck("the upstream has not taken it", ("failed", UNKNOWN), 0, hangs=False),
    Wreck("the upstream has taken it", ("failed", UNKNOWN), 1, hangs=True),
    Wreck("the receipt is not committed", ("failed", UNKNOWN), 1, "SET state = 'pending'", "before"),
    Wreck("the receipt is committed", ("succeeded", None), 1, "SET state = 'pending'", "after"),
)
DISPATCH = Wreck("dispatch has marked and not sent", ("failed", UNKNOWN), 0, "attempt = tasks.attempt + 1", "after")
LATE = "a-refusal-held-back"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sea(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Yard]:
    """A yard with the wrecks in it, each found by its nonce, and a worker that takes them up."""
    folder = tmp_path_factory.mktemp("sea")
    destination = NewDestination(f"file://{folder / 'files'}")
    async with (
        open_yard(databases, folder, destination, folder / "files") as sea,
        contextlib.AsyncExitStack() as stack,
    ):
        doors = [await stack.enter_async_context(CommitDoor(sea.database_url)) for _ in (*WRECKS, DISPATCH, LATE)]
        ships = await asyncio.gather(*(sea.fleet.gateway(DASHGATE_DATABASE_URL=door.url) for door in doors))
        for wreck, ship, door in zip(WRECKS, ships, doors, strict=False):
            await _sink(sea, wreck, ship, door)
        await _sink_dispatcher(sea, doors[-2])
        sea.workers.append(await sea.fleet.worker())
        holding = asyncio.ensure_future(_hold_back(sea, ships[-1], doors[-1]))
        yield sea
        await holding


async def _sink(sea: Yard, wreck: Wreck, ship: Gateway, door: CommitDoor) -> None:
    """Kill a gateway at its point; its client never hears of the task."""
    hung = await sea.sim.count("create", "hang")
    if wreck.words:
        door.arm(wreck.words, wreck.when, ship.process.kill)
    else:
        await sea.sim.fail_next("create", "hang", processed=wreck.hangs)
    creating = asyncio.ensure_future(sea.create(gateway=ship, nonce=wreck.nonce))
    if not wreck.words:
        await sea.sim.hit("create", "hang", times=hung + 1)
        ship.process.kill()
    with pytest.raises(httpx.TransportError):
        await creating


async def _sink_dispatcher(sea: Yard, door: CommitDoor) -> None:
    """Kill a worker that has marked a queued task, which its client was told to be PENDING."""
    worker = await sea.fleet.worker(DASHGATE_DATABASE_URL=door.url)
    await until(lambda: sea.ask(CHORES_REST), "no chore dies with it, whose lease would last a minute")
    door.arm(DISPATCH.words, DISPATCH.when, worker.kill)
    await sea.sim.fail_next("create", "429")
    await sea.create(nonce=DISPATCH.nonce)
    await door.struck()


CHORES_REST = "SELECT count(*) > 0 AND count(lease_id) = 0 FROM work WHERE kind = 'chore'"


async def _hold_back(sea: Yard, ship: Gateway, door: CommitDoor) -> None:
    """Keep a gateway that knows of a 429 from its database, until rescue has called its task doubtful."""
    door.arm("SET lease_id = NULL", "before", door.shut)
    await sea.sim.fail_next("create", "429")
    await sea.create(gateway=ship, nonce=LATE)
    await until(lambda: sea.ask(WAS_DOUBTED, LATE), "rescue takes it", seconds=RESCUE_SECONDS)
    door.open()


WAS_DOUBTED = """
    SELECT count(*) > 0 FROM task_events JOIN tasks ON tasks.id = task_id
    WHERE tag = $1 AND task_events.state = 'doubtful'
"""


@dataclass
class Storm:
    """Two gateways and two workers, one of which is killed and started again every half second, while teams create."""

    sea: Yard
    seed: int
    gateways: list[Gateway]
    kills: int = 0

    async def rage(self) -> None:
        """Kill at seeded moments, until the time is up and enough was created."""
        print(f"the storm's seed is {self.seed}")  # noqa: T201 -- pytest shows it when a test fails
        dice = random.Random(self.seed)
        ends = time.monotonic() + STORM_SECONDS
        creating = [asyncio.ensure_future(self._create(random.Random(dice.random()))) for _ in range(STORM_CLIENTS)]
        while time.monotonic() < ends or len(self.sea.accepted) < STORM_TASKS:
            await asyncio.sleep(dice.uniform(*STORM_PAUSE_SECONDS))
            self._strike(dice)
        for task in creating:
            task.cancel()
        await asyncio.gather(*creating, return_exceptions=True)

    def _strike(self, dice: random.Random) -> None:
        """Kill one, mostly one that has come to work, and start its successor."""
        place, fleet, workers = dice.randrange(2), self.sea.fleet, self.sea.workers
        if dice.random() < 0.5:
            if self._is_up(workers[place], "worker.started", dice):
                workers[place].kill()
                workers[place] = fleet.start("worker")
                self.kills += 1
            return
        gateway = self.gateways[place]
        if self._is_up(gateway.process, "serve.started", dice):
            gateway.process.kill()
            port = gateway.url.rpartition(":")[2]
            self.gateways[place] = replace(gateway, process=fleet.start("serve", "--surface", "teams", "--port", port))
            self.kills += 1

    def _is_up(self, process: Process, event: str, dice: random.Random) -> bool:
        return process.has_said(event) or dice.random() < 0.2

    async def _create(self, dice: random.Random) -> None:
        """Create at random moments; a gateway that is not there, or not yet, is no reason to stop."""
        while True:
            await asyncio.sleep(dice.uniform(0, 0.4))
            with contextlib.suppress(httpx.TransportError):
                await self.sea.create(gateway=dice.choice(self.gateways))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def storm(sea: Yard) -> Storm:
    """A storm that has raged; its gateways and workers live on and clear up."""
    await sea.sim.tell("durations", seconds=[0.1, 1.5])
    # The wrecks hold all the usual room until rescue has them; and a slow wire makes bursts, which bring 429s.
    await sea.fleet.command("account", "limit", BEIJING, "wan2.6-image", "--rps", "20", "--running", "30")
    await sea.sim.tell("limits", creates_per_second=100, running_tasks=30)
    sea.wire.most_seconds = SLOW_SECONDS
    seed = int(os.environ.get("STORM_SEED") or random.randrange(1_000_000))
    sea.workers.append(await sea.fleet.worker())
    storm = Storm(sea, seed, [sea.gateway, await sea.fleet.gateway()])
    await storm.rage()
    sea.wire.most_seconds = 0
    return storm


async def test_in_a_storm_every_create_that_was_answered_is_a_row(storm: Storm) -> None:
    books = await storm.sea.books()
    rows = {str(task["id"]): task["tag"] for task in books.tasks}
    assert storm.kills >= 10
    assert [task_id for nonce, task_id in storm.sea.accepted.items() if rows.get(task_id) != nonce] == []


# --- on land: workers killed one after another, each at a named point -------------------------------------------------


@dataclass
class Land:
    """A yard with one worker at a time, behind doors to Postgres and to S3."""

    yard: Yard
    commits: CommitDoor
    puts: PutDoor
    worker: Process

    async def replace_worker(self) -> None:
        """Start the successor of a worker that was killed."""
        assert not self.worker.is_alive()
        self.worker = await self.yard.fleet.worker(DASHGATE_DATABASE_URL=self.commits.url)

    async def ends_well(self, task_id: str) -> None:
        """Demand that a task succeeds with a new worker, and that the books are in order."""
        await self.replace_worker()
        assert await self.yard.gateway.ended(self.yard.key, task_id) == "SUCCEEDED"
        await self.yard.settled()


@pytest.fixture(scope="module")
def s3() -> Iterator[RunningS3]:
    with running_s3() as s3:
        yield s3


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def land(databases: Databases, s3: RunningS3, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Land]:
    """A yard that stores in S3."""
    async with PutDoor(s3.host, s3.port) as puts:
        destination = NewDestination(
            f"s3://{s3.bucket}",
            endpoint=f"http://127.0.0.1:{puts.port}",
            access_key_id=s3.access_key_id,
            secret_access_key=s3.secret_access_key,
        )
        async with (
            open_yard(databases, tmp_path_factory.mktemp("land"), destination, s3.folder) as yard,
            CommitDoor(yard.database_url) as commits,
        ):
            yield Land(yard, commits, puts, await yard.fleet.worker(DASHGATE_DATABASE_URL=commits.url))


@pytest.mark.parametrize("operation", ["query", "file"])
async def test_a_worker_killed_while_the_upstream_hangs_is_replaced(land: Land, operation: str) -> None:
    await land.yard.sim.fail_next(operation, "hang")
    task_id = await land.yard.create()
    await land.yard.sim.hit(operation, "hang")
    land.worker.kill()
    await land.ends_well(task_id)


async def test_a_worker_killed_in_the_middle_of_a_put_leaves_no_half_object(land: Land) -> None:
    land.puts.arm(land.worker.kill)
    task_id = await land.yard.create()
    await land.puts.struck()
    await land.ends_well(task_id)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fact", ["INSERT INTO ledger_entries", "INSERT INTO webhook_events"])
async def test_a_worker_killed_at_the_commit_of_a_fact_records_it_once(land: Land, fact: str, when: When) -> None:
    land.commits.arm(fact, when, land.worker.kill)
    task_id = await land.yard.create()
    await land.commits.struck()
    await land.ends_well(task_id)


async def test_a_worker_killed_before_its_mark_has_sent_nothing_and_its_successor_sends(land: Land) -> None:
    await land.yard.sim.fail_next("create", "429")
    land.commits.arm("attempt = tasks.attempt + 1", "before", land.worker.kill)
    task_id = await land.yard.create()
    await land.commits.struck()
    await land.ends_well(task_id)


# --- what is found at last --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wreck", [*WRECKS, DISPATCH], ids=lambda wreck: wreck.point)
async def test_a_process_killed_while_it_submits_leaves_an_honest_end(sea: Yard, wreck: Wreck) -> None:
    books = await sea.settled()
    (row,) = [task for task in books.tasks if task["tag"] == wreck.nonce] or [None]
    assert (row and (row["state"], row["code"])) == wreck.ending
    assert [task["prompt"] for task in books.upstream].count(wreck.nonce) == wreck.submissions


async def test_a_refusal_that_comes_after_the_rescue_does_not_strand_its_task(sea: Yard) -> None:
    books = await sea.settled()
    (row,) = [task for task in books.tasks if task["tag"] == LATE]
    assert (row["state"], row["code"]) in (("succeeded", None), ("failed", UNKNOWN))


async def test_after_the_storm_the_books_are_in_order(storm: Storm) -> None:
    books = await storm.sea.settled()
    endings = Counter(task["code"] or task["state"] for task in books.tasks)
    assert endings["succeeded"] >= STORM_TASKS / 3, endings
    assert endings.keys() <= {"succeeded", UNKNOWN}
