"""The control port: time, trouble and truth, as JSON, beside the simulated protocol."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import httpx
import pytest

from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorOptions, running_simulator
from tests.contract.conftest import UpstreamCaller

START_SECONDS = 20


class Control:
    """Calls the control port."""

    def __init__(self, sim: Simulator, http: httpx.AsyncClient) -> None:
        self.url = sim.control_url
        self.http = http

    async def get(self, path: str, **wanted: Any) -> Any:
        return (await self.http.get(f"{self.url}/{path}", params=wanted)).raise_for_status().json()

    async def post(self, path: str, **body: Any) -> Any:
        return (await self.http.post(f"{self.url}/{path}", json=body)).raise_for_status().json()


@pytest.fixture
def control(sim: Simulator, http: httpx.AsyncClient) -> Control:
    return Control(sim, http)


async def test_the_clock_can_be_moved_and_scaled(sim: Simulator, control: Control) -> None:
    before = (await control.get("state"))["clock"]
    moved = (await control.post("clock", advance_seconds=3600))["clock"]
    assert moved == {"now": before["now"] + 3600, "scale": 0}
    assert (await control.post("clock", scale=60))["clock"]["scale"] == 60


async def test_durations_hold_for_tasks_created_later_or_for_the_next_one(
    control: Control, upstream: UpstreamCaller
) -> None:
    await control.post("durations", seconds=[30, 30])
    await control.post("durations", seconds=[5, 5], next_only=True)
    quick, slow = await upstream.create(), await upstream.create()
    await control.post("clock", advance_seconds=5)
    assert [await upstream.status(quick), await upstream.status(slow)] == ["SUCCEEDED", "RUNNING"]
    await control.post("clock", advance_seconds=25)
    assert await upstream.status(slow) == "SUCCEEDED"


async def test_limits_and_faults_can_be_set_and_faults_cleared(
    control: Control, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    state = await control.post("limits", running_tasks=1)
    assert state["limits"] == {
        "task_calls_per_second": 20,
        "creates_per_second": 5,
        "running_tasks": 1,
        "cancels_per_second": 20,
        "upload_policies_per_second": 100,
    }
    state = await control.post("faults", operation="query", kind="5xx", times=3, status=500)
    assert [(fault["kind"], fault["times"]) for fault in state["faults"]] == [("5xx", 3)]
    assert (await upstream.query("t-1")).status_code == 500
    cleared = (await http.delete(f"{control.url}/faults")).json()
    assert cleared["faults"] == []
    assert (await upstream.query("t-1")).status_code == 200


async def test_the_journal_lists_requests_in_order_and_masks_keys(
    sim: Simulator, control: Control, upstream: UpstreamCaller
) -> None:
    task_id = await upstream.create("a paper boat")
    await upstream.query(task_id)
    await upstream.list()
    entries = (await control.get("journal"))["entries"]
    assert [entry["operation"] for entry in entries] == ["create", "query", "list"]
    assert [entry["task_id"] for entry in entries] == [task_id, task_id, None]
    assert [entry["status"] for entry in entries] == [200, 200, 200]
    assert entries[0]["body"] == upstream.order("a paper boat")
    assert entries[0]["seq"] < entries[1]["seq"] < entries[2]["seq"]
    assert entries[0]["received_monotonic"] <= entries[1]["received_monotonic"]
    assert sim.key(BEIJING) not in json.dumps(entries)
    assert len((await control.get("journal", operation="query"))["entries"]) == 1
    assert len((await control.get("journal", since=entries[1]["seq"]))["entries"]) == 1


async def test_the_journal_cuts_huge_inputs(sim: Simulator, upstream: UpstreamCaller) -> None:
    body = upstream.order()
    body["input"]["messages"][0]["content"][1]["image"] = "data:image/png;base64," + "A" * 1_000_000
    assert (await upstream.post(body)).status_code == 200
    [entry] = sim.truth.journal
    assert len(json.dumps(entry.body)) < 1000


async def test_tasks_and_bill_tell_the_truth(control: Control, upstream: UpstreamCaller) -> None:
    done = await upstream.create("a boat", n=2, size="768*768")
    failed = await upstream.create("[[broken]]", n=3)
    await control.post("clock", advance_seconds=1)
    first, second = (await control.get("tasks"))["tasks"]
    assert (first["id"], first["status"], first["prompt"], first["size"]) == (done, "SUCCEEDED", "a boat", "768*768")
    assert first["billed_images"] == 2
    assert [len(image["sha256"]) for image in first["images"]] == [64, 64]
    assert (second["id"], second["status"], second["billed_images"], second["images"]) == (failed, "FAILED", 0, [])
    assert (await control.get("bill"))["images"] == {BEIJING: {"wan2.6-image": 2}, SINGAPORE: {}}


async def test_a_reset_forgets_everything_but_the_numbering(
    sim: Simulator, control: Control, upstream: UpstreamCaller
) -> None:
    before = (await control.get("state"))["clock"]["now"]
    await upstream.create()
    last_seq = (await control.get("journal"))["entries"][-1]["seq"]
    await control.post("limits", running_tasks=0)
    await control.post("clock", advance_seconds=1_000_000)
    state = await control.post("reset")
    assert state["clock"]["now"] < before + 1_000_000
    assert state["limits"]["running_tasks"] == 5
    assert (await control.get("tasks"))["tasks"] == []
    assert (await control.get("journal"))["entries"] == []
    await upstream.query("t-1")
    assert (await control.get("journal"))["entries"][0]["seq"] == last_seq + 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("clock", {"advance_seconds": -1}),
        ("clock", {"advance_seconds": "soon"}),
        ("clock", {"forward": 1}),
        ("clock", [1]),
        ("durations", {"seconds": [2, 1]}),
        ("durations", {"seconds": 2}),
        ("limits", {"running_tasks": -1}),
        ("limits", {"surprise": 1}),
        ("faults", {"operation": "create"}),
        ("faults", {"operation": "create", "kind": "429", "times": "x"}),
    ],
)
async def test_nonsense_is_refused_with_a_reason(control: Control, path: str, body: Any) -> None:
    answer = await control.http.post(f"{control.url}/{path}", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


async def test_unknown_control_paths_are_json_404(control: Control, sim: Simulator) -> None:
    for url in (f"{control.url}/nothing", f"http://{sim.host}:{sim.control_port}/{BEIJING}/api/v1/tasks"):
        answer = await control.http.get(url)
        assert (answer.status_code, answer.json()) == (404, {"error": "not found"})


async def test_control_is_not_on_the_public_port(sim: Simulator, http: httpx.AsyncClient) -> None:
    assert (await http.get(f"http://{sim.file_host}/control/state")).status_code == 404


async def test_a_taken_port_is_said_so(sim: Simulator) -> None:
    with pytest.raises(OSError, match="in use"):
        async with running_simulator(SimulatorOptions(), port=sim.port):
            pass


async def test_the_command_prints_one_json_document_and_stops_on_sigterm(http: httpx.AsyncClient) -> None:
    program = "import typer; from app.cli.simulator import simulator; typer.run(simulator)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "--port", "0", "--control-port", "0", "--calm", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            ready = json.loads(await process.stdout.readline())
            place = ready["regions"][BEIJING]
            answer = await http.get(f"{place['base_url']}/tasks", headers={"Authorization": f"Bearer {place['key']}"})
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            rest = await process.stdout.read()
            assert await process.wait() == 0
            assert rest == b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
