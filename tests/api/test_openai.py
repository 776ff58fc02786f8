"""/v1/images/…: OpenAI's image calls make the same tasks as all others; answers and errors are in OpenAI's shape."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from app.api.openai import FIELD_MAX_BYTES, MOST_FILES
from app.api.openai_bodies import IMAGE_MAX_BYTES
from app.delivery.contents import read_files
from app.errors import InvalidParameter
from app.main import create_app
from app.simulator import Simulator
from app.simulator.tasks import Picture
from app.teams.teams import TeamChange, change_team, issue_key
from tests.api.parts import without_database
from tests.world import World, open_world

PREFIXES = ("/v1", "/compatible-mode/v1")
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
NATIVE = "/api/v1/services/aigc/image-generation/generation"
PATIENCE_SECONDS = 20.0
PNG = b"\x89PNG\r\n\x1a\n" + b"a cup" * 20
JPEG = b"\xff\xd8\xff\xe0" + b"a table" * 20
MIB = 1024 * 1024


async def finish(world: World, asking: asyncio.Task[httpx.Response]) -> httpx.Response:
    """Let the world go on until a call that is waited for has its answer."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not asking.done():
            await world.advance(1.1)
            await asyncio.wait({asking}, timeout=0.02)
    return asking.result()


async def generate(
    world: World, team: str = "alpha", prefix: str = "/v1", headers: dict[str, str] | None = None, **wanted: Any
) -> httpx.Response:
    body = {"model": "wan2.6-image", "prompt": "a paper boat", **wanted}
    sent = world.headers(team, **(headers or {}))
    return await finish(
        world, asyncio.create_task(world.http.post(f"{prefix}/images/generations", json=body, headers=sent))
    )


async def edit(world: World, *images: bytes, name: str = "image", prefix: str = "/v1", **wanted: str) -> httpx.Response:
    fields = {"model": "wan2.6-image", "prompt": "put the cup on the table", **wanted}
    files = [(name, (f"{number}.dat", image, "text/plain")) for number, image in enumerate(images)]
    sending = world.http.post(f"{prefix}/images/edits", data=fields, files=files or None, headers=world.headers())
    return await finish(world, asyncio.create_task(sending))


def sent(world: World, operation: str = "create") -> list[Any]:
    """The bodies that went upstream."""
    return [entry.body for entry in world.sim.truth.journal.read(operation=operation)]


def pictures(world: World) -> list[Picture]:
    """What the upstream made, in its order."""
    made = [*world.sim.truth.tasks, *world.sim.truth.calls]
    return [picture for one in made for picture in one.pictures]


async def read_links(world: World, answer: httpx.Response) -> list[str]:
    """The hashes of the files behind an answer's links."""
    files = [await world.http.get(image["url"]) for image in answer.json()["data"]]
    return [hashlib.sha256(file.content).hexdigest() for file in files]


def refusal(answer: httpx.Response, *, retry: str = "false") -> tuple[int, str, str, str | None]:
    """Expect an error in OpenAI's shape; return its status, type, code and parameter."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == retry
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body.keys() == {"error", "request_id"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["type"], error["code"], error["param"]


async def expect_nothing_happened(world: World) -> None:
    assert await world.rows("SELECT id FROM tasks") == []
    assert sent(world) == sent(world, "sync") == []


# --- generations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_a_generation_is_a_task_whose_links_are_ours(world: World, prefix: str) -> None:
    answer = await generate(world, prefix=prefix, size="1024x1024")
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"created", "data"}
    (image,) = answer.json()["data"]
    assert image.keys() == {"url"}
    assert image["url"].startswith("http://gateway/assets/")
    assert await read_links(world, answer) == [picture.sha256 for picture in pictures(world)]
    content = [{"text": "a paper boat"}]
    assert sent(world) == [
        {
            "model": "wan2.6-image",
            "input": {"messages": [{"role": "user", "content": content}]},
            "parameters": {"enable_interleave": True, "max_images": 1, "size": "1024*1024"},
        }
    ]


async def test_the_answer_is_stamped_by_the_one_clock_and_names_its_task(world: World) -> None:
    answer = await generate(world)
    row = await world.row("SELECT id, mode, state, tag, path FROM tasks")
    assert answer.headers["X-Dashgate-Task-Id"] == str(row["id"])
    assert (answer.headers["x-should-retry"], answer.headers["cache-control"]) == ("false", "no-store")
    assert 0 <= world.res.clock.now().timestamp() - answer.json()["created"] <= 2
    assert (row["mode"], row["state"]) == ("durable", "succeeded")
    assert NATIVE.endswith(row["path"])
    assert await world.status(str(row["id"])) == "SUCCEEDED"
    line = await world.row("SELECT quantity, task_id FROM ledger_entries")
    assert (line["quantity"], line["task_id"]) == (1, row["id"])


async def test_images_in_the_answer_are_those_that_were_made(world: World) -> None:
    answer = await generate(world, model="wan2.6-t2i", n=3, response_format="b64_json")
    data = answer.json()["data"]
    assert [image.keys() for image in data] == [{"b64_json"}] * 3
    told = [hashlib.sha256(base64.b64decode(image["b64_json"], validate=True)).hexdigest() for image in data]
    assert told == [picture.sha256 for picture in pictures(world)]


async def test_a_model_that_has_two_forms_runs_as_a_task_and_tells_its_own_prompt(world: World) -> None:
    answer = await generate(world, model="qwen-image", negative_prompt="rain", seed=7)
    (row,) = await world.rows("SELECT mode, path FROM tasks")
    assert row == {"mode": "durable", "path": "aigc/text2image/image-synthesis"}
    assert sent(world)[0]["input"] == {"prompt": "a paper boat", "negative_prompt": "rain"}
    (image,) = answer.json()["data"]
    made = await world.read(answer.headers["X-Dashgate-Task-Id"])
    assert image["revised_prompt"] == made["output"]["results"][0]["actual_prompt"]


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_a_model_without_tasks_is_relayed(world: World, response_format: str) -> None:
    answer = await generate(world, model="z-image-turbo", response_format=response_format)
    assert answer.status_code == 200, answer.text
    assert (await world.row("SELECT mode FROM tasks"))["mode"] == "relay"
    assert [body["parameters"] for body in sent(world, "sync")] == [{"n": 1}]
    (made,), (image,) = pictures(world), answer.json()["data"]
    if response_format == "b64_json":
        assert hashlib.sha256(base64.b64decode(image["b64_json"])).hexdigest() == made.sha256
    else:
        assert await read_links(world, answer) == [made.sha256]


async def test_our_own_headers_are_honoured(world: World) -> None:
    headers = {"X-Dashgate-Tag": "project/7", "X-Dashgate-Durable": "false"}
    await generate(world, model="wan2.6-t2i", headers=headers)
    assert await world.row("SELECT mode, tag FROM tasks") == {"mode": "relay", "tag": "project/7"}
    answer = await generate(world, headers={"X-Dashgate-Region": "ap-southeast-1"})
    assert refusal(answer)[:3] == (400, "invalid_request_error", "invalid_parameter")


# --- edits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_an_edited_image_reaches_the_upstream_byte_for_byte(world: World, prefix: str) -> None:
    answer = await edit(world, PNG, prefix=prefix, n="2", size="1280x720", watermark="false")
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2
    assert await read_links(world, answer) == [picture.sha256 for picture in pictures(world)]
    (body,) = sent(world)
    text, image = body["input"]["messages"][0]["content"]
    assert text == {"text": "put the cup on the table"}
    assert image == {"image": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}
    assert body["parameters"] == {"n": 2, "size": "1280*720", "watermark": False}


async def test_several_images_keep_their_order_and_are_what_their_bytes_say(world: World) -> None:
    webp, bmp = b"RIFF\x00\x00\x00\x00WEBPVP8 " + b"x" * 40, b"BM" + b"x" * 40
    answer = await edit(world, PNG, JPEG, webp, bmp, name="image[]")
    assert answer.status_code == 200, answer.text
    (body,) = sent(world)
    images = [item["image"].split(",") for item in body["input"]["messages"][0]["content"] if "image" in item]
    assert [head for head, _ in images] == [f"data:image/{kind};base64" for kind in ("png", "jpeg", "webp", "bmp")]
    assert [base64.b64decode(text) for _, text in images] == [PNG, JPEG, webp, bmp]
    assert body["parameters"] == {"n": 1}


async def test_edits_come_as_base64_too(world: World) -> None:
    answer = await edit(world, PNG, response_format="b64_json")
    (image,), (made,) = answer.json()["data"], pictures(world)
    assert hashlib.sha256(base64.b64decode(image["b64_json"])).hexdigest() == made.sha256


async def test_more_images_than_the_model_takes_are_refused_in_the_upstreams_words(world: World) -> None:
    answer = await edit(world, *[PNG] * 5)
    assert refusal(answer) == (400, "invalid_request_error", "invalid_parameter", None)
    assert "between 1 and 4" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ([], {}, "image"),
        ([("image", b"GIF89a")], {}, "image"),
        ([("image", b"")], {}, "image"),
        ([("image", PNG), ("mask", PNG)], {}, "mask"),
        ([("image", PNG), ("model", PNG)], {}, None),
        ([("image", PNG)], {"n": "two"}, "n"),
        ([("image", PNG)], {"prompt": ""}, "prompt"),
        ([("image", PNG)], {"stream": "true"}, "stream"),
        ([("image", PNG)], {"image_url": "https://files.example/1.png"}, "image_url"),
        ([("image", PNG)], {"size": ["1024x1024", "512x512"]}, "size"),
        ([("image", PNG)], {"model": "wan2.2-t2i-flash"}, "model"),
        ([("image", PNG)] * (MOST_FILES + 1), {}, None),
    ],
)
async def test_a_form_that_cannot_be_meant_is_refused_by_name(
    world: World, files: list[tuple[str, bytes]], fields: dict[str, Any], param: str | None
) -> None:
    data = {"model": "wan2.6-image", "prompt": "a cup", **fields}
    given = [(name, ("cup.png", content)) for name, content in files] or {
        "image": (None, "https://files.example/1.png")
    }
    answer = await world.http.post(EDITS, data=data, files=given, headers=world.headers())
    assert refusal(answer) == (400, "invalid_request_error", "invalid_parameter", param)
    await expect_nothing_happened(world)


# --- caps ----------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def small(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that takes bodies of a mebibyte."""
    async with open_world(still_sim, database_url, tmp_path, body_limit_bytes=MIB) as world:
        yield world


async def test_an_image_above_the_upstreams_limit_is_refused_and_one_of_it_is_taken(world: World) -> None:
    largest = PNG.ljust(IMAGE_MAX_BYTES, b"x")
    assert (await edit(world, largest)).status_code == 200
    answer = await edit(world, largest + b"x")
    assert refusal(answer) == (413, "invalid_request_error", "request_too_large", None)
    assert len(sent(world)) == 1


async def test_images_are_counted_together_while_they_are_read(small: World) -> None:
    form = httpx.Request(
        "POST",
        f"http://gateway{EDITS}",
        data={"model": "wan2.6-image", "prompt": "a cup"},
        files=[("image[]", ("cup.png", PNG.ljust(300_000, b"x")))] * 3,
    )
    content, read = form.read(), 0

    async def unmeasured() -> AsyncIterator[bytes]:
        nonlocal read
        for start in range(0, len(content), 10_000):
            read += 10_000
            yield content[start : start + 10_000]

    headers = small.headers(**{"Content-Type": form.headers["content-type"]})
    answer = await small.http.post(EDITS, content=unmeasured(), headers=headers)
    assert refusal(answer)[:3] == (413, "invalid_request_error", "request_too_large")
    stated = await small.http.post(EDITS, content=content + b"x" * MIB, headers=headers)
    assert refusal(stated)[0] == 413
    await expect_nothing_happened(small)


async def test_a_field_of_a_form_is_no_longer_than_a_prompt_may_be(world: World) -> None:
    answer = await edit(world, PNG, prompt="x" * (FIELD_MAX_BYTES + 1))
    assert refusal(answer)[:3] == (413, "invalid_request_error", "request_too_large")
    await expect_nothing_happened(world)


async def test_files_larger_than_an_answer_may_be_are_not_read_to_their_end(world: World) -> None:
    answer = await generate(world, model="wan2.6-t2i", n=2)
    task_id, (team,) = UUID(answer.headers["X-Dashgate-Task-Id"]), await world.rows("SELECT team_id FROM tasks")
    files = await read_files(world.res, team["team_id"], task_id, most_bytes=MIB)
    size = sum(map(len, files.values()))
    assert await read_files(world.res, team["team_id"], task_id, most_bytes=size) == files
    with pytest.raises(InvalidParameter):
        await read_files(world.res, team["team_id"], task_id, most_bytes=size - 1)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_error_is_in_openais_shape(world: World, prefix: str) -> None:
    path, key = f"{prefix}/images/generations", world.headers()
    body = {"model": "wan2.6-image", "prompt": "a cup"}

    async def said(method: str = "POST", path: str = path, **options: Any) -> tuple[int, str, str, str | None]:
        return refusal(await world.http.request(method, path, **{"headers": key, **options}))

    invalid, text = "invalid_request_error", {**key, "Content-Type": "text/plain"}
    assert await said(json=body, headers={}) == (401, "authentication_error", "invalid_api_key", None)
    assert await said(json={**body, "model": "gpt-image-1"}) == (400, invalid, "model_not_found", None)
    assert await said(json={**body, "size": "huge"}) == (400, invalid, "invalid_parameter", "size")
    assert await said(json=[]) == (400, invalid, "invalid_parameter", None)
    assert await said(content=b"{}", headers=text) == (415, invalid, "unsupported_media_type", None)
    assert await said("GET") == (405, invalid, "method_not_allowed", None)
    assert await said(json=body, path=f"{prefix}/images/variations") == (404, invalid, "not_found", None)
    edits = f"{prefix}/images/edits"
    assert await said(json=body, path=edits) == (415, invalid, "unsupported_media_type", None)
    broken = {**key, "Content-Type": "multipart/form-data; boundary=b"}
    assert await said(content=b"--b\r\n", path=edits, headers=broken) == (400, invalid, "invalid_parameter", None)
    packed = {**broken, "Content-Encoding": "gzip"}
    assert await said(content=b"--b\r\n", path=edits, headers=packed) == (415, invalid, "unsupported_media_type", None)
    await expect_nothing_happened(world)


async def test_an_unknown_path_under_the_compatible_mode_is_a_404_in_openais_shape(world: World) -> None:
    answer = await world.http.post("/compatible-mode/v1/chat/completions", json={}, headers=world.headers())
    assert refusal(answer) == (404, "invalid_request_error", "not_found", None)


async def test_what_cannot_be_done_is_refused_before_anything_is_paid(world: World) -> None:
    for wanted in ({"stream": True}, {"partial_images": 1}, {"background": "transparent"}, {"n": 0}, {"sizes": "1"}):
        answer = await generate(world, **wanted)
        assert refusal(answer) == (400, "invalid_request_error", "invalid_parameter", next(iter(wanted)))
    await expect_nothing_happened(world)


async def test_a_model_that_the_key_may_not_call_is_denied(world: World) -> None:
    _, world.keys["alpha"] = await issue_key(world.res, "alpha", models=["wan2.6-t2i"])
    assert refusal(await generate(world)) == (403, "permission_error", "access_denied", None)
    await expect_nothing_happened(world)


async def test_an_unlisted_model_is_asked_as_the_newest_ones_are_where_the_team_may(world: World) -> None:
    await change_team(world.res, "alpha", TeamChange(allow_unlisted_models=True))
    answer = await generate(world, model="a-model-of-tomorrow")
    assert refusal(answer)[0] in (400, 404)  # the simulator knows no such model
    (body,) = sent(world, "sync")
    content = [{"text": "a paper boat"}]
    assert (body["model"], body["input"]) == (
        "a-model-of-tomorrow",
        {"messages": [{"role": "user", "content": content}]},
    )


async def test_the_upstreams_refusal_keeps_its_status_and_words(world: World) -> None:
    answer = await generate(world, size="2048x2048")
    assert refusal(answer) == (400, "invalid_request_error", "invalid_parameter", None)
    (row,) = await world.rows("SELECT id, refused_inline FROM tasks")
    assert (answer.headers["X-Dashgate-Task-Id"], row["refused_inline"]) == (str(row["id"]), True)
    assert "total pixels" in answer.json()["error"]["message"]
    assert answer.json()["request_id"] != answer.headers["x-request-id"]  # the upstream's own


@pytest.mark.parametrize("model", ["wan2.6-image", "z-image-turbo"])
async def test_a_task_that_ends_badly_is_an_error_with_the_status_of_its_code(world: World, model: str) -> None:
    answer = await generate(world, model=model, prompt="[[forbidden]]")
    assert refusal(answer) == (400, "invalid_request_error", "data_inspection_failed", None)
    answer = await generate(world, prompt="[[broken]]")
    assert refusal(answer) == (500, "server_error", "internal_error_algo", None)
    assert answer.headers["X-Dashgate-Task-Id"]
    assert await world.rows("SELECT id FROM ledger_entries WHERE kind = 'usage'") == []


async def test_our_accounts_trouble_is_told_without_its_details(world: World) -> None:
    world.sim.fail_next("create", "error", status=400, code="Arrearage", message="pay us")
    answer = await generate(world)
    assert refusal(answer) == (503, "server_error", "dashgate_upstream_account", None)
    assert "pay us" not in answer.text


async def test_above_the_teams_rate_a_call_says_when_to_come_again(world: World) -> None:
    await change_team(world.res, "alpha", TeamChange(rps=Decimal(1)))
    answers = [
        await world.http.post(path, headers=world.headers(), json={})
        for path in (GENERATIONS, EDITS, GENERATIONS, EDITS)
    ]
    answer = answers[-1]
    assert refusal(answer, retry="true") == (429, "rate_limit_error", "rate_limit_exceeded", None)
    assert int(answer.headers["retry-after"]) >= 1


async def test_while_the_database_is_away_nothing_is_sent_and_the_call_may_be_repeated(world: World) -> None:
    async with without_database(world) as (_, teams, _):
        answer = await teams.post(GENERATIONS, json={"model": "wan2.6-image", "prompt": "x"}, headers=world.headers())
    assert refusal(answer, retry="true") == (503, "server_error", "service_unavailable", None)
    assert sent(world) == []


async def test_images_that_are_made_but_cannot_be_read_are_not_paid_for_twice(world: World) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await generate(world, headers=key)
    (world.folder / "alpha").rename(world.folder / "elsewhere")
    answer = await generate(world, headers=key, response_format="b64_json")
    assert refusal(answer)[0] in (410, 503)
    assert answer.headers["X-Dashgate-Task-Id"] == first.headers["X-Dashgate-Task-Id"]
    (world.folder / "elsewhere").rename(world.folder / "alpha")
    again = await generate(world, response_format="b64_json")  # without a key: the mark brings it back
    assert again.headers["X-Dashgate-Task-Id"] == first.headers["X-Dashgate-Task-Id"]
    assert again.json()["data"][0]["b64_json"]
    assert len(sent(world)) == 1


# --- whose ---------------------------------------------------------------------------------------------------------


async def test_a_key_for_once_gives_the_same_images_and_another_call_is_refused(world: World) -> None:
    first, second = [await generate(world, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    assert second.headers["X-Dashgate-Task-Id"] == first.headers["X-Dashgate-Task-Id"]
    assert second.json()["data"] == first.json()["data"]
    other = await generate(world, headers={"Idempotency-Key": "k1"}, prompt="another")
    assert refusal(other) == (422, "invalid_request_error", "idempotency_key_reused", None)
    assert len(sent(world)) == 1


async def test_another_team_sees_nothing_of_a_generation(world: World) -> None:
    mine = await generate(world, headers={"Idempotency-Key": "k1"})
    theirs = await generate(world, "beta", headers={"Idempotency-Key": "k1"})
    assert theirs.headers["X-Dashgate-Task-Id"] != mine.headers["X-Dashgate-Task-Id"]
    assert await world.status(mine.headers["X-Dashgate-Task-Id"], "beta") == "UNKNOWN"
    (link,) = [image["url"] for image in mine.json()["data"]]
    stolen = await generate(world, "beta", prompt=link)
    assert refusal(stolen)[:3] == (400, "invalid_request_error", "invalid_parameter")


async def test_a_caller_that_left_gets_the_same_task_when_it_asks_again(world: World) -> None:
    await _leave_at_once(world, {"model": "wan2.6-image", "prompt": "a paper boat"})
    answer = await generate(world)
    assert answer.status_code == 200
    assert len(sent(world)) == len(await world.rows("SELECT id FROM tasks")) == 1


async def _leave_at_once(world: World, body: dict[str, Any]) -> None:
    """Send a generation as a client that hangs up as soon as it has said all."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}, {"type": "http.disconnect"}]
    headers = {**world.headers(), "Content-Type": "application/json"}

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(_: Any) -> None:
        """Nobody is there."""

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": GENERATIONS,
        "raw_path": GENERATIONS.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    await create_app("teams", world.res)(scope, receive, send)
