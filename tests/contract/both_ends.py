"""The two ends of the contract: DashScope itself, played by a simulator, and the gateway in front of another one.

A case is played at both, by one of the SDK's generations in a process of its own or by a function over plain HTTP,
each time by a caller that nobody knew before; `Played` is what it found there and what it was billed, made comparable
by sameness.py. The gateway is the whole one: it listens, its worker runs, its Postgres is real.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from difflib import unified_diff
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port

from app.delivery.destinations import NewDestination, set_destination
from app.delivery.inputs import fill_inputs
from app.main import serve
from app.resources import Resources, open_resources
from app.routing.accounts import NewAccount, add_account, limit_model
from app.simulator import BEIJING, SINGAPORE, Limits, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from app.simulator.catalogue import MODELS
from app.simulator.tasks import Picture
from app.teams.teams import create_team, issue_key
from app.worker import run_worker
from tests.contract import sdk_cases, sdk_v2_cases
from tests.contract.sameness import links_in, plain
from tests.databases import Databases
from tests.processes import until
from tests.world import settings_for_tests

HERE = Path(__file__).parent
SDK1 = HERE.parents[1] / ".venv-sdk1" / "bin" / "python"
# Which cases each generation of the SDK plays, and with which interpreter.
GENERATIONS = {"1.x": (SDK1, "sdk_cases"), "2.x": (sys.executable, "sdk_cases"), "v2": (sys.executable, "sdk_v2_cases")}
MOST_CALLERS = 1_000
WORK_SECONDS = (0.1, 0.1)
PLENTY = Limits(*[10_000] * 5)
QUESTIONS_AT_ONCE = 20
CASE_SECONDS = 30.0
LONGEST_LINE_BYTES = 16 * 1024 * 1024
UNMADE = "<bytes that were never made>"
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)

Bill = dict[str, Decimal]


@dataclass(frozen=True)
class Caller:
    """Somebody who calls an end for the first time."""

    key: str
    billed: Callable[[], Awaitable[Bill]]


class End(Protocol):
    """One end: a base URL, and the simulator that does the work there."""

    sim: Simulator
    base_url: str

    async def new_caller(self) -> Caller:
        """Return somebody with a key of his own, who has neither tasks nor a bill."""
        ...


Question = Callable[[End, Caller], Awaitable[Any]]


@dataclass
class Straight:
    """DashScope itself. A caller is a main account."""

    sim: Simulator
    base_url: str
    _keys: Iterator[SimulatorKey]

    async def new_caller(self) -> Caller:
        key = next(self._keys)

        async def billed() -> Bill:
            works = [*self.sim.truth.tasks, *self.sim.truth.calls]
            return _summed(item for work in works if work.key == key for item in work.units.items())

        return Caller(key.secret, billed)


@dataclass
class Gateway:
    """The gateway. A caller is a team."""

    sim: Simulator
    base_url: str
    res: Resources
    http: httpx.AsyncClient
    folder: Path
    _teams: int = 0

    async def new_caller(self) -> Caller:
        self._teams += 1
        slug = f"team-{self._teams}"
        await create_team(self.res, slug, regions=[BEIJING, SINGAPORE])
        await set_destination(self.res, slug, NewDestination(f"file://{self.folder / slug}"))
        _, key = await issue_key(self.res, slug)

        async def billed() -> Bill:
            url = self.base_url.replace("/api/v1", "/v1/usage")
            answer = await self.http.get(url, headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200, answer.text
            return _summed((line["unit"], Decimal(line["quantity"])) for line in answer.json()["lines"])

        return Caller(key, billed)


def _summed(items: Any) -> Bill:
    bill: Bill = {}
    for unit, quantity in items:
        bill[unit] = bill.get(unit, Decimal(0)) + quantity
    return bill


@dataclass(frozen=True)
class Played:
    """What a caller found at an end, and what it cost him."""

    found: Any
    billed: Bill


def assert_same(straight: Any, gateway: Any) -> None:
    """Check that both ends gave the same; what differs is shown line by line."""
    there, here = (
        json.dumps(asdict(one), indent=1, default=str, ensure_ascii=False, sort_keys=True)
        for one in (straight, gateway)
    )
    assert UNMADE not in there, "DashScope itself led nowhere"
    names = {"fromfile": "DashScope", "tofile": "the gateway", "lineterm": "", "n": 8}
    assert here == there, "\n".join(unified_diff(there.splitlines(), here.splitlines(), **names))


class Program:
    """A running sdk_program.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def play(self, case: str, key: str, *, folder: Path) -> Any:
        """Play a case of its own; return what the SDK returned."""
        number = len(self._waiting)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        line = json.dumps({"number": number, "case": case, "key": key, "folder": str(folder)})
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        try:
            async with asyncio.timeout(CASE_SECONDS):
                return await self._waiting[number]
        except TimeoutError:
            return {"raised": "nothing, and nothing was returned either"}

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._reading
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            self._waiting[answer["number"]].set_result(answer["answer"])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(AssertionError("the SDK's process has ended"))


@dataclass
class BothEnds:
    """Both ends, and the programs that call them."""

    straight: Straight
    abroad: Straight  # in Singapore: for models that are nowhere else
    gateway: Gateway
    http: httpx.AsyncClient
    folder: Path
    stack: AsyncExitStack
    _programs: dict[tuple[str, str], asyncio.Task[Program]] = field(default_factory=dict)
    _asked: dict[tuple[str, str], asyncio.Task[tuple[Played, Played]]] = field(default_factory=dict)
    _drawing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def sims(self) -> tuple[Simulator, Simulator]:
        """The simulators of both ends: a stage is set in both."""
        return self.straight.sim, self.gateway.sim

    async def play(self, generation: str, case: str) -> tuple[Played, Played]:
        """Play one case of the SDK's at both ends at the same time."""
        return await self.ask(self._playing(generation, case))

    async def calm(self, generation: str, case: str) -> tuple[Played, Played]:
        """Return how one of the calm cases went."""
        cases = calm_cases(generation)
        return await self.ask_once(generation, case, {name: self._playing(generation, name) for name in cases})

    async def ask(self, question: Question, *, abroad: bool = False) -> tuple[Played, Played]:
        """Ask both ends the same, each as a new caller."""
        ends = self.abroad if abroad else self.straight, self.gateway
        straight, gateway = await asyncio.gather(*(self._ask(end, question) for end in ends))
        return straight, gateway

    async def ask_the_gateway(self, question: Question) -> Played:
        """Ask what DashScope refuses."""
        return await self._ask(self.gateway, question)

    async def ask_once(self, group: str, name: str, questions: Mapping[str, Question]) -> tuple[Played, Played]:
        """Return what became of a question of a group: all of them are asked, a few at a time, when the first is."""
        if (group, name) not in self._asked:
            few = asyncio.Semaphore(QUESTIONS_AT_ONCE)
            for each, question in questions.items():
                self._asked[group, each] = asyncio.create_task(self._ask_in_turn(few, question))
        return await self._asked[group, name]

    async def settle(self) -> None:
        """Wait until every question that was asked has its answer."""
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _ask_in_turn(self, few: asyncio.Semaphore, question: Question) -> tuple[Played, Played]:
        async with few:
            return await self.ask(question)

    async def _ask(self, end: End, question: Question) -> Played:
        caller = await end.new_caller()
        found = await question(end, caller)
        return Played(plain(found, await self._files(end, found)), await caller.billed())

    def _playing(self, generation: str, case: str) -> Question:
        async def play(end: End, caller: Caller) -> Any:
            name = generation, end.base_url
            if name not in self._programs:
                self._programs[name] = asyncio.create_task(self._start(generation, end))
            program = await self._programs[name]
            return await program.play(case, caller.key, folder=self.folder)

        return play

    async def _start(self, generation: str, end: End) -> Program:
        """Start a program as its team would: the SDK reads the base URL from where it documents it."""
        interpreter, cases = GENERATIONS[generation]
        process = await asyncio.create_subprocess_exec(
            *(str(interpreter), str(HERE / "sdk_program.py"), cases, end.base_url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LONGEST_LINE_BYTES,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "DASHSCOPE_HTTP_BASE_URL": end.base_url},
        )
        program = Program(process)
        self.stack.push_async_callback(program.stop)
        return program

    async def _files(self, end: End, found: Any) -> dict[str, str]:
        """Fetch what an answer leads to; return for each link which of the simulator's files has these very bytes."""
        links = sorted(links_in(found))
        fetched = await asyncio.gather(*(self.http.get(link) for link in links))
        hashes = {link: _sha256(answer) for link, answer in zip(links, fetched, strict=True)}
        async with self._drawing:  # each file is drawn once
            made = await asyncio.to_thread(_made_by, end.sim)
        return {link: made.get(sha256, UNMADE) for link, sha256 in hashes.items()}


def _sha256(answer: httpx.Response) -> str:
    return hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else f"HTTP {answer.status_code}"


def _made_by(sim: Simulator) -> dict[str, str]:
    return {
        picture.sha256: _told(picture) for work in (*sim.truth.tasks, *sim.truth.calls) for picture in work.pictures
    }


def _told(picture: Picture) -> str:
    """Say which file it is, alike at both ends: the ids in its bytes differ."""
    order = picture.order
    return f"<{picture.media_type} {picture.index} of {order.model}, {order.size}: {order.prompt[:40]}>"


def calm_cases(generation: str) -> Mapping[str, Callable[[Any], Any]]:
    """Return the cases of a generation that need no stage, by name."""
    return {"sdk_cases": sdk_cases, "sdk_v2_cases": sdk_v2_cases}[GENERATIONS[generation][1]].CALM


@pytest.fixture(scope="session")
def _contract_database(databases: Databases) -> Iterator[str]:
    url = databases.clone()
    yield url
    databases.drop(url)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def both(_contract_database: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BothEnds]:
    """Both ends, for all tests of the contract."""
    folder = tmp_path_factory.mktemp("contract")
    keys = {
        region: [SimulatorKey(f"sk-{region}-{number}", region, f"caller-{number}") for number in range(MOST_CALLERS)]
        for region in (BEIJING, SINGAPORE)
    }
    options = SimulatorOptions(limits=PLENTY, duration_seconds=WORK_SECONDS)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30, follow_redirects=True))
        dashscope = await stack.enter_async_context(
            running_simulator(replace(options, keys=(*keys[BEIJING], *keys[SINGAPORE])))
        )
        behind = await stack.enter_async_context(running_simulator(options))
        gateway = await stack.enter_async_context(_running_gateway(behind, _contract_database, folder, http=http))
        there = [Straight(dashscope, dashscope.base_url(region), iter(keys[region])) for region in keys]
        for number, name in enumerate(sdk_cases.PICTURES):
            (folder / name).write_bytes(PICTURE + bytes([number]))
        both = BothEnds(*there, gateway, http, folder, stack)
        yield both
        await both.settle()


@pytest_asyncio.fixture(loop_scope="session")
async def stage(both: BothEnds) -> AsyncIterator[BothEnds]:
    """Both ends, nobody else playing there, with simulators that go back to their calm when the test is over."""
    await both.settle()
    yield both
    for sim in both.sims:
        sim.truth.faults.clear()
        sim.set_durations(*WORK_SECONDS)
        sim.truth.limits = PLENTY


@asynccontextmanager
async def _running_gateway(
    sim: Simulator, database_url: str, folder: Path, *, http: httpx.AsyncClient
) -> AsyncIterator[Gateway]:
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    settings = settings_for_tests(
        *(database_url, folder), public_url=url, database_pool_size=40, call_timeout_seconds=10
    )
    stop = asyncio.Event()
    async with open_resources(settings, fill_inputs=fill_inputs) as res:
        for region in (BEIJING, SINGAPORE):
            base_url, key = sim.base_url(region), sim.key(region)
            await add_account(res, NewAccount(region, region, base_url, key, file_hosts=(sim.file_host,)))
            for model in MODELS:  # what a model may use is no part of the contract
                await limit_model(res, region, model, rps=1_000, running=1_000)
        running = asyncio.gather(
            serve(res, teams=f"127.0.0.1:{port}", operators=None, stop=stop), run_worker(res, stop=stop)
        )

        async def ready() -> bool:
            assert not running.done()
            try:
                return (await http.get(f"{url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        try:
            await until(ready, "the gateway is ready")
            yield Gateway(sim, f"{url}/api/v1", res, http, folder)
        finally:
            stop.set()
            await running
