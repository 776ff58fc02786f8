"""What all tests share: a database per test run and worker, an embedded Redis, the simulator, and a whole gateway."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from app.lib.logs import set_up_logs
from app.simulator import Simulator, SimulatorOptions, running_simulator
from tests.databases import CLEAN, Databases, run_sql, running_databases, running_redis
from tests.world import World, open_world

set_up_logs("error")


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """A Postgres server with a migrated template, for this worker."""
    with running_databases() as databases:
        yield databases


@pytest.fixture(scope="session")
def _shared_database(databases: Databases) -> Iterator[str]:
    url = databases.clone()
    yield url
    databases.drop(url)


@pytest_asyncio.fixture
async def database_url(_shared_database: str) -> str:
    """An empty migrated database, shared by the tests of this worker one after another."""
    await run_sql(_shared_database, CLEAN)
    return _shared_database


@pytest.fixture
def own_database(databases: Databases) -> Iterator[str]:
    """A migrated database of this test's own, for processes that outlive a statement."""
    url = databases.clone()
    yield url
    databases.drop(url)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis."""
    with running_redis() as url:
        yield url


@pytest_asyncio.fixture(scope="session")
async def _still_simulator() -> AsyncIterator[Simulator]:
    async with running_simulator(SimulatorOptions(clock_scale=0)) as sim:
        yield sim


@pytest.fixture
def still_sim(_still_simulator: Simulator) -> Simulator:
    """The simulator, empty, with a clock that stands still and limits that no test meets by accident."""
    _still_simulator.reset()
    _still_simulator.set_limits(task_calls_per_second=10_000, creates_per_second=1_000)
    return _still_simulator


@pytest_asyncio.fixture
async def world(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A whole gateway with one account in Beijing and teams alpha, beta and gamma."""
    async with open_world(still_sim, database_url, tmp_path) as world:
        yield world
