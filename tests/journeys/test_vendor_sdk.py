"""Goal: the vendor's unmodified SDK finds in the gateway what it finds in DashScope.
Method: the SDK in a thread, over real HTTP and in real time, against a gateway with its worker in this process; where
answers are compared, the same calls go straight to the simulator.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
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
NOT_A_TASK = "0385dc79-5ff8-4d82-bcb6-000000000000"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


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


@pytest.fixture
def straight(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """The SDK without a gateway."""
    return Sdk(stand.sim.base_url(BEIJING), stand.sim.key(BEIJING), monkeypatch)


def plain(answer: Any) -> dict[str, Any]:
    """Return an SDK answer without its HTTP headers, and with ids, times and links replaced: those may differ."""

    def replaced(value: Any, name: str = "") -> Any:
        match value:
            case dict():
                return {key: replaced(part, key) for key, part in value.items()}
            case list():
                return [replaced(part) for part in value]
            case str() if name in ("task_id", "request_id"):
                return f"<{name}>"
            case str() if name == "image":
                return "<link>"
            case str() if TIME.fullmatch(value):
                return "<time>"
        return value

    return {name: replaced(value, name) for name, value in dict(answer).items() if name != "headers"}


async def test_the_sdk_creates_fetches_and_waits_for_images(stand: Stand, gateway: Sdk) -> None:
    receipt = await gateway.submit()
    assert (receipt.status_code, receipt.output.task_status) == (HTTPStatus.OK, "PENDING")
    assert (await gateway(ImageGeneration.fetch, receipt)).output.task_status in ("PENDING", "RUNNING", "SUCCEEDED")

    result = await gateway(ImageGeneration.wait, receipt)

    (truth,) = stand.sim.truth.tasks
    links = [choice.message.content[0]["image"] for choice in result.output.choices]
    async with httpx.AsyncClient(trust_env=False) as http:
        served = [(await http.get(link)).content for link in links]
    assert [hashlib.sha256(body).hexdigest() for body in served] == [picture.sha256 for picture in truth.pictures]
    assert dict(result.usage)["image_count"] == 2
    assert truth.id not in str(result)


@pytest.mark.parametrize("prompt", ["two boats", "[[forbidden]]", "[[broken]]"])
async def test_what_wait_returns_is_what_dashscope_itself_returns(gateway: Sdk, straight: Sdk, prompt: str) -> None:
    assert plain(await gateway.make(prompt)) == plain(await straight.make(prompt))


async def test_wait_ends_with_the_code_of_a_failed_task_and_nothing_is_billed(stand: Stand, gateway: Sdk) -> None:
    result = await gateway.make("[[forbidden]]")
    assert (result.output.task_status, result.output["code"]) == ("FAILED", "DataInspectionFailed")
    async with httpx.AsyncClient(trust_env=False) as http:
        url = stand.base_url.replace("/api/v1", "/v1/usage")
        usage = await http.get(url, headers={"Authorization": f"Bearer {stand.key}"})
    assert usage.json()["lines"] == []


@pytest.mark.parametrize("options", [{"size": "1280x1280"}, {"n": 9}, {"seed": -1}])
async def test_a_refusal_reaches_the_sdk_as_dashscope_words_it(
    gateway: Sdk, straight: Sdk, options: dict[str, Any]
) -> None:
    refusal, expected = await gateway.submit(**options), await straight.submit(**options)
    assert refusal.status_code == HTTPStatus.BAD_REQUEST
    assert plain(refusal) == plain(expected)


async def test_a_wrong_key_is_refused_as_dashscope_refuses_it(gateway: Sdk, straight: Sdk) -> None:
    refusal, expected = await gateway.submit(api_key="sk-wrong"), await straight.submit(api_key="sk-wrong")
    assert refusal.status_code == HTTPStatus.UNAUTHORIZED
    assert plain(refusal) == plain(expected)


@pytest.mark.parametrize("task_id", [NOT_A_TASK, "no-id-at-all"])
async def test_a_task_that_does_not_exist_is_unknown_and_no_error(gateway: Sdk, straight: Sdk, task_id: str) -> None:
    result, expected = await gateway(ImageGeneration.fetch, task_id), await straight(ImageGeneration.fetch, task_id)
    assert result.output.task_status == "UNKNOWN"
    assert plain(result) == plain(expected)


@pytest.mark.parametrize("region", [BEIJING, SINGAPORE])
async def test_a_header_chooses_the_region(stand: Stand, gateway: Sdk, region: str) -> None:
    result = await gateway.make(headers={"X-Dashgate-Region": region})
    assert result.output.task_status == "SUCCEEDED"
    assert [task.region for task in stand.sim.truth.tasks] == [region]
