"""Goal: whoever loses an answer and asks again gets the same call, and nobody pays twice.
Method: real processes. The vendor's unmodified SDKs, which send a POST again by themselves, lose their connection after
our commit, by doors that hold the upstream's answer back and cut the client's line; and gateways and workers are killed
with SIGKILL while a call is on the wire. What the upstream made is counted by its own truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import dashscope
import httpx
import pytest
import pytest_asyncio
from dashscope.aigc.image_generation import ImageGeneration

from app.delivery.destinations import NewDestination
from app.simulator import BEIJING
from tests.databases import Databases
from tests.doors import CHUNK_BYTES, CommitDoor, Door, Line
from tests.processes import Fleet, Gateway, RemoteSimulator, furnish, running_fleet, until

# Whatever has to lapse lapses soon; only the sender's own margin of 15 s is no setting.
SHORT = {
    "DASHGATE_CALL_TIMEOUT_SECONDS": "2",
    "DASHGATE_RELAY_TIMEOUT_SECONDS": "2",
    "DASHGATE_DATABASE_POOL_SIZE": "5",
    "DASHGATE_LOG_LEVEL": "info",
}
LAPSE_SECONDS = 90.0
MODEL, RELAYED = "wan2.6-image", "z-image-turbo"
SYNC_PATH = "/api/v1/services/aigc/multimodal-generation/generation"
BOAT = "https://assets.example.com/boat.png"


class HeldDoor(Door):
    """A door that keeps back what the server says while it is held."""

    def __init__(self, *target: Any) -> None:
        super().__init__(*target)
        self._is_free = asyncio.Event()
        self._is_free.set()

    def hold(self) -> None:
        """Keep answers back from now on."""
        self._is_free.clear()

    def let_go(self) -> None:
        """Let answers pass."""
        self._is_free.set()

    async def _down(self, line: Line) -> None:
        while chunk := await line.server.read(CHUNK_BYTES):
            await self._is_free.wait()
            line.back.write(chunk)
            await line.back.drain()


def message(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": prompt}, {"image": BOAT}]}]


def legacy_create(base_url: str, key: str, prompt: str) -> Any:
    """Create a task with the older API; return its id."""
    made = ImageGeneration.async_call(MODEL, messages=message(prompt), n=1, api_key=key, base_address=base_url)
    return made.output["task_id"]


def legacy_call(base_url: str, key: str, prompt: str) -> Any:
    """Make a call with the older API; return its links."""
    made = ImageGeneration.call(MODEL, messages=message(prompt), n=1, api_key=key, base_address=base_url)
    return [item["image"] for choice in made.output["choices"] for item in choice["message"]["content"]]


def v2_call(base_url: str, key: str, prompt: str) -> Any:
    """Make a call with the newer client; return its links."""
    with dashscope.Client(api_key=key, base_url=base_url) as client:
        return client.images.generate(model=MODEL, prompt=prompt, image_urls=[BOAT], n=1).image_urls


def v2_create(base_url: str, key: str, prompt: str) -> Any:
    """Create a task with the newer client; return its id."""
    with dashscope.Client(api_key=key, base_url=base_url) as client:
        return client.images.jobs.create(model="wan2.2-t2i-plus", prompt=prompt, n=1).task_id


SDK_CALLS: dict[str, Callable[[str, str, str], Any]] = {
    "legacy create": legacy_create,
    "legacy call": legacy_call,
    "v2 create": v2_create,
    "v2 call": v2_call,
}


@dataclass
class House:
    """A gateway with its worker, a held door to the simulator, and a door for clients that can be cut."""

    fleet: Fleet
    sim: RemoteSimulator
    wire: HeldDoor
    front: Door
    gateway: Gateway
    key: str
    database_url: str
    ships: dict[str, Gateway] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.front.port}/api/v1"

    async def made(self, prompt: str) -> int:
        """How often the upstream took work with a prompt."""
        calls = (await self.sim._call("GET", "calls"))["calls"]
        return [work["prompt"] for work in [*await self.sim.tasks(), *calls]].count(prompt)

    def resends(self) -> int:
        """How many requests the gateway took for resends."""
        return [line.get("event") for line in self.gateway.process.lines()].count("task.resent")

    async def rows(self, tag: str) -> list[asyncpg.Record]:
        """The tasks with a tag."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetch("SELECT * FROM tasks WHERE tag = $1 ORDER BY created_at", tag)
        finally:
            await connection.close()

    async def ask(self, query: str, *values: Any) -> Any:
        """Ask the database for one value."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()

    async def post(self, gateway: Gateway, what: str, *, model: str = MODEL, **headers: str) -> httpx.Response:
        """Make a call of a model, whose prompt and tag say what it is about."""
        content = [{"text": what}] + ([{"image": BOAT}] if model == MODEL else [])
        body = {"model": model, "input": {"messages": [{"role": "user", "content": content}]}, "parameters": {}}
        sent = {"Authorization": f"Bearer {self.key}", "X-Dashgate-Tag": what, **headers}
        return await self.fleet.http.post(gateway.url + SYNC_PATH, json=body, headers=sent)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """A house on a database of its own."""
    folder, url = tmp_path_factory.mktemp("house"), await asyncio.to_thread(databases.clone)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, databases.drop, url)
        fleet = await stack.enter_async_context(running_fleet(folder, url, **SHORT))
        sim = await fleet.simulator()
        wire = await stack.enter_async_context(HeldDoor("127.0.0.1", sim.port))
        key = await furnish(fleet, replace(sim, port=wire.port), NewDestination(f"file://{folder / 'files'}"))
        await sim.tell("limits", creates_per_second=1_000, running_tasks=100)
        for model in (MODEL, RELAYED, "wan2.2-t2i-plus"):
            await fleet.command("account", "limit", BEIJING, model, "--rps", "100", "--running", "100")
        gateway, _ = await fleet.gateway(), await fleet.worker()
        front = await stack.enter_async_context(Door("127.0.0.1", int(gateway.url.rpartition(":")[2])))
        yield House(fleet, sim, wire, front, gateway, key, url)


# --- SDKs that send again by themselves ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", SDK_CALLS)
async def test_an_sdk_that_loses_its_connection_after_our_commit_gets_one_answer(house: House, what: str) -> None:
    before, resent = await house.ask("SELECT count(*) FROM tasks"), house.resends()
    house.wire.hold()
    calling = asyncio.ensure_future(asyncio.to_thread(SDK_CALLS[what], house.base_url, house.key, what))

    async def is_upstream() -> bool:
        return await house.made(what) == 1

    await until(is_upstream, "the upstream has it")
    house.front.shut()
    house.front.open()

    await until(lambda: house.resends() == resent + 1, "it was sent again, and is the same task")
    house.wire.let_go()
    answer = await calling
    assert answer
    assert await house.made(what) == 1
    assert await house.ask("SELECT count(*) FROM tasks") == before + 1
    if what.endswith("create"):
        assert answer == str(await house.ask("SELECT id FROM tasks ORDER BY created_at DESC LIMIT 1"))
    assert await house.ask("SELECT count(*) FROM tasks WHERE unanswered_at IS NOT NULL") == 0


# --- processes that die ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wreck:
    """What a process was busy with when it was killed, and what becomes of it."""

    name: str
    mode: str
    is_unknown: bool  # no list shows such a call: it ends so
    taken: int  # how often the upstream took it
    is_marked: bool = True  # the same request gets it


WRECKS = (
    Wreck("a-create-on-the-wire", "async", False, 1),
    Wreck("a-call-waited-for", "durable", False, 1),
    Wreck("a-relay-not-sent", "relay", True, 0),
    Wreck("a-relay-on-the-wire", "relay", True, 1),
    Wreck("a-worker-in-a-call", "async", True, 1, is_marked=False),
)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def wrecks(house: House) -> House:
    """The house, with its wrecks, once everything of theirs has lapsed."""
    await _sink_create(house)
    await _sink_waited(house)
    await _sink_unsent(house)
    await _sink_relay(house)
    await _sink_worker(house)
    await house.ask("UPDATE tasks SET waited_until = now() WHERE mode = 'durable' AND finished_at IS NULL")

    async def has_lapsed() -> bool:
        rescued = "SELECT count(*) = 0 FROM tasks WHERE state = 'submitting' OR waited_until IS NOT NULL"
        return bool(await house.ask(rescued))

    await until(has_lapsed, "everything lapses", seconds=LAPSE_SECONDS)
    return house


async def _lost(house: House, calling: asyncio.Future[httpx.Response], ship: Gateway) -> None:
    ship.process.kill()
    with pytest.raises(httpx.TransportError):
        await calling


async def _taken(house: House, what: str) -> None:
    async def taken() -> bool:
        return await house.made(what) == 1

    await until(taken, f"the upstream has {what}")


async def _sink_create(house: House) -> None:
    ship, what = await house.fleet.gateway(), WRECKS[0].name
    await house.sim.fail_next("create", "hang", processed=True)
    calling = asyncio.ensure_future(house.post(ship, what, **{"X-DashScope-Async": "enable"}))
    await _taken(house, what)
    await _lost(house, calling, ship)


async def _sink_waited(house: House) -> None:
    ship, what = await house.fleet.gateway(), WRECKS[1].name
    await house.sim.tell("durations", seconds=[3, 3], next_only=True)
    calling = asyncio.ensure_future(house.post(ship, what))

    async def is_waited_for() -> bool:
        return bool(await house.ask("SELECT count(*) FROM tasks WHERE tag = $1 AND state = 'pending'", what))

    await until(is_waited_for, "it is waited for")
    await _lost(house, calling, ship)


async def _sink_unsent(house: House) -> None:
    what = WRECKS[2].name
    async with CommitDoor(house.database_url) as door:
        ship = await house.fleet.gateway(DASHGATE_DATABASE_URL=door.url)
        door.arm("INSERT INTO tasks", "after", ship.process.kill)
        with pytest.raises(httpx.TransportError):
            await house.post(ship, what, model=RELAYED)
        await door.struck()


async def _sink_relay(house: House) -> None:
    ship, what = await house.fleet.gateway(DASHGATE_RELAY_TIMEOUT_SECONDS="5"), WRECKS[3].name
    await house.sim.fail_next("sync", "hang", processed=True)
    calling = asyncio.ensure_future(house.post(ship, what, model=RELAYED))
    await _taken(house, what)
    await _lost(house, calling, ship)


async def _sink_worker(house: House) -> None:
    """Kill the worker that makes a call for a task; the house then has another one."""
    what = WRECKS[4].name
    worker = next(process for process in house.fleet.started if process.name.startswith("worker"))
    await house.sim.fail_next("sync", "hang", processed=True)
    answer = await house.post(house.gateway, what, model=RELAYED, **{"X-DashScope-Async": "enable"})
    assert answer.json()["output"]["task_status"] == "PENDING"
    await _taken(house, what)
    worker.kill()
    await house.fleet.worker()


@pytest.mark.parametrize("wreck", WRECKS, ids=lambda wreck: wreck.name)
async def test_a_process_killed_in_the_middle_of_a_call_leaves_an_honest_row(wrecks: House, wreck: Wreck) -> None:
    (row,) = await wrecks.rows(wreck.name)
    assert (row["mode"], row["unanswered_at"] is not None) == (wreck.mode, wreck.is_marked)
    assert (row["code"] == "Dashgate.OutcomeUnknown") == wreck.is_unknown
    lines = "SELECT count(*) FROM ledger_entries WHERE task_id = $1 AND kind = 'uncertain'"
    assert await wrecks.ask(lines, row["id"]) == int(wreck.is_unknown)
    assert await wrecks.made(wreck.name) == wreck.taken


@pytest.mark.parametrize("wreck", [one for one in WRECKS if one.is_marked], ids=lambda wreck: wreck.name)
async def test_whoever_asks_again_gets_what_the_dead_process_left(wrecks: House, wreck: Wreck) -> None:
    (row,) = await wrecks.rows(wreck.name)
    headers = {"X-DashScope-Async": "enable"} if wreck.mode == "async" else {}
    model = RELAYED if wreck.mode == "relay" else MODEL
    answer = await wrecks.post(wrecks.gateway, wreck.name, model=model, **headers)
    assert answer.headers["X-Dashgate-Task-Id"] == str(row["id"])
    assert answer.status_code == (500 if wreck.is_unknown else 200)
    assert await wrecks.made(wreck.name) == wreck.taken
    assert len(await wrecks.rows(wreck.name)) == 1
