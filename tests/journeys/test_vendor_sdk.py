"""Goal: the vendor's unmodified SDK, and whoever calls as it does, reaches what is the gateway's own.
Method: the SDK in a thread, over real HTTP and in real time, against a gateway with its worker in this process. That it
finds here what it finds in DashScope is tests/contract's to show.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dashscope
import httpx
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from dashscope.aigc.image_generation import ImageGeneration

from app.delivery.destinations import NewDestination, set_destination
from app.main import serve
from app.resources import Resources, open_resources
from app.routing.accounts import NewAccount, add_account
from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorOptions, running_simulator
from app.teams.teams import create_team, issue_key
from app.worker import run_worker
from tests.processes import until
from tests.world import settings_for_tests

MODEL = "wan2.6-image"


@dataclass(frozen=True)
class Sdk:
    """The SDK, pointed at a base URL with a key."""

    base_url: str
    key: str
    monkeypatch: pytest.MonkeyPatch

    async def __call__(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make a call as a program would; `fetch` and `wait` take the base URL only from where the SDK keeps it."""
        self.monkeypatch.setattr(dashscope, "base_http_api_url", self.base_url)
        given = {"api_key": self.key, "base_address": self.base_url, **options}
        return await asyncio.to_thread(method, *args, **given)

    async def submit(self, prompt: str = "a paper boat", **options: Any) -> Any:
        content = [{"text": prompt}, {"image": "https://assets.example.com/boat.png"}]
        messages = [{"role": "user", "content": content}]
        return await self(ImageGeneration.async_call, **{"model": MODEL, "messages": messages, "n": 2, **options})

    async def make(self, prompt: str = "a paper boat", **options: Any) -> Any:
        """Submit, and wait as the SDK waits."""
        return await self(ImageGeneration.wait, await self.submit(prompt, **options))


@dataclass(frozen=True)
class Stand:
    """A listening gateway with its worker, in front of a simulator."""

    sim: Simulator
    base_url: str
    key: str


@pytest_asyncio.fixture
async def stand(database_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    """A gateway with an account in both regions; the team prefers Beijing."""
    port = unused_port()
    settings = settings_for_tests(
        database_url, tmp_path, public_url=f"http://127.0.0.1:{port}", poll_calls_per_second=18, call_timeout_seconds=10
    )
    async with running_simulator(SimulatorOptions()) as sim, open_resources(settings) as res:
        for region in (BEIJING, SINGAPORE):
            account = NewAccount(region, region, sim.base_url(region), sim.key(region), file_hosts=(sim.file_host,))
            await add_account(res, account)
        await create_team(res, "alpha", regions=[BEIJING, SINGAPORE])
        await set_destination(res, "alpha", NewDestination(f"file://{tmp_path / 'files'}"))
        _, key = await issue_key(res, "alpha")
        async with _running(res, port):
            yield Stand(sim, f"http://127.0.0.1:{port}/api/v1", key)


@asynccontextmanager
async def _running(res: Resources, port: int) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group, httpx.AsyncClient(trust_env=False) as http:
        group.create_task(serve(res, teams=f"127.0.0.1:{port}", operators=None, stop=stop))
        group.create_task(run_worker(res, stop=stop))

        async def ready() -> bool:
            try:
                return (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        try:
            await until(ready, "the gateway is ready")
            yield
        finally:
            stop.set()


@pytest.fixture
def gateway(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    return Sdk(stand.base_url, stand.key, monkeypatch)


@pytest.mark.parametrize("region", [BEIJING, SINGAPORE])
async def test_a_header_chooses_the_region(stand: Stand, gateway: Sdk, region: str) -> None:
    result = await gateway.make(headers={"X-Dashgate-Region": region})
    assert result.output.task_status == "SUCCEEDED"
    assert [task.region for task in stand.sim.truth.tasks] == [region]


async def test_a_wait_by_the_gateways_own_parameter_is_answered_with_the_end(stand: Stand, gateway: Sdk) -> None:
    receipt = await gateway.submit()
    async with httpx.AsyncClient(trust_env=False, timeout=70) as http:
        answer = await http.get(
            f"{stand.base_url}/tasks/{receipt.output.task_id}?wait=60", headers={"Authorization": f"Bearer {stand.key}"}
        )
    assert answer.json()["output"]["task_status"] == "SUCCEEDED"


async def test_events_over_the_wire_are_told_as_dashscope_frames_them(stand: Stand, gateway: Sdk) -> None:
    receipt = await gateway.submit()
    url = f"{stand.base_url}/tasks/{receipt.output.task_id}/events"
    async with httpx.AsyncClient(trust_env=False, timeout=70) as http:
        answer = await http.get(url, headers={"Authorization": f"Bearer {stand.key}"})
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("id:")]
    for number, block in enumerate(blocks, 1):
        assert re.fullmatch(rf"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:\{{.*\}}", block)
    assert '"task_status":"SUCCEEDED"' in blocks[-1]
