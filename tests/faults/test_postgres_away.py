"""Goal: without Postgres nothing is promised and nothing is sent; when it is back, everything goes on by itself.
Method: a gateway and a worker as processes, on a Postgres that is really stopped and started again, or behind a door
that is shut at the very commit that matters.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from app.delivery.destinations import NewDestination
from app.embedded import running_postgres
from tests.doors import CommitDoor, When
from tests.processes import Fleet, Gateway, RemoteSimulator, furnish, running_fleet, until


class OwnPostgres:
    """A server of this test's own, with data that outlives a stop."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._running = folder, ExitStack()

    def start(self) -> str:
        """Start it, again on the same data and address; return its URL."""
        return self._running.enter_context(running_postgres(self._folder, announce=lambda _: None)).url

    def stop(self) -> None:
        self._running.close()


@pytest_asyncio.fixture
async def postgres() -> AsyncIterator[OwnPostgres]:
    """A server in a directory that its user may enter; it keeps nothing elsewhere then."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = OwnPostgres(Path(folder) / "state")
        yield server
        await asyncio.to_thread(server.stop)


@dataclass
class House:
    """A furnished database with its simulator."""

    fleet: Fleet
    sim: RemoteSimulator
    key: str

    async def create(self, gateway: Gateway) -> str:
        answer = await gateway.create(self.key, "a paper boat")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["output"]["task_id"])

    async def ask(self, query: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.fleet.settings["DASHGATE_DATABASE_URL"])
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()


async def furnished(fleet: Fleet) -> House:
    sim = await fleet.simulator()
    return House(fleet, sim, await furnish(fleet, sim, NewDestination(f"file://{fleet.folder / 'files'}")))


async def test_creates_and_reads_are_503_while_postgres_is_away_and_both_come_back(
    postgres: OwnPostgres, tmp_path: Path
) -> None:
    url = await asyncio.to_thread(postgres.start)
    async with running_fleet(tmp_path, url) as fleet:
        await fleet.command("migrate")
        house = await furnished(fleet)
        worker, gateway = await fleet.worker(), await fleet.gateway()
        await house.sim.tell("durations", seconds=[2, 2])
        begun = await house.create(gateway)

        await asyncio.to_thread(postgres.stop)

        reading = asyncio.ensure_future(gateway.read(house.key, begun))
        for _ in range(10):
            refused = await gateway.create(house.key, "a paper boat")
            assert (refused.status_code, refused.json()["code"]) == (503, "ServiceUnavailable")
            assert refused.headers["retry-after"].isdigit()
        assert not reading.done()  # it is held back, for SDKs that ask again at once
        assert (await reading).status_code == 503
        assert (await fleet.http.get(f"{gateway.url}/readyz")).status_code == 503
        assert (await fleet.http.get(f"{gateway.url}/livez")).status_code == 200
        assert len(await house.sim.journal("create")) == 1
        await worker.said("loop.failed")

        assert await asyncio.to_thread(postgres.start) == url

        assert await gateway.ended(house.key, begun) == "SUCCEEDED"
        later = await house.create(gateway)
        assert await gateway.ended(house.key, later) == "SUCCEEDED"
        assert worker.is_alive()
        assert [task["prompt"] for task in await house.sim.tasks()] == ["a paper boat"] * 2
        assert len(await house.ask("SELECT 1 FROM ledger_entries")) == 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_receipt_whose_database_was_away_for_a_moment_is_recorded_afterwards(
    own_database: str, tmp_path: Path, when: When
) -> None:
    async with running_fleet(tmp_path, own_database) as fleet, CommitDoor(own_database) as door:
        house = await furnished(fleet)
        gateway = await fleet.gateway(DASHGATE_DATABASE_URL=door.url)
        door.arm("SET state = 'pending'", when, door.shut)

        creating = asyncio.ensure_future(house.create(gateway))
        await door.struck()
        (made,) = await house.sim.tasks()
        assert not creating.done()
        door.open()

        task_id = await creating
        (row,) = await house.ask("SELECT id, state, upstream_task_id FROM tasks")
        assert (str(row["id"]), row["state"], row["upstream_task_id"]) == (task_id, "pending", made["id"])
        assert await house.ask("SELECT 1 FROM upstream_orphans") == []
        await fleet.worker()
        assert await gateway.ended(house.key, task_id) == "SUCCEEDED"


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_outcome_whose_database_was_away_for_a_moment_is_recorded_once(
    own_database: str, tmp_path: Path, when: When
) -> None:
    async with running_fleet(tmp_path, own_database) as fleet, CommitDoor(own_database) as door:
        house = await furnished(fleet)
        gateway = await fleet.gateway()
        await fleet.worker(DASHGATE_DATABASE_URL=door.url)
        door.arm("INSERT INTO ledger_entries", when, door.shut)

        task_id = await house.create(gateway)
        await door.struck()
        door.open()

        assert await gateway.ended(house.key, task_id) == "SUCCEEDED"
        assert len(await house.ask("SELECT 1 FROM ledger_entries")) == 1
        assert len(await house.ask("SELECT 1 FROM webhook_events")) == 1


async def test_a_create_whose_commit_is_in_doubt_is_a_503_and_is_withdrawn(own_database: str, tmp_path: Path) -> None:
    async with running_fleet(tmp_path, own_database) as fleet, CommitDoor(own_database) as door:
        house = await furnished(fleet)
        gateway = await fleet.gateway(DASHGATE_DATABASE_URL=door.url)
        door.arm("INSERT INTO tasks", "after", door.shut)

        refused = await gateway.create(house.key, "a paper boat")

        assert refused.status_code == 503
        door.open()
        await until(lambda: house.ask(WITHDRAWN), "the row is withdrawn")
        assert await house.sim.journal("create") == []
        assert await house.ask("SELECT 1 FROM ledger_entries UNION ALL SELECT 1 FROM webhook_events") == []


WITHDRAWN = """
    SELECT 1 FROM tasks WHERE state = 'failed' AND code = 'Dashgate.NotAccepted' AND refused_inline
    AND NOT EXISTS (SELECT 1 FROM work WHERE kind = 'submit')
"""
