"""Real processes for tests: `dashgate serve`, `worker` and `simulator`, each started by its command and watched.

Nothing of this process's environment reaches them but what is named here, and only what was started here is stopped,
by its id. They are spoken to as anybody would: over HTTP, by signals, and by what they print.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from aiohttp.test_utils import unused_port

from app.delivery.destinations import NewDestination, set_destination
from app.resources import open_resources
from app.routing.accounts import NewAccount, add_account
from app.simulator import BEIJING
from app.teams.teams import create_team, issue_key
from tests.world import ADMIN_TOKEN, CREATE_PATH, SECRET_KEY, settings_for_tests

REPOSITORY = Path(__file__).parents[1]
DASHGATE = Path(sys.executable).with_name("dashgate")
LOOK_SECONDS = 0.03
PATIENCE_SECONDS = 30.0
STOP_SECONDS = 15.0
LOG_LINES_SHOWN = 25

T = TypeVar("T")


async def until(fact: Callable[[], T | Awaitable[T]], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Look again and again until `fact` is true, and return it; fails with `what` when it never becomes so."""
    give_up = time.monotonic() + seconds
    while True:
        found = fact()
        value: T = await found if inspect.isawaitable(found) else found
        if value:
            return value
        assert time.monotonic() < give_up, f"never came true: {what}"
        await asyncio.sleep(LOOK_SECONDS)


class Process:
    """One started process; what it prints is in `log`."""

    def __init__(self, name: str, arguments: list[str], *, environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                [str(DASHGATE), *arguments],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """End it as the kernel would: at once, wherever it is."""
        self._popen.kill()
        self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    async def stop(self) -> int:
        """Ask it to end, as a deployment does, and return its exit code; one that does not listen is killed."""
        if self.is_alive():
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._popen.wait()

    async def said(self, event: str) -> dict[str, Any]:
        """Wait for a log event, and return its first line."""

        def find() -> dict[str, Any] | None:
            found = next((line for line in self.lines() if line.get("event") == event), None)
            assert found or self.is_alive(), f"{self.name} ended:\n{self.tail()}"
            return found

        found = await until(find, f"{self.name} says {event}\n{self.tail()}")
        assert found is not None
        return found

    def has_said(self, event: str) -> bool:
        return any(line.get("event") == event for line in self.lines())

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has printed, as far as that is JSON objects."""
        parsed = (_parse(line) for line in self.log.read_text(errors="replace").splitlines())
        return [line for line in parsed if line is not None]

    def tail(self) -> str:
        """Return the end of what it has printed."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(f"  {self.name}: {line}" for line in lines)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running `dashgate serve` of the teams' surface."""

    process: Process
    url: str
    http: httpx.AsyncClient

    async def create(self, key: str, prompt: str, *, n: int = 1, **headers: str) -> httpx.Response:
        """Post a create of `n` images from one picture."""
        content = [{"text": prompt}, {"image": "https://assets.example.com/cup.png"}]
        messages = [{"role": "user", "content": content}]
        body = {"model": "wan2.6-image", "input": {"messages": messages}, "parameters": {"n": n}}
        sent = {"Authorization": f"Bearer {key}", "X-DashScope-Async": "enable", **headers}
        return await self.http.post(self.url + CREATE_PATH, json=body, headers=sent)

    async def read(self, key: str, task_id: str) -> httpx.Response:
        """Ask what became of a task."""
        return await self.http.get(f"{self.url}/api/v1/tasks/{task_id}", headers={"Authorization": f"Bearer {key}"})

    async def status(self, key: str, task_id: str) -> str:
        answer = await self.read(key, task_id)
        return str(answer.json()["output"]["task_status"]) if answer.status_code == 200 else ""

    async def ended(self, key: str, task_id: str, *, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait for the end of a task, and return its status."""

        async def ended() -> str:
            status = await self.status(key, task_id)
            return "" if status in ("PENDING", "RUNNING") else status

        return await until(ended, f"task {task_id} ends", seconds=seconds)


@dataclass(frozen=True, slots=True)
class RemoteSimulator:
    """A running `dashgate simulator`, told and asked through its control port."""

    process: Process
    where: dict[str, Any]  # what its ready line says
    http: httpx.AsyncClient
    port: int  # its own, or that of a door in front of it

    def base_url(self, region: str) -> str:
        url: str = self.where["regions"][region]["base_url"]
        return url.replace(f":{self.where['port']}/", f":{self.port}/")

    def key(self, region: str) -> str:
        return str(self.where["regions"][region]["key"])

    @property
    def file_host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def tell(self, what: str, **body: Any) -> None:
        """Change its limits, durations or clock."""
        await self._call("POST", what, json=body)

    async def fail_next(self, operation: str, kind: str, **details: Any) -> None:
        """Script a fault."""
        await self._call("POST", "faults", json={"operation": operation, "kind": kind, **details})

    async def tasks(self) -> list[dict[str, Any]]:
        """Return the truth about every task it ever took."""
        return list((await self._call("GET", "tasks"))["tasks"])

    async def journal(self, operation: str) -> list[dict[str, Any]]:
        """Return the requests of one operation that it received."""
        return list((await self._call("GET", "journal", params={"operation": operation}))["entries"])

    async def count(self, operation: str, fault: str) -> int:
        """Count the requests of one operation that met a fault."""
        return [entry["fault"] for entry in await self.journal(operation)].count(fault)

    async def hit(self, operation: str, fault: str, *, times: int = 1) -> None:
        """Wait until a scripted fault has met so many requests."""

        async def met() -> bool:
            return await self.count(operation, fault) >= times

        await until(met, f"{fault} meets {operation}")

    async def _call(self, method: str, what: str, **options: Any) -> dict[str, Any]:
        answer = await self.http.request(method, f"{self.where['control_url']}/{what}", **options)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@dataclass
class Fleet:
    """The processes of one test, on one database."""

    folder: Path
    settings: dict[str, str]  # DASHGATE_…, for every process
    http: httpx.AsyncClient
    started: list[Process] = field(default_factory=list)

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the whole environment of a process: nothing is inherited."""
        return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **self.settings, **changes}

    def start(self, *arguments: str, **settings: str) -> Process:
        """Start `dashgate` with arguments, without waiting for anything."""
        name = f"{arguments[0]}-{len(self.started)}"
        log = self.folder / f"{name}.log"
        process = Process(name, list(arguments), environment=self.environment(**settings), log=log)
        self.started.append(process)
        return process

    async def gateway(self, *, port: int | None = None, **settings: str) -> Gateway:
        """Start a gateway for teams, and wait until it is ready."""
        port = port or unused_port()
        process = self.start("serve", "--surface", "teams", "--port", str(port), **settings)
        gateway = Gateway(process, f"http://127.0.0.1:{port}", self.http)

        async def ready() -> bool:
            assert process.is_alive(), f"serve ended:\n{process.tail()}"
            try:
                return (await self.http.get(f"{gateway.url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await until(ready, "serve is ready")
        return gateway

    async def worker(self, **settings: str) -> Process:
        """Start a worker, and wait until its loops run."""
        process = self.start("worker", **settings)
        await process.said("worker.started")
        return process

    async def simulator(self) -> RemoteSimulator:
        """Start a calm simulator, and wait until it answers."""
        process = self.start("simulator", "--calm", "--port", "0", "--control-port", "0", "--json")

        def ready() -> dict[str, Any] | None:
            assert process.is_alive(), f"simulator ended:\n{process.tail()}"
            return next(iter(process.lines()), None)

        where = await until(ready, "the simulator is ready")
        assert where is not None
        return RemoteSimulator(process, where, self.http, where["port"])

    async def command(self, *arguments: str, **settings: str) -> dict[str, Any]:
        """Run a command that ends by itself and must succeed; return the JSON document it printed."""
        done = await asyncio.to_thread(
            subprocess.run,
            [str(DASHGATE), *arguments, "--json"],
            cwd=REPOSITORY,
            env=self.environment(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"dashgate {' '.join(arguments)}: {done.stdout.decode()}{done.stderr.decode()}"
        return dict(json.loads(done.stdout))

    def tails(self) -> str:
        """Return the end of what every process has printed."""
        return "\n".join(process.tail() for process in self.started)


@asynccontextmanager
async def running_fleet(folder: Path, database_url: str, **settings: str) -> AsyncIterator[Fleet]:
    """Lend a fleet on a migrated database; what it started is stopped, and shown when the test failed."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "DASHGATE_DATABASE_URL": database_url,
        "DASHGATE_DATABASE_POOL_SIZE": "5",
        "DASHGATE_SECRET_KEY": SECRET_KEY,
        "DASHGATE_ADMIN_TOKEN": ADMIN_TOKEN,
        "DASHGATE_STATE_DIR": str(folder),
    }
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS, trust_env=False) as http:
        fleet = Fleet(folder, {**usual, **settings}, http)
        try:
            yield fleet
        except BaseException:
            print(fleet.tails())  # noqa: T201 -- pytest shows it with the failure
            raise
        finally:
            await asyncio.gather(*(process.stop() for process in fleet.started))


async def furnish(
    fleet: Fleet, sim: RemoteSimulator, destination: NewDestination, *, regions: Sequence[str] = (BEIJING,)
) -> str:
    """Give a fleet's database an account per region and a team with a destination; return the team's API key.

    Quicker than the commands, which tests/journeys/test_separate_processes.py goes through.
    """
    async with open_resources(settings_for_tests(fleet.settings["DASHGATE_DATABASE_URL"], fleet.folder)) as res:
        for region in regions:
            base_url, key, hosts = sim.base_url(region), sim.key(region), (sim.file_host,)
            await add_account(res, NewAccount(region, region, base_url, key, file_hosts=hosts))
        await create_team(res, "alpha", regions=list(regions))
        await set_destination(res, "alpha", destination)
        _, api_key = await issue_key(res, "alpha")
        return api_key


def _parse(line: str) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
