"""The unmodified `dashscope` package must find nothing odd about the simulator.

The SDK blocks, so its calls run in a thread. `ImageGeneration.fetch` and `.wait` drop `base_address`, therefore the
base URL is set where the SDK documents it, for the length of one test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import dashscope
import pytest
from dashscope.aigc.image_generation import ImageGeneration

from app.simulator import BEIJING, SINGAPORE, Simulator

MODEL = "wan2.6-image"
MESSAGES = [{"role": "user", "content": [{"text": "a paper boat"}, {"image": "https://assets.example.com/boat.png"}]}]

Sdk = Callable[..., Any]


@pytest.fixture
def sdk(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """Call a class method of `ImageGeneration` with the region's key, in a thread."""
    monkeypatch.setattr(dashscope, "base_http_api_url", sim.base_url(BEIJING))

    async def call(name: str, *args: Any, **options: Any) -> Any:
        method = getattr(ImageGeneration, name)
        return await asyncio.to_thread(method, *args, **{"api_key": sim.key(BEIJING), **options})

    return call


async def submit(sdk: Sdk, **options: Any) -> Any:
    return await sdk("async_call", **{"model": MODEL, "messages": MESSAGES, "n": 2, "size": "1376*768", **options})


async def test_a_create_answers_with_a_pending_task(sdk: Sdk) -> None:
    receipt = await submit(sdk)
    assert receipt.status_code == HTTPStatus.OK
    assert receipt.output.task_status == "PENDING"
    assert receipt.output.task_id
    assert receipt.request_id


async def test_a_finished_task_is_fetched_with_one_choice_for_each_image(sim: Simulator, sdk: Sdk) -> None:
    receipt = await submit(sdk)
    assert (await sdk("fetch", receipt)).output.task_status == "RUNNING"
    sim.advance(1)
    result = await sdk("fetch", receipt)
    assert result.output.task_status == "SUCCEEDED"
    assert [choice.finish_reason for choice in result.output.choices] == ["stop", "stop"]
    assert result.output.choices[0].message.content[0]["image"].startswith(f"http://{sim.file_host}/files/cn-beijing/")
    assert dict(result.usage)["image_count"] == 2
    assert dict(result.usage)["size"] == "1376*768"


async def test_wait_returns_the_result(sim: Simulator, sdk: Sdk) -> None:
    receipt = await submit(sdk)
    sim.advance(1)
    result = await sdk("wait", receipt)
    assert result.status_code == HTTPStatus.OK
    assert result.output.task_status == "SUCCEEDED"


async def test_wait_ends_with_the_code_of_a_failed_task(sim: Simulator, sdk: Sdk) -> None:
    receipt = await submit(
        sdk, messages=[{"role": "user", "content": [{"text": "[[forbidden]]"}]}], enable_interleave=True, n=1
    )
    sim.advance(1)
    result = await sdk("wait", receipt)
    assert result.output.task_status == "FAILED"
    assert result.output["code"] == "DataInspectionFailed"
    assert sim.truth.bill()[BEIJING] == {}


async def test_an_interleaved_result_alternates_text_and_image(sim: Simulator, sdk: Sdk) -> None:
    messages = [{"role": "user", "content": [{"text": "how to fold a boat"}]}]
    receipt = await submit(sdk, messages=messages, enable_interleave=True, n=1, max_images=3, size="1280*1280")
    sim.advance(1)
    result = await sdk("fetch", receipt)
    kinds = [item["type"] for item in result.output.choices[0].message.content]
    assert len(result.output.choices) == 1
    assert kinds == ["text", "image"] * dict(result.usage)["image_count"]


async def test_the_list_shows_the_task(sdk: Sdk) -> None:
    receipt = await submit(sdk)
    rows = (await sdk("list", model_name=MODEL)).output["data"]
    assert [row["task_id"] for row in rows] == [receipt.output.task_id]
    assert rows[0]["request_id"] == receipt.request_id


async def test_a_key_of_another_region_is_refused(sim: Simulator, sdk: Sdk) -> None:
    refusal = await submit(sdk, api_key=sim.key(SINGAPORE))
    assert (refusal.status_code, refusal.code) == (HTTPStatus.UNAUTHORIZED, "InvalidApiKey")
    assert refusal.message == "Invalid API-key provided."


async def test_a_bad_parameter_is_refused_with_its_message(sdk: Sdk) -> None:
    refusal = await submit(sdk, size="1280x1280")
    assert (refusal.status_code, refusal.code) == (HTTPStatus.BAD_REQUEST, "InvalidParameter")
    assert refusal.message == "Expected format: '<width>*<height>'"


async def test_an_unknown_task_is_unknown_and_no_error(sdk: Sdk) -> None:
    result = await sdk("fetch", "0385dc79-5ff8-4d82-bcb6-000000000000")
    assert result.status_code == HTTPStatus.OK
    assert result.output.task_status == "UNKNOWN"


async def test_a_waiting_task_is_canceled_and_a_running_one_is_not(sim: Simulator, sdk: Sdk) -> None:
    running = await submit(sdk)
    refusal = await sdk("cancel", running)
    assert (refusal.status_code, refusal.code) == (HTTPStatus.BAD_REQUEST, "UnsupportedOperation")
    sim.set_limits(running_tasks=1)
    waiting = await submit(sdk)
    assert (await sdk("cancel", waiting)).status_code == HTTPStatus.OK
    assert (await sdk("wait", waiting)).output.task_status == "CANCELED"
