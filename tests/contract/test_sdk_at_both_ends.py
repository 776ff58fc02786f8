"""The unmodified SDK, in each of its generations, finds in the gateway what it finds in DashScope; so does its bill."""

from __future__ import annotations

import doctest
import hashlib
from typing import Any

import pytest

from app.routing.accounts import limit_model
from app.simulator import BEIJING
from tests.contract import sameness, sdk_cases
from tests.contract.both_ends import GENERATIONS, SDK1, BothEnds, Played, assert_same, calm_cases
from tests.contract.sameness import DIFFERENCES, RULES

QUEUED_MODEL = "wan2.7-image"


def of_every_generation(*cases: str) -> list[tuple[str, str]]:
    """Return each case with each generation that has it; the calm ones where none is named."""
    return [(generation, case) for generation in GENERATIONS for case in cases or calm_cases(generation)]


@pytest.fixture(autouse=True)
def _has_sdk(request: pytest.FixtureRequest) -> None:
    """The last 1.x has an environment of its own."""
    if "1.x" in str(request.node.name) and not SDK1.exists():
        pytest.fail("the SDK's last 1.x is not there: run `make sdk1` (`make test-all` does)")


@pytest.mark.parametrize(("generation", "case"), of_every_generation())
async def test_what_the_sdk_finds_is_the_same_at_both_ends(both: BothEnds, generation: str, case: str) -> None:
    straight, gateway = await both.calm(generation, case)
    assert_same(straight, gateway)


async def test_local_files_reach_the_upstream_whole(stage: BothEnds) -> None:
    assert_same(*await stage.play("2.x", "local_files_beside_a_prompt"))
    there, here = ({(upload.sha256, upload.model) for upload in sim.truth.uploads} for sim in stage.sims)
    files = [stage.folder / name for name in sdk_cases.PICTURES]
    assert {sha256 for sha256, _ in here} == {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert here == there


@pytest.mark.parametrize(
    ("generation", "case"), [*of_every_generation("cancelling_what_waits"), ("2.x", "cancelling_under_asyncio")]
)
async def test_a_task_that_waits_is_cancelled_alike(stage: BothEnds, generation: str, case: str) -> None:
    for sim in stage.sims:
        sim.set_limits(running_tasks=0)
    straight, gateway = await stage.play(generation, case)
    assert_same(straight, gateway)
    assert straight.billed == {}


async def test_a_task_that_waits_in_the_gateway_is_cancelled_alike(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.set_limits(running_tasks=0)
    await limit_model(stage.gateway.res, BEIJING, QUEUED_MODEL, rps=1_000, running=1)
    straight, gateway = await stage.play("2.x", "cancelling_a_queue")
    assert_same(straight, gateway)
    sent, kept = (sum(task.model == QUEUED_MODEL for task in sim.truth.tasks) for sim in stage.sims)
    assert sent > kept


@pytest.mark.parametrize(("generation", "case"), [("2.x", "cancelling_what_runs"), ("v2", "cancelling_what_runs")])
async def test_a_task_that_runs_is_not_cancelled_at_either_end(stage: BothEnds, generation: str, case: str) -> None:
    for sim in stage.sims:
        sim.set_durations(3, 3)
    straight, gateway = await stage.play(generation, case)
    assert_same(straight, gateway)
    assert straight.billed == {"image": 2}


async def test_reads_that_fail_with_503_end_no_wait(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.fail_next("query", "5xx", times=2)
    assert_same(*await stage.play("2.x", "waiting_through_trouble"))


@pytest.mark.parametrize(("operation", "kind"), [("create", "429"), ("query", "429"), ("query", "5xx")])
async def test_the_new_client_gets_there_through_the_same_trouble(stage: BothEnds, operation: str, kind: str) -> None:
    for sim in stage.sims:
        sim.fail_next(operation, kind)
    straight, gateway = await stage.play("v2", "making_in_spite_of_all")
    assert_same(straight, gateway)
    assert straight.billed == {"image": 2}


async def test_an_error_in_a_stream_is_told_alike(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.fail_next("stream", "error_event", after_events=4, status=400, code="DataInspectionFailed", message="no")
    straight, gateway = await stage.play("2.x", "streaming_in_spite_of_all")
    assert_same(straight, gateway)
    assert [part["status_code"] for part in straight.found[0]] == [200, 200, 200, 200, 400]


# Wanted differences, each a row of docs/differences.md.


def test_the_examples_of_sameness_are_true() -> None:
    assert doctest.testmod(sameness).failed == 0


def test_whatever_is_made_alike_is_told_in_the_documentation() -> None:
    rows = {line.split("|")[1].strip() for line in DIFFERENCES.read_text("utf-8").splitlines() if line.startswith("|")}
    assert {rule.row for rule in RULES} <= rows


def succeeded(played: Played) -> dict[str, Any]:
    """Return the only task that was made, which must have succeeded."""
    (task, *_) = played.found
    assert task[1]["output"]["task_status"] == "SUCCEEDED"
    return dict(task[1])


async def test_a_create_beyond_the_upstreams_rate_is_no_error_here(stage: BothEnds) -> None:
    calm, _ = await stage.play("2.x", "waiting_through_trouble")
    for sim in stage.sims:
        sim.fail_next("create", "429")
    straight, gateway = await stage.play("2.x", "making_in_spite_of_all")
    assert straight.found[0]["raised"] == "InvalidTask"
    assert succeeded(gateway) == calm.found[1]


async def test_a_status_read_is_never_refused_here(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.fail_next("query", "429")
    straight, gateway = await stage.play("2.x", "waiting_through_trouble")
    assert [part["status_code"] for part in straight.found] == [200, 429]
    assert [part["status_code"] for part in gateway.found] == [200, 200]


async def test_a_form_that_a_model_does_not_have_is_served_here(both: BothEnds) -> None:
    straight, gateway = await both.play("2.x", "forms_that_the_models_do_not_have")
    assert [(part["status_code"], part["code"]) for part in straight.found] == [
        (403, "AccessDenied"),
        (400, "InvalidParameter"),
    ]
    painted, told = gateway.found
    assert [result["url"] for result in painted["output"]["results"]] == ["<image/png 0 of wanx-v1, 1024*1024: a boat>"]
    assert [item["type"] for item in told["output"]["choices"][0]["message"]["content"][:2]] == ["text", "image"]
    assert gateway.billed == {"image": 1 + told["usage"]["image_count"]}


async def test_a_stream_that_breaks_off_ends_with_an_error_here(stage: BothEnds) -> None:
    for sim in stage.sims:
        sim.fail_next("stream", "break", after_events=7)
    straight, gateway = await stage.play("2.x", "streaming_in_spite_of_all")
    (there, broken), (here, end) = straight.found, gateway.found
    assert broken["raised"] in ("ChunkedEncodingError", "ConnectionError")
    assert end is None
    assert here[:-1] == there
    assert here[-1]["code"] == "Dashgate.OutcomeUnknown"
    assert gateway.billed == straight.billed == {"image": 1}


async def test_the_new_clients_list_finds_its_tasks_here_alone(both: BothEnds) -> None:
    straight, gateway = await both.play("v2", "listing_as_the_client_reads_it")
    assert (straight.found, gateway.found) == ([], [["SUCCEEDED", "<time>", "<time>"]])
