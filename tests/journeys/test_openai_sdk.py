"""Goal: a program that makes images with the unmodified `openai` SDK works here by its base URL and key alone.
Method: as test_vendor_sdk.py: the SDK over real HTTP and in real time, against a listening gateway with its worker.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.doors import Door
from tests.journeys.test_vendor_sdk import Stand, stand
from tests.processes import until

__all__ = ["stand"]  # a fixture

PREFIXES = ("/v1", "/compatible-mode/v1")
PNG = b"\x89PNG\r\n\x1a\n" + b"a cup" * 20
JPEG = b"\xff\xd8\xff\xe0" + b"a table" * 20


def base_url(stand: Stand, prefix: str) -> str:
    return stand.base_url.replace("/api/v1", prefix)


async def ask(client: openai.OpenAI, method: Callable[[openai.OpenAI], Any]) -> Any:
    """Make a call of the synchronous client as a program would: in a thread of its own."""
    return await asyncio.to_thread(method, client)


@pytest.fixture(params=PREFIXES)
def client(request: pytest.FixtureRequest, stand: Stand) -> openai.OpenAI:
    """The SDK at each of the two base URLs."""
    plain = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=base_url(stand, request.param), api_key=stand.key, http_client=plain)


@asynccontextmanager
async def asynchronous(url: str, key: str, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    plain = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=url, api_key=key, http_client=plain, **options) as client:
        yield client


def made(stand: Stand) -> list[str]:
    """The hashes of what the upstream made."""
    return [picture.sha256 for one in [*stand.sim.truth.tasks, *stand.sim.truth.calls] for picture in one.pictures]


async def hashes(answer: Any) -> list[str]:
    """Those of what the SDK was given, by link or in the answer."""
    async with httpx.AsyncClient(trust_env=False) as http:
        files = [
            (await http.get(image.url)).content if image.url else base64.b64decode(image.b64_json)
            for image in answer.data
        ]
    return [hashlib.sha256(file).hexdigest() for file in files]


async def test_generate_gives_links_that_last(stand: Stand, client: openai.OpenAI) -> None:
    answer = await ask(
        client, lambda sdk: sdk.images.generate(model="wan2.6-image", prompt="a paper boat", size="1024x1024")
    )
    assert len(answer.data) == 1
    assert "/assets/" in answer.data[0].url
    assert await hashes(answer) == made(stand)
    assert abs(answer.created - stand.sim.truth.clock.now()) < 60


@pytest.mark.parametrize("model", ["wan2.6-t2i", "wan2.2-t2i-flash"])
async def test_generate_gives_the_images_themselves_when_asked_to(
    stand: Stand, client: openai.OpenAI, model: str
) -> None:
    answer = await ask(
        client,
        lambda sdk: sdk.images.generate(
            model=model, prompt="two boats", n=2, quality="hd", user="u1", response_format="b64_json",
            extra_body={"negative_prompt": "rain", "watermark": False},
        ),
    )  # fmt: skip
    assert [image.url for image in answer.data] == [None, None]
    assert await hashes(answer) == made(stand)


async def test_a_model_without_tasks_is_called_all_the_same(stand: Stand, client: openai.OpenAI) -> None:
    answer = await ask(client, lambda sdk: sdk.images.generate(model="z-image-turbo", prompt="a paper boat"))
    assert await hashes(answer) == made(stand)


async def test_edit_takes_a_file_or_several(stand: Stand, client: openai.OpenAI) -> None:
    cup = io.BytesIO(PNG)
    cup.name = "cup.png"
    prompt = "put the cup on the table"
    one = await ask(client, lambda sdk: sdk.images.edit(model="wan2.6-image", prompt=prompt, image=cup))
    two = await ask(
        client,
        lambda sdk: sdk.images.edit(
            model="wan2.6-image", prompt=prompt, image=[PNG, ("table.jpg", JPEG)], n=2, size="1280x720",
            response_format="b64_json", extra_body={"seed": 7, "watermark": True},
        ),
    )  # fmt: skip
    assert await hashes(one) + await hashes(two) == made(stand)
    first, second = [entry.body for entry in stand.sim.truth.journal.read(operation="create")]
    images = [
        [item["image"] for item in body["input"]["messages"][0]["content"] if "image" in item]
        for body in (first, second)
    ]
    cup_uri, table_uri = (
        f"data:image/{kind};base64,{base64.b64encode(file).decode()}" for kind, file in (("png", PNG), ("jpeg", JPEG))
    )
    assert images == [[cup_uri], [cup_uri, table_uri]]
    assert first["parameters"] == {"n": 1}
    assert second["parameters"] == {"n": 2, "size": "1280*720", "seed": 7, "watermark": True}


async def test_errors_are_those_that_the_sdk_knows(stand: Stand, client: openai.OpenAI) -> None:
    async def refusal(**wanted: Any) -> openai.APIStatusError:
        given = {"model": "wan2.6-image", "prompt": "a paper boat", **wanted}
        with pytest.raises(openai.APIStatusError) as refused:
            await ask(client, lambda sdk: sdk.images.generate(**given))
        return refused.value

    size, blocked, unknown = [
        await refusal(**wanted) for wanted in ({"size": "huge"}, {"prompt": "[[forbidden]]"}, {"model": "dall-e-3"})
    ]
    assert isinstance(size, openai.BadRequestError)
    assert (size.param, size.code, size.type) == ("size", "invalid_parameter", "invalid_request_error")
    assert (blocked.status_code, blocked.code) == (400, "data_inspection_failed")
    assert (unknown.status_code, unknown.code) == (400, "model_not_found")
    client.api_key = "dg_wrong"
    wrong = await refusal()
    assert isinstance(wrong, openai.AuthenticationError)
    assert wrong.code == "invalid_api_key"
    assert wrong.request_id


async def test_the_sdk_sends_nothing_again_that_was_decided(stand: Stand, client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as broken:
        await ask(client, lambda sdk: sdk.images.generate(model="wan2.6-image", prompt="[[broken]]"))
    assert broken.value.code == "internal_error_algo"
    assert len(stand.sim.truth.tasks) == 1


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_connection_that_breaks_costs_no_second_image(stand: Stand, prefix: str) -> None:
    stand.sim.set_durations(1, 1)
    port = urlsplit(stand.base_url).port
    async with (
        Door("127.0.0.1", port) as door,
        asynchronous(f"http://127.0.0.1:{door.port}{prefix}", stand.key, max_retries=5) as client,
    ):
        images = client.images.with_raw_response
        asking = asyncio.create_task(images.generate(model="wan2.6-image", prompt="a paper boat"))

        async def sent() -> bool:
            return len(stand.sim.truth.tasks) == 1

        await until(sent, "the upstream has the task")
        door.shut()
        door.open()
        answer = await asking
    assert answer.retries_taken >= 1
    assert await hashes(answer.parse()) == made(stand)
    assert len(stand.sim.truth.tasks) == 1
