"""Goal: neither a killed gateway nor one that is told to stop loses what a stream has shown.
Method: real processes in front of a simulator whose clock stands still, so that a stream is in the middle for as long
as a test wants; SIGKILL and SIGTERM; then the ledger, the files and what the reader saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest_asyncio

from app.delivery.destinations import NewDestination
from app.simulator import BEIJING
from tests.api.streaming import STREAM_PATH, Reader, fields_in, links_in, order
from tests.databases import Databases
from tests.processes import Fleet, Gateway, RemoteSimulator, furnish, running_fleet, until

# The lease of a stream is its time-out and 15 s: whoever takes up what was killed waits for no more.
RELAY_TIMEOUT_SECONDS = 10
SHORT = {"DASHGATE_RELAY_TIMEOUT_SECONDS": str(RELAY_TIMEOUT_SECONDS), "DASHGATE_LOG_LEVEL": "info"}
RESCUE_SECONDS = 90.0
STREAM_SECONDS = 60  # of the simulator's clock


@dataclass
class Place:
    """A gateway in front of a simulator whose clock stands still."""

    fleet: Fleet
    sim: RemoteSimulator
    gateway: Gateway
    key: str
    files: Path
    database_url: str
    read: list[bytes] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def stream(self, prompt: str, **parameters: Any) -> AsyncIterator[Reader]:
        """Open a stream; all prompts here make the simulator tell of two steps: words, a picture, words, a picture."""
        headers = {"Authorization": f"Bearer {self.key}", "X-DashScope-SSE": "enable"}
        url, body = self.gateway.url + STREAM_PATH, order(prompt, **parameters)
        async with self.fleet.http.stream("POST", url, json=body, headers=headers) as answer:
            yield Reader(answer)

    async def advance(self, seconds: float) -> None:
        await self.sim.tell("clock", advance_seconds=seconds)

    async def call(self, prompt: str) -> dict[str, Any]:
        """The simulator's truth about the call with a prompt."""
        (found,) = [one for one in (await self.sim._call("GET", "calls"))["calls"] if one["prompt"] == prompt]
        return dict(found)

    async def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.database_url)
        try:
            return [dict(row) for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    async def ended(self, task_id: str, *, seconds: float) -> dict[str, Any]:
        """Wait until a task has ended and its files are stored."""

        async def find() -> dict[str, Any] | None:
            (task,) = await self.rows("SELECT * FROM tasks WHERE id = $1::uuid", task_id)
            left = await self.rows("SELECT 1 FROM assets WHERE task_id = $1::uuid AND state <> 'stored'", task_id)
            return task if task["finished_at"] is not None and not left else None

        task = await until(find, f"task {task_id} ends", seconds=seconds)
        assert task is not None
        return task

    async def lines(self, task_id: str) -> list[tuple[str, int, str | None]]:
        rows = await self.rows("SELECT * FROM ledger_entries WHERE task_id = $1::uuid", task_id)
        return [(row["kind"], int(row["quantity"]), row["flag"]) for row in rows]

    async def stored(self, task_id: str) -> list[str]:
        """The hashes of the files of a task, where they lie."""
        keys = await self.rows("SELECT object_key FROM assets WHERE task_id = $1::uuid ORDER BY position", task_id)
        return [hashlib.sha256((self.files / key["object_key"]).read_bytes()).hexdigest() for key in keys]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(databases: Databases, tmp_path_factory: Any) -> AsyncIterator[Place]:
    folder = tmp_path_factory.mktemp("streams")
    url = await asyncio.to_thread(databases.clone)
    try:
        async with running_fleet(folder, url, **SHORT) as fleet:
            sim = await fleet.simulator()
            await sim.tell("clock", scale=0)
            await sim.tell("durations", seconds=[STREAM_SECONDS, STREAM_SECONDS])
            key = await furnish(fleet, sim, NewDestination(f"file://{folder / 'files'}"))
            await fleet.command("account", "limit", BEIJING, "wan2.6-image", "--rps", "20", "--running", "30")
            await fleet.worker()
            yield Place(fleet, sim, await fleet.gateway(), key, folder / "files", url)
    finally:
        await asyncio.to_thread(databases.drop, url)


async def next_image(reader: Reader) -> bytes:
    """Read on to the next event with an image."""
    while not links_in(event := await reader.event()):
        pass
    return event


async def test_a_gateway_killed_in_the_middle_of_streams_has_billed_and_kept_exactly_what_they_had_shown(
    place: Place,
) -> None:
    """One stream had shown a picture, and another only words."""
    doomed = Place(**{**vars(place), "gateway": await place.fleet.gateway()})
    async with doomed.stream("pictured") as shown:
        await shown.event()
        await place.advance(STREAM_SECONDS / 2)
        await next_image(shown)
        async with doomed.stream("words") as words:
            await words.event()
            doomed.gateway.process.kill()
            with contextlib.suppress(httpx.TransportError):
                await shown.rest()
    made = await place.call("pictured")
    assert made["billed_images"] == 1
    task = await place.ended(shown.task_id, seconds=RESCUE_SECONDS)
    assert (task["state"], task["code"]) == ("failed", "Dashgate.OutcomeUnknown")
    assert await place.lines(shown.task_id) == [("usage", 1, "partial")]
    assert await place.stored(shown.task_id) == [image["sha256"] for image in made["images"]]
    await place.ended(words.task_id, seconds=RESCUE_SECONDS)
    assert await place.lines(words.task_id) == [("uncertain", 2, None)]


async def test_a_link_that_a_killed_gateway_gave_out_is_served_by_another(place: Place) -> None:
    doomed = Place(**{**vars(place), "gateway": await place.fleet.gateway()})
    async with doomed.stream("handed over") as reader:
        await reader.event()
        await place.advance(STREAM_SECONDS / 2)
        (link,) = links_in(await next_image(reader))
        doomed.gateway.process.kill()
    served = await place.fleet.http.get(place.gateway.url + "/assets/" + link.partition("/assets/")[2])
    call = await place.call("handed over")
    assert hashlib.sha256(served.content).hexdigest() == call["images"][0]["sha256"]


async def test_a_stopping_gateway_lives_until_its_stream_has_ended_and_takes_no_new_one(place: Place) -> None:
    stopping = Place(**{**vars(place), "gateway": await place.fleet.gateway()})
    process = stopping.gateway.process
    async with stopping.stream("finished") as reader:
        await reader.event()
        process.signal(signal.SIGTERM)
        await until(lambda: is_refused(stopping), "new connections are refused")
        assert process.is_alive()
        await place.advance(STREAM_SECONDS + 1)
        *_, last = await reader.rest()
    assert fields_in(last)["output"]["choices"][0]["finish_reason"] == "stop"
    await until(lambda: not process.is_alive(), "the gateway ends")
    assert await process.stop() == 0
    task = await place.ended(reader.task_id, seconds=30)
    assert task["state"] == "succeeded"
    assert await place.lines(reader.task_id) == [("usage", 2, None)]


async def test_a_stopping_gateway_lives_until_a_stream_that_nobody_reads_is_recorded(place: Place) -> None:
    stopping = Place(**{**vars(place), "gateway": await place.fleet.gateway()})
    async with stopping.stream("left alone") as reader:
        await reader.event()
    stopping.gateway.process.signal(signal.SIGTERM)
    await until(lambda: is_refused(stopping), "new connections are refused")
    await place.advance(STREAM_SECONDS + 1)
    assert await stopping.gateway.process.stop() == 0
    assert (await place.ended(reader.task_id, seconds=30))["state"] == "succeeded"
    assert await place.lines(reader.task_id) == [("usage", 2, None)]
    assert await place.stored(reader.task_id) == [
        image["sha256"] for image in (await place.call("left alone"))["images"]
    ]


async def is_refused(place: Place) -> bool:
    """Whether a new connection is."""
    port = int(place.gateway.url.rpartition(":")[2])
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False
