"""Goal: `list`, `cancel` and `wait` of the vendor's unmodified SDK, old and new, find here what they find in DashScope.
Method: as test_vendor_sdk.py: the SDK in a thread, in real time, against a listening gateway with its worker.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any

import dashscope
import httpx
import pytest
from dashscope.aigc.image_generation import AioImageGeneration, ImageGeneration

from tests.journeys.test_vendor_sdk import MODEL, NOT_A_TASK, Sdk, Stand, gateway, plain, stand, straight

__all__ = ["gateway", "stand", "straight"]  # fixtures

REFUSED = ("UnsupportedOperation", "Failed to cancel the task, please confirm if the task is in PENDING status.")
MILLISECONDS = ("gmt_create", "start_time", "end_time")
OWN = ("api_key_id", "caller_uid", "caller_parent_id", "request_id", "task_id")


def rows(answer: Any) -> list[dict[str, Any]]:
    """The rows of a list, with everything replaced that may differ."""
    assert answer.status_code == HTTPStatus.OK, answer
    found = [dict(row) for row in answer.output["data"]]
    for row in found:
        assert all(isinstance(row[name], int) for name in MILLISECONDS if name in row)
        row.update({name: "<time>" for name in MILLISECONDS if name in row}, **dict.fromkeys(OWN, "<own>"))
    return found


async def test_list_finds_what_dashscope_lists(gateway: Sdk, straight: Sdk) -> None:
    for sdk in (gateway, straight):
        await sdk.make("a paper boat")
        await sdk.make("[[forbidden]]")
    asked: list[dict[str, Any]] = [
        {"model_name": MODEL, "status": "SUCCEEDED"},
        {"status": "FAILED"},
        {"status": "CANCELED"},
        {"page_no": 2, "page_size": 1, "status": "FAILED"},
        {"start_time": "20200101000000", "end_time": "20200101120000"},
    ]
    for options in asked:
        here = await gateway(ImageGeneration.list, **options)
        there = await straight(ImageGeneration.list, **options)
        if options.get("status") == "SUCCEEDED":
            # the gateway's own task lies in the same account
            assert rows(here) == rows(there)[:1]
            assert here.output["total"] == 1
        elif options.get("status") == "FAILED" and "page_no" not in options:
            assert rows(here) == rows(there)[:1]
        else:
            assert (rows(here), here.output["page_size"]) == ([], there.output["page_size"])


async def test_a_list_that_cannot_be_meant_is_refused_as_dashscope_refuses_it(gateway: Sdk, straight: Sdk) -> None:
    for options in ({"start_time": "yesterday"}, {"page_no": 0}, {"page_size": -1}):
        here = await gateway(ImageGeneration.list, **options)
        there = await straight(ImageGeneration.list, **options)
        assert here.status_code == HTTPStatus.BAD_REQUEST
        assert plain(here) == plain(there)


async def test_cancel_ends_what_waits_and_is_refused_for_what_does_not(
    stand: Stand, gateway: Sdk, straight: Sdk
) -> None:
    stand.sim.set_limits(running_tasks=0)
    here, there = await gateway.submit(), await straight.submit()
    assert plain(await gateway(ImageGeneration.cancel, here)) == plain(await straight(ImageGeneration.cancel, there))
    ended, expected = await gateway(ImageGeneration.wait, here), await straight(ImageGeneration.wait, there)
    assert ended.output.task_status == "CANCELED"
    assert plain(ended) == plain(expected)
    for task in (here, NOT_A_TASK):
        refused, wanted = await gateway(ImageGeneration.cancel, task), await straight(ImageGeneration.cancel, there)
        assert (refused.status_code, (refused.code, refused.message)) == (HTTPStatus.BAD_REQUEST, REFUSED)
        assert plain(refused) == plain(wanted)


async def test_the_asyncio_classes_poll_with_a_slash_and_list_and_cancel(
    stand: Stand, gateway: Sdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", stand.base_url)
    key = {"api_key": stand.key, "base_address": stand.base_url}
    made = await gateway.submit()
    result = await AioImageGeneration.wait(made, **key)
    assert result.output.task_status == "SUCCEEDED"
    listed = await AioImageGeneration.list(**key)
    assert [row["task_id"] for row in listed.output["data"]] == [made.output.task_id]
    refused = await AioImageGeneration.cancel(made, **key)
    assert (refused.status_code, refused.code) == (HTTPStatus.BAD_REQUEST, REFUSED[0])


async def test_the_new_client_lists_waits_and_cancels(stand: Stand) -> None:
    with dashscope.Client(api_key=stand.key, base_url=stand.base_url) as client:
        jobs = client.images.jobs
        made = await asyncio.to_thread(
            lambda: jobs.create(model=MODEL, prompt="a paper boat", image_urls=["https://assets.example.com/boat.png"])
        )
        done = await asyncio.to_thread(lambda: jobs.wait(made))
        assert done.succeeded
        assert all(link.startswith("http://127.0.0.1") for link in done.image_urls)
        listed = await asyncio.to_thread(jobs.list)
        assert [(job.task_id, job.status) for job in listed.tasks] == [(made.task_id, "SUCCEEDED")]
        assert (listed.total, listed.page_no) == (1, 1)
        stand.sim.set_limits(running_tasks=0)
        waiting = await asyncio.to_thread(
            lambda: jobs.create(model=MODEL, prompt="a boat", image_urls=["https://assets.example.com/boat.png"])
        )
        await asyncio.to_thread(lambda: jobs.cancel(waiting.task_id))
        assert (await asyncio.to_thread(lambda: jobs.fetch(waiting.task_id))).status == "CANCELED"


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
