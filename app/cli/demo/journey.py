"""The demo's journey: one request by the vendor's own SDK, its states as Postgres has them, and the proof of its files.

Looks at the gateway from both ends: as a team does, over HTTP with an API key, and as an operator does, in the tables.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from app.delivery.store import read_assets
from app.ledger.reports import usage_report
from app.ledger.store import read_task_entries
from app.lib.db import reading
from app.lib.http import Outside
from app.models.tasks import State
from app.tasks.states import is_terminal
from app.tasks.store_reads import find_task_all_teams, read_events_all_teams

if TYPE_CHECKING:
    from app.cli.demo.stage import Stage

MODEL = "wan2.6-image"
PROMPT = "A short story in pictures: a paper boat crosses a pond in the rain."
PARAMETERS: dict[str, Any] = {"enable_interleave": True, "n": 1, "max_images": 2, "size": "1280*1280"}
WATCH_SECONDS = 0.1  # how often Postgres is asked for new states
FETCH_SECONDS = 1.0  # how often the SDK asks: answers under way may be a second old anyway
UNDER_WAY = ("PENDING", "RUNNING")


@dataclass(frozen=True, slots=True)
class Passed:
    """A state that the task moved to."""

    state: str
    at: datetime
    attempt: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class File:
    """One file from every side, by SHA-256: behind the team's link, in the folder, in Postgres, and made upstream."""

    link: str
    path: Path | None
    size_bytes: int
    linked: str
    stored: str | None
    recorded: str | None
    made: str | None

    @property
    def is_same(self) -> bool:
        """Tell whether all sides agree; where nobody knows what was made upstream, the three others must."""
        return len({self.linked, self.stored, self.recorded, self.made or self.linked}) == 1


@dataclass(slots=True)
class Journey:
    """What happened. `trouble` is None when everything was as it must be."""

    task_id: str = ""
    states: list[Passed] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  # DashScope's words, as the SDK was told them
    answer: dict[str, Any] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    billed: Decimal = Decimal(0)
    usage: list[dict[str, Any]] = field(default_factory=list)
    trouble: str | None = None


class Watcher(Protocol):
    """Who is told while it happens."""

    def asked(self, task_id: str) -> None: ...

    def passed(self, state: Passed, first: Passed) -> None: ...


class VendorSdk:
    """The vendor's own, unmodified package, pointed at the gateway as its manual says. Its calls block: use threads.

    `ImageGeneration.fetch` takes no base address (dashscope 2.0), so it is set for the whole package.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        import dashscope
        from dashscope.aigc.image_generation import ImageGeneration

        dashscope.base_http_api_url = base_url
        self._calls, self._api_key = ImageGeneration, api_key

    def create(self) -> Any:
        """Ask for pictures; the answer names a task."""
        messages: Any = [{"role": "user", "content": [{"text": PROMPT}]}]
        return self._calls.async_call(MODEL, api_key=self._api_key, messages=messages, **PARAMETERS)

    def fetch(self, task_id: str) -> Any:
        """Ask what became of a task."""
        return self._calls.fetch(task_id, api_key=self._api_key)


async def travel(stage: Stage, watcher: Watcher) -> Journey:
    """Send the request, follow it to its end, and compare its files from every side."""
    journey = Journey()
    sdk = await asyncio.to_thread(VendorSdk, stage.base_url, stage.api_key)
    try:
        async with asyncio.timeout(stage.upstream.patience_seconds):
            journey.trouble = await _send(sdk, journey, stage=stage, watcher=watcher)
    except TimeoutError:
        journey.trouble = f"it had not ended after {stage.upstream.patience_seconds:.0f} seconds"
    if journey.trouble is None:
        await _prove(stage, journey)
        journey.trouble = _difference(journey)
    return journey


async def _send(sdk: VendorSdk, journey: Journey, *, stage: Stage, watcher: Watcher) -> str | None:
    """Create, then watch and fetch side by side; return what went wrong."""
    try:
        receipt = await asyncio.to_thread(sdk.create)
    except OSError as error:  # what requests raises; it obeys HTTP_PROXY, also for this machine
        return f"the SDK did not reach the gateway ({type(error).__name__}); behind a proxy, set NO_PROXY=127.0.0.1"
    if receipt.status_code != 200:
        return f"the create was refused: {receipt.code}: {receipt.message}"
    journey.task_id = str(receipt.output["task_id"])
    watcher.asked(journey.task_id)
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(stage, journey, watcher=watcher))
        group.create_task(_fetch(sdk, journey))
    return None if journey.told[-1] == "SUCCEEDED" else f"it ended as {journey.told[-1]}"


async def _watch(stage: Stage, journey: Journey, *, watcher: Watcher) -> None:
    """Tell every state as it passes, until the last."""
    while not (journey.states and is_terminal(State(journey.states[-1].state))):
        async with reading(stage.res) as session:
            rows = await read_events_all_teams(session, UUID(journey.task_id))
        for row in rows[len(journey.states) :]:
            journey.states.append(Passed(row["state"], row["at"], row["attempt"], row["reason"]))
            watcher.passed(journey.states[-1], journey.states[0])
        await asyncio.sleep(WATCH_SECONDS)


async def _fetch(sdk: VendorSdk, journey: Journey) -> None:
    """Fetch until the SDK is told an end."""
    while not journey.told or journey.told[-1] in UNDER_WAY:
        await asyncio.sleep(FETCH_SECONDS)
        answer = await asyncio.to_thread(sdk.fetch, journey.task_id)
        word = str(answer.output["task_status"]) if answer.status_code == 200 else f"{answer.status_code} {answer.code}"
        if word not in journey.told[-1:]:
            journey.told.append(word)
        journey.answer = {"request_id": answer.request_id, "output": answer.output, "usage": answer.usage}


async def _prove(stage: Stage, journey: Journey) -> None:
    """Gather each file's SHA-256 from every side, and what was billed."""
    task_id = UUID(journey.task_id)
    async with reading(stage.res) as session:
        task = await find_task_all_teams(session, task_id)
        assets = await read_assets(session, stage.team_id, task_id)
        entries = await read_task_entries(session, stage.team_id, task_id)
    upstream_task_id = str(task["upstream_task_id"]) if task else ""
    told = await asyncio.to_thread(stage.upstream.truth, upstream_task_id)
    made: Sequence[str | None] = [None] * len(assets) if told is None else told
    journey.billed = sum((entry["quantity"] for entry in entries), Decimal(0))
    journey.usage = [asdict(line) for line in await usage_report(stage.res, team_id=stage.team_id, month=None)]
    links = links_of(journey.answer)
    if len(links) == len(assets) == len(made):
        async with Outside() as outside:  # its own door: the gateway's knows no way to itself
            host, _, port = stage.address.rpartition(":")
            outside.allow(host, int(port), "http")
            for link, asset, expected in zip(links, assets, made, strict=True):
                path = stage.folder / asset["object_key"] if asset["object_key"] else None
                linked, size_bytes = await _download(outside, link)
                stored = await asyncio.to_thread(_hash_of, path)
                journey.files.append(File(link, path, size_bytes, linked, stored, asset["sha256"], expected))


def links_of(answer: dict[str, Any]) -> list[str]:
    """Return the links of an answer, in its order.

    >>> links_of({"output": {"choices": [{"message": {"content": [{"text": "a"}, {"image": "http://h/1.png"}]}}]}})
    ['http://h/1.png']
    """
    return [str(item["image"]) for item in content_of(answer) if item.get("image")]


def content_of(answer: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the texts and pictures of an answer, in its order."""
    choices = answer["output"]["choices"] or []
    return [item for choice in choices for item in choice["message"]["content"]]


async def _download(outside: Outside, link: str) -> tuple[str, int]:
    """Read a link as a team would; return the SHA-256 and the length of what came with 200."""
    hashed, size_bytes = hashlib.sha256(), 0
    async with outside.exchange("GET", link) as answer:
        if answer.status_code != 200:
            return f"HTTP {answer.status_code}", 0
        async for chunk in answer.aiter_raw():
            hashed.update(chunk)
            size_bytes += len(chunk)
    return hashed.hexdigest(), size_bytes


def _hash_of(path: Path | None) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else None


def _difference(journey: Journey) -> str | None:
    """Say what is not as it must be."""
    if not journey.files:
        return "links, rows and files upstream are not equally many"
    if not all(file.is_same for file in journey.files):
        return "a file is not the same from every side"
    if journey.billed != len(journey.files):
        return f"{journey.billed:f} images were billed for {len(journey.files)} files"
    return None
