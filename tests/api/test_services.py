"""POST /api/v1/services/…: what a create answers, what it leaves behind, and what leaves the house."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.routing.accounts import NewAccount, add_account
from app.simulator import BEIJING, SINGAPORE, Simulator
from app.teams.teams import issue_key
from tests.api.parts import receipt, scripted_upstream, without_database
from tests.world import CREATE_PATH, World, open_world

NO_ACCOUNT: dict[str, Any] = {"regions": ()}
DEEP = b"[" * 200_000 + b"]" * 200_000


async def send(world: World, body: bytes, **headers: Any) -> httpx.Response:
    sent = {**world.headers(), "X-DashScope-Async": "enable", "Content-Type": "application/json", **headers}
    return await world.http.post(CREATE_PATH, content=body, headers=sent)


async def states(world: World) -> list[str]:
    return [row["state"] for row in await world.rows("SELECT state FROM tasks ORDER BY created_at")]


def sent_upstream(world: World) -> int:
    return len(world.sim.truth.journal.read(operation="create"))


async def expect_nothing_happened(world: World) -> None:
    assert await states(world) == []
    assert await world.rows("SELECT kind FROM work WHERE kind IN ('submit', 'deliver')") == []
    assert sent_upstream(world) == 0


def expect_error(answer: httpx.Response, status: int, code: str) -> str:
    """Expect an error in DashScope's shape that nobody may repeat; return its message."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json().keys() == {"code", "message", "request_id"}
    assert answer.headers["x-should-retry"] == "false"
    return str(answer.json()["message"])


async def add_wrong_account(world: World, key: str, *, name: str = "wrong", region: str = BEIJING) -> None:
    base_url = world.sim.base_url(BEIJING)
    await add_account(world.res, NewAccount(name=name, region=region, base_url=base_url, api_key=key))


# --- accepted ------------------------------------------------------------------------------------------------------


async def test_a_create_answers_in_the_upstreams_shape_with_our_id(world: World) -> None:
    answer = await world.post(world.order())
    body = answer.json()
    task_id = body["output"]["task_id"]
    assert answer.status_code == 200
    assert body == {"request_id": body["request_id"], "output": {"task_status": "PENDING", "task_id": task_id}}
    assert answer.headers["X-Dashgate-Task-Id"] == task_id
    assert answer.headers["x-request-id"] == body["request_id"]
    assert task_id != world.sim.truth.tasks[0].id


async def test_an_accepted_create_is_never_sent_again_by_the_sdk_nor_kept_by_a_cache(world: World) -> None:
    answer = await world.post(world.order())
    assert (answer.headers["x-should-retry"], answer.headers["cache-control"]) == ("false", "no-store")


async def test_the_body_travels_byte_for_byte_under_our_own_key(world: World) -> None:
    body = b'{"model":"wan2.6-image", "unknown":1.50,\n"input":{"text":"\\u4e2d \xe4\xb8\xad"}}'
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        assert (await send(world, body)).status_code == 200
    (request,) = upstream.received
    assert request.body == body
    assert request.headers["authorization"] == f"Bearer {world.sim.key(BEIJING)}"
    assert request.path == CREATE_PATH


async def test_only_the_headers_that_the_upstream_acts_on_are_passed_on(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        given = {"X-DashScope-OssResourceResolve": "enable", "X-DashScope-WorkSpace": "theirs", "Cookie": "a=b"}
        await world.post(world.order(), **given, **{"X-Forwarded-For": "10.0.0.1"})
    headers = upstream.received[0].headers
    assert headers["x-dashscope-ossresourceresolve"] == "enable"
    assert not headers.keys() & {"x-dashscope-workspace", "cookie", "x-forwarded-for", "x-dashgate-tag"}


async def test_a_header_with_characters_that_cannot_be_passed_on_is_refused(world: World) -> None:
    odd = {"X-DashScope-DataInspection": b"caf\xe9"}
    expect_error(await send(world, json.dumps(world.order()).encode(), **odd), 400, "InvalidParameter")
    await expect_nothing_happened(world)


async def test_a_tag_stands_on_the_task_and_on_its_ledger_line(world: World) -> None:
    answer = await world.post(world.order(), **{"X-Dashgate-Tag": "project/7:a"})
    await world.finish(answer.json()["output"]["task_id"])
    for table in ("tasks", "ledger_entries", "usage_daily"):
        assert (await world.row(f"SELECT tag FROM {table}"))["tag"] == "project/7:a"  # noqa: S608


async def test_a_malformed_tag_is_refused(world: World) -> None:
    body = json.dumps(world.order()).encode()
    for tag in ("two words", "a" * 101, "semi;colon", b"caf\xe9"):
        expect_error(await send(world, body, **{"X-Dashgate-Tag": tag}), 400, "InvalidParameter")
    await expect_nothing_happened(world)


async def test_a_throttled_create_is_answered_as_pending_and_waits_here(world: World) -> None:
    world.sim.fail_next("create", "429")
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")
    assert answer.headers["x-should-retry"] == "false"
    assert await states(world) == ["queued"]


@pytest.mark.parametrize(("kind", "details"), [("lost_answer", {}), ("5xx", {}), ("5xx", {"processed": True})])
async def test_a_create_whose_answer_was_lost_is_answered_as_pending_and_in_doubt(
    world: World, kind: str, details: dict[str, Any]
) -> None:
    world.sim.fail_next("create", kind, **details)
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")
    assert answer.headers["x-should-retry"] == "false"
    assert await states(world) == ["doubtful"]


NO_ANSWERS = {
    "page": (200, b"<html>welcome</html>"),
    "empty": (200, b"{}"),
    "number": (200, b'{"output":{"task_id":7}}'),
    "path": (200, b'{"output":{"task_id":"../x"}}'),
    "endless": (200, b'{"output":{"task_id":"' + b"x" * 2_000_000 + b'"}}'),
    "deep": (200, b'{"output":' + DEEP + b"}"),
    "proxy": (403, b"<html>a proxy says no</html>"),
    "redirect": (302, b""),
}


async def test_an_answer_that_is_none_leaves_the_task_in_doubt(world: World) -> None:
    seen = {}
    async with scripted_upstream(world) as upstream:
        for name, upstream.create in NO_ANSWERS.items():
            answer = await world.post(world.order())
            assert answer.json()["output"]["task_status"] == "PENDING", name
            seen[name] = (await world.row("DELETE FROM tasks RETURNING state"))["state"]
            await world.rows("DELETE FROM account_models")  # its pause of five seconds
    assert seen == dict.fromkeys(NO_ANSWERS, "doubtful")


async def test_a_create_while_the_upstream_cannot_be_reached_waits_here(world: World) -> None:
    async with scripted_upstream(world):
        pass  # it is gone again
    answer = await world.post(world.order())
    assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING")
    assert await states(world) == ["queued"]


# --- which region and account --------------------------------------------------------------------------------------


@pytest.fixture
async def two_regions(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(still_sim, database_url, tmp_path, regions=(BEIJING, SINGAPORE)) as world:
        yield world


async def test_without_a_word_the_teams_default_region_is_called(two_regions: World) -> None:
    await two_regions.create()
    assert [task.region for task in two_regions.sim.truth.tasks] == [BEIJING]


async def test_the_region_asked_for_is_called(two_regions: World) -> None:
    await two_regions.post(two_regions.order(), **{"X-Dashgate-Region": SINGAPORE})
    assert [task.region for task in two_regions.sim.truth.tasks] == [SINGAPORE]
    assert (await two_regions.row("SELECT region FROM tasks"))["region"] == SINGAPORE


async def test_a_region_that_is_not_the_teams_is_refused(world: World) -> None:
    answer = await world.post(world.order(), **{"X-Dashgate-Region": SINGAPORE})
    assert "region" in expect_error(answer, 400, "InvalidParameter")
    await expect_nothing_happened(world)


async def test_a_model_that_no_allowed_region_offers_is_refused_naming_the_regions_that_do(
    still_sim: Simulator, database_url: str, tmp_path: Path
) -> None:
    catalogue = tmp_path / "more.toml"
    catalogue.write_text(
        '[models.far]\npath = "aigc/image-generation/generation"\nunit = "image"\n'
        'most = [{ parameter = "n", default = 1 }]\n'
        "[models.far.regions]\nus-east-1 = { rps = 1, running = 1 }\neu-central-1 = { rps = 1, running = 1 }\n"
    )
    async with open_world(still_sim, database_url, tmp_path, catalogue_file=catalogue) as world:
        message = expect_error(await world.post({"model": "far"}), 400, "InvalidParameter")
        assert "eu-central-1, us-east-1" in message
        await expect_nothing_happened(world)


async def test_the_second_account_of_a_region_takes_over_when_the_first_is_at_fault(world: World) -> None:
    await add_wrong_account(world, "sk-wrong", name="a")
    await world.rows("UPDATE accounts SET weight = 0 WHERE name <> 'a'")  # the wrong one is asked first
    world.res.accounts.clear()
    answers = [await world.post(world.order()) for _ in range(2)]
    assert [answer.json()["output"]["task_status"] for answer in answers] == ["PENDING", "PENDING"]
    await world.drain()
    assert (len(world.sim.truth.tasks), await states(world)) == (2, ["running", "running"])


# --- refused by us -------------------------------------------------------------------------------------------------


async def test_a_model_that_the_key_may_not_call_is_denied(world: World) -> None:
    _, world.keys["alpha"] = await issue_key(world.res, "alpha", models=["qwen-*"])
    expect_error(await world.post(world.order()), 403, "AccessDenied")
    await expect_nothing_happened(world)


async def test_a_model_that_the_team_may_not_call_is_denied_whatever_its_key_says(world: World) -> None:
    await world.rows("UPDATE teams SET models = '{qwen-*}' WHERE slug = 'alpha'")
    expect_error(await world.post(world.order()), 403, "AccessDenied")
    assert (await world.post(world.order(), "beta")).status_code == 200


async def test_a_model_that_is_not_in_the_catalogue_is_not_found(world: World) -> None:
    for model in ("no-such-model", "wan2.6-image ", "../wan2.6-image", "w\u0430n2.6-image"):
        expect_error(await world.post({**world.order(), "model": model}), 400, "ModelNotFound")
    await expect_nothing_happened(world)


async def test_a_model_that_is_no_name_is_refused(world: World) -> None:
    for model in (None, 7, "", ["wan2.6-image"], "m" * 10_000):
        expect_error(await world.post({**world.order(), "model": model}), 400, "InvalidParameter")
    await expect_nothing_happened(world)


async def test_a_model_called_at_another_path_is_refused_in_the_upstreams_words(world: World) -> None:
    sent = world.headers(**{"X-DashScope-Async": "enable"})
    for path in ("aigc/text2image/image-synthesis", "aigc/image-generation", "%2e%2e/tasks"):
        answer = await world.http.post(f"/api/v1/services/{path}", json=world.order(), headers=sent)
        assert "url error" in expect_error(answer, 400, "InvalidParameter")
    await expect_nothing_happened(world)


async def test_an_encrypted_body_is_refused(world: World) -> None:
    answer = await world.post(world.order(), **{"X-DashScope-EncryptionKey": "{}"})
    expect_error(answer, 400, "InvalidParameter")
    await expect_nothing_happened(world)


BAD_JSON = {
    "NaN": b'{"model":"wan2.6-image","parameters":{"n":NaN}}',
    "Infinity": b'{"model":"wan2.6-image","parameters":{"n":Infinity}}',
    "-Infinity": b'{"model":"wan2.6-image","parameters":{"n":-Infinity}}',
    "1e400": b'{"model":"wan2.6-image","parameters":{"n":1e400}}',
    "-1e400": b'{"model":"wan2.6-image","parameters":{"n":-1e400}}',
    "5000 digits": b'{"model":"wan2.6-image","parameters":{"n":' + b"9" * 5000 + b"}}",
    "NUL": b'{"model":"wan2.6-image","input":"\\u0000"}',
    "raw NUL": b'{"model":"wan2.6-image","input":"\x00"}',
    "NUL in a key": b'{"model":"wan2.6-image","a\\u0000":1}',
    "lone high": b'{"model":"wan2.6-image","input":"\\ud83d"}',
    "lone low": b'{"model":"wan2.6-image","input":["\\uDE00"]}',
    "lone in a key": b'{"model":"wan2.6-image","\\ud800":1}',
    "NUL far down": b'{"model":"wan2.6-image","input":' + b"[" * 800 + b'"\\u0000"' + b"]" * 800 + b"}",
    "twice": b'{"model":"wan2.6-image","model":"qwen"}',
    "twice inside": b'{"model":"wan2.6-image","parameters":{"n":1,"n":4}}',
    "twice by escape": b'{"model":"wan2.6-image","m\\u006fdel":"qwen"}',
    "deep list": b'{"model":"wan2.6-image","input":' + DEEP + b"}",
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "null": b"null",
    "list": b"[]",
    "text": b'"x"',
    "number": b"1",
    "empty": b"",
    "cut": b'{"model":"wan2.6-image"',
    "trailing": b'{"model":"wan2.6-image"} x',
    "two": b'{"model":"wan2.6-image"}{"model":"wan2.6-image"}',
    "latin-1": '{"model":"wan2.6-image","input":"\u00e9"}'.encode("latin-1"),
    "utf-16": '{"model":"wan2.6-image"}'.encode("utf-16"),
    "utf-32": '{"model":"wan2.6-image"}'.encode("utf-32"),
    "BOM": b"\xef\xbb\xbf" + b'{"model":"wan2.6-image"}',
    "raw surrogate": b'{"model":"wan2.6-image","input":"\xed\xa0\xbd"}',
    "overlong": b'{"model":"wan2.6-image","input":"\xc0\x80"}',
    "comment": b'{"model":"wan2.6-image"} // x',
    "control": b'{"model":"wan2.6-image","input":"\n"}',
    "large and bad": b'{"model":"wan2.6-image","n":NaN,"input":"' + b"x" * 300_000 + b'"}',
}


async def test_a_body_that_is_not_one_strict_json_object_is_refused(world: World) -> None:
    answers = {name: await send(world, body) for name, body in BAD_JSON.items()}
    seen = {name: (answer.status_code, answer.json().get("code")) for name, answer in answers.items()}
    assert seen == dict.fromkeys(BAD_JSON, (400, "InvalidParameter"))
    await expect_nothing_happened(world)


async def test_an_escaped_backslash_before_a_u_is_plain_text(world: World) -> None:
    order = world.order(prompt="write \\u0000 and \U0001f600, please")
    assert (await send(world, json.dumps(order).encode())).status_code == 200


async def test_a_body_of_another_type_is_refused(world: World) -> None:
    body = json.dumps(world.order()).encode()
    for content_type in ("text/plain", "", "application/x-www-form-urlencoded", "text/xml", "application/jsonp"):
        expect_error(await send(world, body, **{"Content-Type": content_type}), 415, "UnsupportedMediaType")
    await expect_nothing_happened(world)


async def test_the_usual_spellings_of_json_are_taken(world: World) -> None:
    body = json.dumps(world.order()).encode()
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert (await send(world, body, **{"Content-Type": content_type})).status_code == 200


async def test_an_encoded_body_is_refused(world: World) -> None:
    body = gzip.compress(json.dumps(world.order()).encode())
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, identity"):
        expect_error(await send(world, body, **{"Content-Encoding": encoding}), 415, "UnsupportedMediaType")
    await expect_nothing_happened(world)


@pytest.fixture
async def small(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway that takes bodies of at most 2,000 bytes."""
    async with open_world(still_sim, database_url, tmp_path, body_limit_bytes=2_000) as world:
        yield world


async def test_a_body_that_says_it_is_too_large_is_refused_unread(small: World) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    sent = small.headers(**{"Content-Type": "application/json", "Content-Length": "2001"})
    answer = await small.http.post(CREATE_PATH, content=unread(), headers=sent)
    expect_error(answer, 413, "RequestTooLarge")
    await expect_nothing_happened(small)


async def test_an_endless_body_is_read_no_further_than_the_limit(small: World) -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 100
            assert given < 1_000_000
            yield b"x" * 100

    sent = small.headers(**{"Content-Type": "application/json"})
    expect_error(await small.http.post(CREATE_PATH, content=endless(), headers=sent), 413, "RequestTooLarge")
    await expect_nothing_happened(small)


async def test_a_body_of_exactly_the_limit_is_taken(small: World) -> None:
    body = json.dumps(small.order()).encode()
    assert (await send(small, body + b" " * (2_000 - len(body)))).status_code == 200


# --- refused by the upstream ---------------------------------------------------------------------------------------


async def test_the_upstreams_own_refusal_of_a_request_passes_unchanged(world: World) -> None:
    verdict = b'{"request_id":"abc",\n "message":"n must be \xe4\xb8\xad", "code":"InvalidParameter", "more":[1.0]}'
    async with scripted_upstream(world) as upstream:
        upstream.create = (422, verdict)
        answer = await world.post(world.order())
    assert (answer.status_code, answer.content) == (422, verdict)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-should-retry"] == "false"


async def test_a_bad_parameter_is_refused_at_once_with_the_upstreams_request_id(world: World) -> None:
    answer = await world.post(world.order(n=99))
    assert expect_error(answer, 400, "InvalidParameter") == "n must be an integer between 1 and 4"
    assert (await world.row("SELECT upstream_request_id AS id FROM tasks"))["id"] == answer.json()["request_id"]


async def test_a_task_that_was_refused_in_its_creates_answer_is_shown_to_operators_alone(world: World) -> None:
    await world.post(world.order(n=99))
    await world.drain()
    task = await world.row("SELECT id, state, refused_inline, code FROM tasks")
    assert (task["state"], task["refused_inline"], task["code"]) == ("failed", True, "InvalidParameter")
    assert await world.status(str(task["id"])) == "UNKNOWN"
    for table in ("webhook_events", "ledger_entries", "usage_daily"):
        assert await world.rows(f"SELECT * FROM {table}") == []  # noqa: S608


async def test_a_refused_create_leaves_no_work_and_takes_no_room(world: World) -> None:
    await world.post(world.order(n=99))
    assert await world.rows("SELECT kind FROM work WHERE kind = 'submit'") == []
    await world.create()
    assert await states(world) == ["failed", "pending"]


# --- our account at fault ------------------------------------------------------------------------------------------


@pytest.fixture
async def unpaid(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway whose only account has a key that the upstream does not know."""
    async with open_world(still_sim, database_url, tmp_path, **NO_ACCOUNT) as world:
        await add_wrong_account(world, "sk-wrong-canary")
        yield world


async def test_a_key_of_ours_that_the_upstream_refuses_is_not_the_callers_affair(unpaid: World) -> None:
    answer = await unpaid.post(unpaid.order())
    message = expect_error(answer, 503, "Dashgate.UpstreamAccount")
    assert "key" not in message.lower()
    assert "wrong" not in answer.text
    assert "InvalidApiKey" not in answer.text


@pytest.mark.parametrize(
    ("status", "code"), [(400, "Arrearage"), (403, "AccessDenied.Unpurchased"), (429, "PostpaidBillOverdue")]
)
async def test_an_account_without_money_or_rights_is_a_503_that_tells_nothing(
    world: World, status: int, code: str
) -> None:
    secret = {"code": code, "message": "account 1000000000000001 of sk-own owes 12.50", "request_id": "abc"}
    async with scripted_upstream(world) as upstream:
        upstream.create = (status, json.dumps(secret).encode())
        answer = await world.post(world.order())
    expect_error(answer, 503, "Dashgate.UpstreamAccount")
    assert not any(part in answer.text for part in (code, "1000000000000001", "12.50", "abc"))


async def test_an_account_at_fault_is_asked_nothing_more_until_its_pause_is_over(unpaid: World) -> None:
    await unpaid.post(unpaid.order())
    answer = await unpaid.post(unpaid.order())
    expect_error(answer, 503, "Dashgate.UpstreamAccount")
    assert (sent_upstream(unpaid), await states(unpaid)) == (1, ["failed"])
    await unpaid.advance(61)
    await unpaid.post(unpaid.order())
    assert sent_upstream(unpaid) == 2


async def test_the_operator_reads_which_account_is_at_fault_and_why(unpaid: World) -> None:
    await unpaid.post(unpaid.order())
    paused = await unpaid.row("SELECT name, paused_reason FROM accounts WHERE paused_until IS NOT NULL")
    assert (paused["name"], paused["paused_reason"]) == ("wrong", "InvalidApiKey")


async def test_without_any_account_a_create_is_a_503_and_stores_nothing(
    still_sim: Simulator, database_url: str, tmp_path: Path
) -> None:
    async with open_world(still_sim, database_url, tmp_path, **NO_ACCOUNT) as world:
        expect_error(await world.post(world.order()), 503, "Dashgate.UpstreamAccount")
        await expect_nothing_happened(world)


# --- the database away ---------------------------------------------------------------------------------------------


async def test_a_create_while_the_database_is_away_sends_nothing_and_may_be_repeated(world: World) -> None:
    await world.http.get("/api/v1/tasks/x", headers=world.headers())  # the key is known for three seconds
    async with without_database(world) as (_, teams, _):
        sent = world.headers(**{"X-DashScope-Async": "enable"})
        answer = await teams.post(CREATE_PATH, json=world.order(), headers=sent)
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "true")
    await expect_nothing_happened(world)


async def test_a_key_that_cannot_be_checked_is_a_503_and_never_a_401(world: World) -> None:
    async with without_database(world) as (_, teams, _):
        answer = await teams.post(CREATE_PATH, json=world.order(), headers=world.headers())
    assert (answer.status_code, answer.json()["code"]) == (503, "ServiceUnavailable")
    await expect_nothing_happened(world)
