"""Goal: Redis makes us quicker and nothing else: absent, killed, gone for a while or hanging, every task still travels.
Method: a gateway and a worker as processes, a Redis of the test's own, and doors in front of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from app.delivery.destinations import NewDestination
from app.embedded import ValkeyServer, running_valkey
from tests.databases import STATE_DIR
from tests.doors import Door, SlowDoor
from tests.processes import Fleet, Gateway, RemoteSimulator, furnish, running_fleet, until

WAKES = "dashgate:wake:*"
HANGING_SECONDS = 3_600.0


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    """A Redis that may be killed."""
    with running_valkey(STATE_DIR, announce=lambda _: None) as server:
        yield server


@dataclass
class House:
    """A simulator and a team on a database; gateway and worker are started with the Redis of the test."""

    fleet: Fleet
    sim: RemoteSimulator
    key: str

    async def start(self, redis_url: str) -> Gateway:
        await self.fleet.worker(DASHGATE_REDIS_URL=redis_url)
        return await self.fleet.gateway(DASHGATE_REDIS_URL=redis_url)

    async def sees_a_task_through(self, gateway: Gateway) -> None:
        """Demand that a task is accepted, can be read, and succeeds."""
        answer = await gateway.create(self.key, "a paper boat")
        assert answer.status_code == 200, answer.text
        task_id = answer.json()["output"]["task_id"]
        assert (await gateway.read(self.key, task_id)).status_code == 200
        assert await gateway.ended(self.key, task_id) == "SUCCEEDED"


@pytest_asyncio.fixture
async def house(own_database: str, tmp_path: Path) -> AsyncIterator[House]:
    async with running_fleet(tmp_path, own_database) as fleet:
        sim = await fleet.simulator()
        yield House(fleet, sim, await furnish(fleet, sim, NewDestination(f"file://{tmp_path / 'files'}")))


async def listeners(redis: Redis) -> int:
    """Count the workers that listen for wake-ups."""
    return int((await redis.pubsub_numsub("dashgate:wake:submit"))[0][1])


async def test_tasks_travel_where_redis_is_configured_and_absent(house: House, tmp_path: Path) -> None:
    gateway = await house.start(f"unix://{tmp_path / 'nobody.sock'}")
    await house.sees_a_task_through(gateway)


async def test_tasks_travel_when_redis_is_killed_in_the_middle(house: House, valkey: ValkeyServer) -> None:
    gateway = await house.start(valkey.url)
    await house.sees_a_task_through(gateway)
    begun = (await gateway.create(house.key, "begun before")).json()["output"]["task_id"]

    os.kill(valkey.pid, signal.SIGKILL)

    assert await gateway.ended(house.key, begun) == "SUCCEEDED"
    await house.sees_a_task_through(gateway)
    assert all(process.is_alive() for process in house.fleet.started)


async def test_a_create_wakes_the_worker_of_another_process(house: House, valkey: ValkeyServer) -> None:
    gateway = await house.start(valkey.url)
    async with Redis.from_url(valkey.url) as redis, redis.pubsub(ignore_subscribe_messages=True) as channel:
        await until(lambda: listeners(redis), "the worker listens")
        await channel.psubscribe(WAKES)
        await gateway.create(house.key, "a paper boat")
        heard = await until(lambda: channel.get_message(timeout=0.1), "the gateway says what may be due")
    assert heard is not None
    assert heard["channel"] == b"dashgate:wake:account"


async def test_wake_ups_come_back_when_redis_does(house: House, valkey: ValkeyServer) -> None:
    async with Door(str(valkey.socket_path)) as door, Redis.from_url(valkey.url) as redis:
        gateway = await house.start(f"redis://127.0.0.1:{door.port}")
        await until(lambda: listeners(redis), "the worker listens")

        door.shut()
        await house.sees_a_task_through(gateway)
        assert await listeners(redis) == 0

        door.open()
        await until(lambda: listeners(redis), "the worker listens again")
        await house.sees_a_task_through(gateway)


async def test_a_redis_that_hangs_holds_nothing_up(house: House, valkey: ValkeyServer) -> None:
    async with SlowDoor(str(valkey.socket_path)) as door:
        gateway = await house.start(f"redis://127.0.0.1:{door.port}")
        await house.sees_a_task_through(gateway)
        door.most_seconds = HANGING_SECONDS
        await house.sees_a_task_through(gateway)
