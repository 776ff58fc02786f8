"""The OpenAPI document tells the truth: schemathesis sends what it allows and what it forbids, and judges each answer.

A listening gateway, the simulator behind it, and every step turning as a worker's would. The same seed each time.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio
import schemathesis
from aiohttp.test_utils import unused_port
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from app.api.openapi import PICTURE, document
from app.main import serve
from app.simulator import Simulator
from tests.world import World, open_world

SEED = 20261123
EXAMPLES = 8
TURN_SECONDS = 0.02  # between two rounds of the steps; each is a second of the simulator's time
CALLS = ("/api/v1/services/{path}", "/v1/images/generations", "/api/v1/uploads")
KEYLESS = {"GET /livez", "GET /readyz", "GET /assets/{asset_id}/{name}", "HEAD /assets/{asset_id}/{name}"}
FORM = "POST /uploads/{upload_id}"

# Where a request may be refused although the document allows it. A call's model may be any, and its fields are the
# upstream's to judge; a form needs a policy; two instants may be too far apart; a task may not wait any more.
JUDGED_FURTHER = (
    *("/api/v1/services/{path}", "/api/v1/tasks", "/api/v1/tasks/{task_id}/cancel", "/api/v1/uploads"),
    *("/uploads/{upload_id}", "/v1/images/generations", "/v1/images/edits"),
    *("/compatible-mode/v1/images/generations", "/compatible-mode/v1/images/edits"),
)
# How a request is refused; beside the usual statuses those of a form and of the size of a body.
REFUSALS = ["400", "401", "403", "404", "405", "411", "412", "413", "415", "422", "429", "503"]
# 503 and 504 are answers of their own (design.md 7); 500, 501 and 502 never are.
NO_ERRORS_OF_OURS = ["2xx", "3xx", "4xx", "503", "504"]


@dataclass
class Stand:
    """A listening gateway."""

    world: World
    base_url: str


@dataclass
class Findings:
    """What came of a run: failures in words, and how each operation was answered, as what."""

    failures: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)


@pytest_asyncio.fixture
async def stand(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    """A gateway that listens, with every step turning."""
    port = unused_port()
    changes = {"public_url": f"http://127.0.0.1:{port}", "sync_wait_seconds": 2, "durable_wait_seconds": 5}
    async with open_world(still_sim, database_url, tmp_path, drain_seconds=5, **changes) as world:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(world.res, teams=f"127.0.0.1:{port}", operators=None, stop=stop))
            turning = group.create_task(turn(world))
            try:
                yield Stand(world, f"http://127.0.0.1:{port}")
            finally:
                turning.cancel()
                stop.set()


async def turn(world: World) -> None:
    """Do what a worker does, and let time pass."""
    while True:
        await world.advance(1.0)
        await asyncio.sleep(TURN_SECONDS)


async def examine(stand: Stand, described: dict[str, Any], *, key: str | None, only: str = "all") -> Findings:
    """Let schemathesis make the calls of a document, in a thread of its own; return what came of them.

    `only` positive: nothing that the document forbids.
    """
    schema = schemathesis.openapi.from_dict(described, config=config_of(stand.base_url, key, only=only))
    return await asyncio.to_thread(_run, schema)


def _run(schema: Any) -> Findings:
    findings = Findings()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                answers = [one.response for one in recorder.interactions.values() if one.response]
                findings.statuses.setdefault(recorder.label, Counter()).update(one.status_code for one in answers)
                findings.kinds |= {kind for one in answers for kind in one.headers.get("content-type", [])}
                findings.failures += _failures_of(recorder)
            case events.NonFatalError():
                findings.failures.append(f"{event.label}: {event.info.format()}")
            case events.FatalError(exception=error):
                raise error
    return findings


def _failures_of(recorder: ScenarioRecorder) -> Iterator[str]:
    for check in (check for checks in recorder.checks.values() for check in checks):
        if check.failure_info is not None:
            yield f"{recorder.label}: {check.name}\n{check.failure_info.failure}\n{check.failure_info.code_sample}"


def config_of(base_url: str, key: str | None, *, only: str) -> SchemathesisConfig:
    """Say how much is tried, by whom, and what is expected."""
    unsure = {"positive_data_acceptance": {"enabled": False}}
    settings: dict[str, Any] = {
        "seed": SEED,
        "base-url": base_url,
        "workers": 1,  # CPython 3.11 cannot parse in two threads at once, which Hypothesis would do
        "continue-on-failure": True,
        "generation": {"mode": only, "max-examples": EXAMPLES, "deterministic": True, "no-shrink": True},
        "phases": {"stateful": {"enabled": False}},
        "checks": {
            "not_a_server_error": {"expected-statuses": NO_ERRORS_OF_OURS},
            "negative_data_rejection": {"expected-statuses": REFUSALS},
        },
        "operations": [{"include-path": path, "checks": unsure} for path in JUDGED_FURTHER],
    }
    if key is not None:
        settings["auth"] = {"openapi": {"apiKey": {"bearer": key}}}
    return SchemathesisConfig.from_dict(settings)


def as_this_world_offers_it(described: dict[str, Any]) -> dict[str, Any]:
    """Narrow a document to calls that can succeed here: to models of the catalogue, at their paths."""
    narrow = copy.deepcopy(described)
    narrow["paths"] = {path: narrow["paths"][path] for path in CALLS}
    models = {"type": "string", "enum": ["wan2.6-image", "wan2.6-t2i"]}
    narrow["components"]["schemas"]["Call"] = {"enum": [PICTURE, {**PICTURE, "model": "wan2.6-t2i", "parameters": {}}]}
    wishes = narrow["paths"]["/v1/images/generations"]["post"]["parameters"]
    wishes[:] = [one for one in wishes if one["name"] != "Idempotency-Key"]  # else nearly all would be somebody's twin
    narrow["components"]["schemas"]["ImageWish"]["properties"]["model"] = models
    worlds = {
        "path": ["aigc/image-generation/generation", "aigc/multimodal-generation/generation"],
        "model": models["enum"],
        "X-Dashgate-Region": ["cn-beijing"],
        "X-DashScope-Async": ["enable", "disable"],
        "X-DashScope-SSE": ["enable", "disable"],
    }
    for parameter in (one for path in CALLS for how in narrow["paths"][path].values() for one in how["parameters"]):
        if parameter["name"] in worlds:
            parameter["schema"] = {"type": "string", "enum": worlds[parameter["name"]]}
            parameter.pop("examples", None)
    return narrow


async def test_every_answer_to_a_team_is_as_the_document_says(stand: Stand) -> None:
    findings = await examine(stand, document(stand.base_url), key=stand.world.keys["alpha"])

    assert findings.failures == []
    assert all(findings.statuses.values())


async def test_calls_that_succeed_are_answered_as_the_document_says(stand: Stand) -> None:
    described = as_this_world_offers_it(document(stand.base_url))

    findings = await examine(stand, described, key=stand.world.keys["alpha"], only="positive")

    assert findings.failures == []
    assert [label for label, statuses in findings.statuses.items() if not statuses[200]] == []
    assert any(kind.startswith("text/event-stream") for kind in findings.kinds)


async def test_without_a_key_every_answer_is_as_the_document_says_and_none_tells_anything(stand: Stand) -> None:
    findings = await examine(stand, document(stand.base_url), key=None)

    assert findings.failures == []
    answered = {label: set(statuses) for label, statuses in findings.statuses.items() if label not in {*KEYLESS, FORM}}
    assert {label: statuses - {401, 405} for label, statuses in answered.items() if statuses - {401, 405}} == {}
