"""What tests of refused keys and accounts share: an upstream with several keys, and accounts that bear them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.routing.accounts import NewAccount, add_account
from app.simulator import BEIJING, SINGAPORE, SimulatorKey, SimulatorOptions, running_simulator
from app.simulator.journal import mask_key
from tests.world import World, open_world

MAIN, OTHER = "1000000000000001", "1000000000000002"
KEYS = (
    SimulatorKey("sk-first", BEIJING, MAIN),
    SimulatorKey("sk-second", BEIJING, MAIN),
    SimulatorKey("sk-third", BEIJING, MAIN),
    SimulatorKey("sk-other", BEIJING, OTHER),
    SimulatorKey("sk-far", SINGAPORE, MAIN),
)
UNKNOWN_KEY = {"status": 401, "code": "InvalidApiKey", "message": "Invalid API-key provided."}
NO_RIGHT = {"status": 403, "code": "Model.AccessDenied", "message": "Model access denied."}
NO_MONEY = {"status": 400, "code": "Arrearage", "message": "Access denied."}


@asynccontextmanager
async def several_keys(database_url: str, folder: Path, **options: Any) -> AsyncIterator[World]:
    """A gateway whose account in Beijing has the key `sk-first`, at an upstream that knows all of KEYS."""
    async with (
        running_simulator(SimulatorOptions(clock_scale=0, keys=KEYS)) as sim,
        open_world(sim, database_url, folder, **options) as world,
    ):
        sim.set_limits(task_calls_per_second=10_000, creates_per_second=1_000)
        yield world


async def add(world: World, name: str, *, key: str, region: str = BEIJING) -> None:
    """Give the gateway another account."""
    sim = world.sim
    new = NewAccount(name, region, sim.base_url(region), key, file_hosts=(sim.file_host,))
    await add_account(world.res, new)


def asked_with(world: World, *operations: str) -> list[str]:
    """The keys with which the upstream was asked to make something, in order."""
    shown = {mask_key(key.secret): key.secret for key in KEYS}
    wanted = operations or ("create", "sync")
    return [shown[entry.key] for entry in world.sim.truth.journal.read() if entry.operation in wanted]
