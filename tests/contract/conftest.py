"""A simulator with a clock that stands still, and a client that speaks DashScope's HTTP to it.

Standing still means: nothing ends, expires or leaves a rate window before a test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.simulator import BEIJING, Simulator, SimulatorOptions, running_simulator
from tests.contract.both_ends import _contract_database, both, stage

__all__ = ["_contract_database", "both", "stage"]  # fixtures of the tests that play cases at both ends

CREATE_PATH = "/services/aigc/image-generation/generation"


class UpstreamCaller:
    """Calls one region of a simulator as a careful client would."""

    def __init__(self, sim: Simulator, http: httpx.AsyncClient, region: str = BEIJING) -> None:
        self.sim = sim
        self.http = http
        self.base_url = sim.base_url(region)
        self.headers = {"Authorization": f"Bearer {sim.key(region)}"}

    def order(self, prompt: str = "a paper boat", **parameters: Any) -> dict[str, Any]:
        """Make the body of an edit, with one input picture and one result unless told otherwise."""
        content = [{"text": prompt}, {"image": "https://assets.example.com/cup.png"}]
        messages = [{"role": "user", "content": content}]
        return {"model": "wan2.6-image", "input": {"messages": messages}, "parameters": {"n": 1, **parameters}}

    async def post(self, body: Any, **changes: Any) -> httpx.Response:
        headers = {**self.headers, "X-DashScope-Async": "enable"}
        return await self.http.post(f"{self.base_url}{CREATE_PATH}", **{"json": body, "headers": headers, **changes})

    async def call(self, service: str, body: Any, **headers: str) -> httpx.Response:
        """Call any service path, synchronously unless the headers say otherwise."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.base_url}/services/{service}"
        return await self.http.post(url, json=body, headers={**self.headers, **names})

    async def create(self, prompt: str = "a paper boat", **parameters: Any) -> str:
        """Create a task that must be accepted; return its id."""
        answer = await self.post(self.order(prompt, **parameters))
        assert answer.status_code == 200, answer.text
        return str(answer.json()["output"]["task_id"])

    async def query(self, task_id: str) -> httpx.Response:
        return await self.http.get(f"{self.base_url}/tasks/{task_id}", headers=self.headers)

    async def cancel(self, task_id: str) -> httpx.Response:
        return await self.http.post(f"{self.base_url}/tasks/{task_id}/cancel", headers=self.headers)

    async def output(self, task_id: str) -> dict[str, Any]:
        answer = await self.query(task_id)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["output"])

    async def status(self, task_id: str) -> str:
        return str((await self.output(task_id))["task_status"])

    async def list(self, **wanted: Any) -> httpx.Response:
        return await self.http.get(f"{self.base_url}/tasks", params=wanted, headers=self.headers)

    async def links(self, task_id: str) -> list[str]:
        """Return the links of a task that has succeeded."""
        choices = (await self.output(task_id))["choices"]
        content = [item for choice in choices for item in choice["message"]["content"]]
        return [item["image"] for item in content if item["type"] == "image"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def still_simulator() -> AsyncIterator[Simulator]:
    """One simulator for all these tests."""
    async with running_simulator(SimulatorOptions(clock_scale=0)) as sim:
        yield sim


@pytest.fixture
def sim(still_simulator: Simulator) -> Simulator:
    """The simulator, with nothing in it."""
    still_simulator.reset()
    return still_simulator


@pytest_asyncio.fixture(loop_scope="session")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture
def upstream(sim: Simulator, http: httpx.AsyncClient) -> UpstreamCaller:
    """A client of the Beijing region."""
    return UpstreamCaller(sim, http)
