"""Goal: the first journey as an operator deploys it, from an empty database to a usage report.
Method: `serve`, `worker` and `simulator` as processes on a Postgres and a Redis given by URL, with an S3 destination on
rclone; set up by commands alone, and driven with the vendor's unmodified SDK.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import dashscope
import pytest
import pytest_asyncio
from aiohttp.test_utils import unused_port
from dashscope.aigc.image_generation import ImageGeneration
from sqlalchemy.engine import make_url

from app.simulator import BEIJING
from tests.databases import Databases, run_sql
from tests.processes import Fleet, Gateway, RemoteSimulator, running_fleet
from tests.rclone import RunningS3, running_s3

MESSAGES = [{"role": "user", "content": [{"text": "two boats"}, {"image": "https://assets.example.com/boat.png"}]}]


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """A database as its administrator hands it over: nothing is in it."""
    name = f"dashgate_test_{secrets.token_hex(6)}"
    asyncio.run(run_sql(databases.server_url, f'CREATE DATABASE "{name}"'))
    url = make_url(databases.server_url).set(database=name).render_as_string(hide_password=False)
    yield url
    databases.drop(url)


@pytest.fixture
def s3() -> Iterator[RunningS3]:
    with running_s3() as s3:
        yield s3


@pytest_asyncio.fixture
async def fleet(empty_database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with running_fleet(tmp_path, empty_database, DASHGATE_REDIS_URL=redis_url) as fleet:
        yield fleet


async def test_an_image_travels_through_separate_processes_set_up_by_commands(
    fleet: Fleet, s3: RunningS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = await fleet.simulator()
    await fleet.command("migrate")
    await add_account(fleet, sim)
    keys = {links: await add_team(fleet, s3, links) for links in ("presigned", "gateway")}
    gateway = await start(fleet)

    for links, key in keys.items():
        answer = await drive(gateway, key, monkeypatch)
        urls = [choice.message.content[0]["image"] for choice in answer.output.choices]
        assert all(url.startswith(s3.endpoint if links == "presigned" else f"{gateway.url}/assets/") for url in urls)
        made = [image["sha256"] for image in (await sim.tasks())[-1]["images"]]
        assert [sha256((await fleet.http.get(url)).content) for url in urls] == made
        stored = sorted((s3.folder / links).rglob("*.png"))
        assert [sha256(path.read_bytes()) for path in stored] == made

        (line,) = (await fleet.command("usage", "report", "--team", links))["lines"]
        assert (line["model"], line["unit"], line["quantity"], line["tasks"]) == (
            "wan2.6-image",
            "image",
            "2",
            1,
        )


async def add_account(fleet: Fleet, sim: RemoteSimulator) -> None:
    file = secret_file(fleet, sim.key(BEIJING))
    where = ["--region", BEIJING, "--base-url", sim.base_url(BEIJING), "--file-host", sim.file_host]
    await fleet.command("account", "add", "main", *where, "--api-key-file", file)


async def add_team(fleet: Fleet, s3: RunningS3, links: str) -> str:
    """Make a team that is named after its links; return its API key."""
    await fleet.command("team", "create", links)
    where = ["--url", f"s3://{s3.bucket}/{links}", "--endpoint", s3.endpoint, "--links", links]
    file = secret_file(fleet, s3.secret_access_key)
    credentials = ["--access-key-id", s3.access_key_id, "--secret-access-key-file", file]
    await fleet.command("destination", "set", links, *where, *credentials)
    return str((await fleet.command("key", "create", links))["api_key"])


async def start(fleet: Fleet) -> Gateway:
    port = unused_port()
    await fleet.worker()
    return await fleet.gateway(port=port, DASHGATE_PUBLIC_URL=f"http://127.0.0.1:{port}")


async def drive(gateway: Gateway, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Go through the SDK's own three calls; return what the last one says.

    `fetch` and `wait` drop `base_address`, so it is also set where the SDK documents it.
    """
    base = f"{gateway.url}/api/v1"
    monkeypatch.setattr(dashscope, "base_http_api_url", base)

    async def call(method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        answer = await asyncio.to_thread(method, *args, api_key=key, base_address=base, **options)
        assert answer.status_code == HTTPStatus.OK, answer
        return answer

    receipt = await call(ImageGeneration.async_call, model="wan2.6-image", messages=MESSAGES, n=2)
    assert receipt.output.task_status == "PENDING"
    assert (await call(ImageGeneration.fetch, receipt)).output.task_id == receipt.output.task_id
    waited = await call(ImageGeneration.wait, receipt)
    assert waited.output.task_status == "SUCCEEDED"
    return waited


def secret_file(fleet: Fleet, secret: str) -> str:
    file = fleet.folder / f"secret-{secrets.token_hex(4)}"
    file.write_text(secret)
    return str(file)


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
