"""What holds for every route: who may call, the shape of every refusal, and that no secret ever comes out."""

import contextlib
import io
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import structlog

from app.lib.logs import set_up_logs
from app.simulator import BEIJING
from app.teams.keys import new_key
from app.teams.teams import issue_key, revoke_key
from tests.api.parts import scripted_upstream, without_database
from tests.world import ADMIN_TOKEN, CREATE_PATH, SECRET_KEY, World

PROTECTED = (("POST", CREATE_PATH), ("GET", "/api/v1/tasks/x"), ("GET", "/v1/usage"))
CANARY = "CANARY-prompt-7f3a"


async def statuses(world: World, **headers: Any) -> list[int]:
    """Ask every protected route; return what each answered."""
    return [answer.status_code for answer in await answers(world, **headers)]


async def answers(world: World, **headers: Any) -> list[httpx.Response]:
    return [await world.http.request(method, path, headers=headers) for method, path in PROTECTED]


def without_particulars(answer: httpx.Response) -> dict[str, Any]:
    return answer.json() | {"request_id": "", "instance": ""}


# --- keys ----------------------------------------------------------------------------------------------------------


async def test_without_a_key_every_route_says_so(world: World) -> None:
    for answer in await answers(world):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json().get("message", answer.json().get("detail")) == "No API-key provided."


async def test_no_answer_tells_what_is_wrong_with_a_key(world: World) -> None:
    good = world.keys["alpha"]
    expired_id, expired = await issue_key(world.res, "alpha", expires_in_days=1)
    await world.rows("UPDATE api_keys SET expires_at = created_at - interval '1 day' WHERE id = $1", expired_id)
    revoked_id, revoked = await issue_key(world.res, "alpha")
    await revoke_key(world.res, revoked_id)
    robbed_id, well_formed = await issue_key(world.res, "alpha")
    await world.rows("UPDATE api_keys SET secret_mac = $1 WHERE id = $2", b"x" * 32, robbed_id)
    id_of_alpha, secret_of_another = good.split("_")[1], new_key()[0].split("_", 2)[2]
    changed = good[:20] + ("a" if good[20] != "a" else "b") + good[21:]
    wrong = {
        "unknown": new_key()[0],
        "expired": expired,
        "revoked": revoked,
        "well formed, wrong secret": well_formed,
        "one character changed": changed,
        "another's secret": f"dg_{id_of_alpha}_{secret_of_another}",
        "cut": good[:-1],
        "longer": good + "a",
        "first twenty": good[:20],
        "upstream key": "sk-0123456789abcdef",
        "empty": "",
        "injection": "' OR (SELECT pg_sleep(8)) IS NOT NULL --",
        "endless": "a" * 100_000,
    }
    await answers(world, **world.headers())  # the good one is known, and helps none of the others
    seen = {name: await answers(world, Authorization=f"Bearer {key}") for name, key in wrong.items()}
    first = [without_particulars(answer) for answer in seen["unknown"]]
    assert {name: [answer.status_code for answer in got] for name, got in seen.items()} == dict.fromkeys(
        wrong, [401] * 3
    )
    for name, got in seen.items():
        assert [without_particulars(answer) for answer in got] == first, name
    assert world.sim.truth.journal.read(operation="create") == []


async def test_a_key_is_taken_from_the_bearer_header_alone(world: World) -> None:
    key = world.keys["alpha"]
    assert await statuses(world, Authorization=f"bearer  {key}") != [401] * 3
    for headers in (
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Cookie": f"key={key}"},
        {"X-Api-Key": key},
    ):
        assert await statuses(world, **headers) == [401] * 3
    answer = await world.http.get("/v1/usage", params={"api_key": key, "Authorization": f"Bearer {key}"})
    assert answer.status_code == 401


async def test_odd_bytes_in_a_key_are_a_401(world: World) -> None:
    for odd in (
        b"Bearer caf\xe9",
        "Bearer \u202e\U0001f600".encode(),
        b"Bearer " + world.keys["alpha"].encode() + b"\x00",
    ):
        assert await statuses(world, Authorization=odd) == [401] * 3


async def test_two_authorization_headers_are_refused_even_if_both_are_right(world: World) -> None:
    pair = [("Authorization", f"Bearer {world.keys['alpha']}")] * 2
    for method, path in PROTECTED:
        assert (await world.http.request(method, path, headers=pair)).status_code == 400


async def test_a_revoked_key_stops_within_five_seconds_where_it_was_in_use(world: World) -> None:
    sent = world.headers()
    assert (await world.http.get("/v1/usage", headers=sent)).status_code == 200
    key_id = world.keys["alpha"].split("_")[1]
    # by another process: this one's cache hears nothing of it
    await world.rows("UPDATE api_keys SET revoked_at = now() WHERE id = $1", key_id)
    world.sim.advance(5)
    assert await statuses(world, **sent) == [401] * 3


async def test_a_key_expires_on_its_instant_even_while_it_is_cached(world: World) -> None:
    _, key = await issue_key(world.res, "alpha", expires_in_days=1)
    sent = {"Authorization": f"Bearer {key}"}
    world.sim.advance(86_399)
    assert (await world.http.get("/v1/usage", headers=sent)).status_code == 200
    world.sim.advance(1)
    assert (await world.http.get("/v1/usage", headers=sent)).status_code == 401


async def test_a_task_whose_key_was_revoked_is_finished_and_stays_its_teams(world: World) -> None:
    task_id = await world.create()
    await revoke_key(world.res, world.keys["alpha"].split("_")[1])
    _, world.keys["alpha"] = await issue_key(world.res, "alpha")
    assert await world.finish(task_id) == "SUCCEEDED"
    assert (await world.row("SELECT quantity FROM ledger_entries"))["quantity"] == 1


async def test_a_key_that_cannot_be_checked_is_a_503_on_every_route(world: World) -> None:
    async with without_database(world) as (_, teams, _):
        for method, path in PROTECTED:
            answer = await teams.request(method, path, headers=world.headers())
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


# --- shapes --------------------------------------------------------------------------------------------------------


async def test_an_unknown_path_is_a_404_in_the_shape_of_its_neighbours(world: World) -> None:
    for path in ("/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/tasks/a/b", "/api/v1/tasks%2f..%2fadmin"):
        answer = await world.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound"), path
        assert answer.json().keys() == {"code", "message", "request_id"}
    for path in ("/", "/v1/nothing", "/api/v1x", "/api/v2/tasks/x", "/API/v1/tasks/x"):
        answer = await world.http.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
        assert answer.json().keys() == {"type", "title", "status", "detail", "instance"}


async def test_an_unknown_method_is_a_405_that_names_the_known_ones(world: World) -> None:
    for method, path, allowed in (("GET", CREATE_PATH, "POST"), ("POST", "/api/v1/tasks/x", "GET")):
        answer = await world.http.request(method, path, headers=world.headers())
        assert (answer.status_code, answer.json()["code"]) == (405, "MethodNotAllowed")
        assert answer.headers["allow"] == allowed
    for method in ("TRACE", "OPTIONS", "PUT", "BREW"):
        assert (await world.http.request(method, CREATE_PATH)).status_code == 405
    answer = await world.http.delete("/v1/usage")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert answer.headers["allow"] == "GET"


async def test_a_method_cannot_be_overridden_by_a_header(world: World) -> None:
    sent = world.headers(**{"X-HTTP-Method-Override": "POST", "X-Original-URL": "/admin/v1/usage"})
    assert (await world.http.get(CREATE_PATH, headers=sent)).status_code == 405


async def test_every_answer_carries_the_id_of_its_request_and_may_not_be_cached(world: World) -> None:
    for path in ("/api/v1/tasks/x", "/api/v1/nothing", "/v1/usage", "/nothing"):
        first, second = [await world.http.get(path, headers={"X-Request-Id": "mine"}) for _ in range(2)]
        assert first.headers["x-request-id"] != second.headers["x-request-id"]
        assert first.headers["x-request-id"] != "mine"
        assert first.headers["cache-control"] == "no-store"
        assert first.json().get("request_id") in (None, first.headers["x-request-id"])


async def test_no_answer_names_the_software_behind_it(world: World) -> None:
    for path in ("/livez", "/nothing", "/api/v1/tasks/x"):
        answer = await world.http.get(path)
        assert not answer.headers.keys() & {"server", "x-powered-by"}


async def test_what_is_not_known_is_never_echoed(world: World) -> None:
    evil = "<script>alert(1)</script>"
    sent = {**world.headers(), "X-DashScope-Async": "enable", "X-Dashgate-Region": evil, "X-Dashgate-Tag": evil}
    for answer in (
        await world.http.post(CREATE_PATH, json={"model": evil}, headers=sent),
        await world.http.get("/v1/usage", params={"month": evil}, headers=world.headers()),
        await world.http.get("/assets/x/1.png", params={"signature": evil, "expires": evil}),
    ):
        assert answer.status_code in (400, 404)
        assert "script" not in answer.text


# --- secrets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """Everything that is logged at debug level, from here on."""
    ours, handlers = structlog.get_config(), list(logging.root.handlers)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        set_up_logs("debug")
    yield written.getvalue
    structlog.configure(**ours)
    logging.root.handlers[:] = handlers


async def _happy_and_sad(world: World) -> list[httpx.Response]:
    """Drive a whole life and every kind of refusal, each with the canary in its prompt; return all answers."""
    got: list[httpx.Response] = []

    async def read_all(task_id: str) -> None:
        got.append(await world.http.get(f"/api/v1/tasks/{task_id}", headers=world.headers()))

    task_id = await world.create(CANARY)
    await read_all(task_id)
    await world.finish(task_id)
    await read_all(task_id)
    got += [await world.http.get(link) for link in await world.links(task_id)]
    got.append(await world.http.get((await world.links(task_id))[0].replace("signature=", "signature=x")))
    for kind in ("429", "5xx", "lost_answer"):
        world.sim.fail_next("create", kind)
        got.append(await world.post(world.order(CANARY)))
        await world.advance(6)
    got.append(await world.post(world.order(CANARY, n=99)))
    got.append(await world.http.post(CREATE_PATH, content=CANARY, headers=world.headers()))
    got.append(await world.http.post(CREATE_PATH, json={"model": CANARY}, headers=world.headers()))
    world.sim.fail_next("query", "5xx")
    world.sim.fail_next("file", "5xx")
    got.append(await world.post(world.order(CANARY)))
    await world.advance(3)
    await world.advance(3)
    got += [await world.http.get(path, headers=world.headers()) for path in ("/v1/usage", "/readyz", "/nothing")]
    got += [await world.operators.get(path) for path in ("/metrics", "/readyz", "/admin/v1/usage")]
    got += await answers(world, Authorization="Bearer sk-not-ours-0123456789")
    async with without_database(world) as (_, teams, operators):
        got.append(await teams.post(CREATE_PATH, json=world.order(CANARY), headers=world.headers()))
        got.append(await operators.get("/readyz"))
    async with scripted_upstream(world) as upstream:
        upstream.create = (401, b'{"code":"InvalidApiKey","message":"sk-sim-beijing is wrong","request_id":"1"}')
        got.append(await world.post(world.order(CANARY)))
    return got


async def test_no_secret_is_in_any_answer_or_log_line(world: World, logged: Callable[[], str]) -> None:
    got = await _happy_and_sad(world)
    lines = logged()
    assert "task.finished" in lines  # it was really listened to
    sent_back = "".join(f"{answer.headers} {answer.text}" for answer in got)

    keys = [key.split("_", 2)[2] for key in world.keys.values()]
    upstream_links = [picture.query for task in world.sim.truth.tasks for picture in task.pictures]
    secrets = [world.sim.key(BEIJING), SECRET_KEY, ADMIN_TOKEN, *keys, *upstream_links, "OSSAccessKeyId"]
    assert [secret for secret in secrets if secret in sent_back] == []

    own_signatures = re.findall(r"signature=([\w-]{43})", sent_back)
    assert own_signatures
    assert [secret for secret in [*secrets, *own_signatures, CANARY, "sk-not-ours"] if secret in lines] == []


async def test_no_secret_stands_in_the_database_in_clear(world: World) -> None:
    await world.finish(await world.create(CANARY))
    tables = await world.rows("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    for table in tables:
        rows = await world.rows(f"SELECT t::text AS row FROM {table['name']} AS t")  # noqa: S608
        text = "".join(row["row"] for row in rows)
        # bytea shows as hexadecimal: so does what is looked for
        for secret in (world.sim.key(BEIJING), CANARY, "OSSAccessKeyId", world.keys["alpha"].split("_", 2)[2][:43]):
            assert secret not in text, table
            assert secret.encode().hex() not in text, table


async def test_a_surprise_of_ours_is_a_500_without_details_and_one_error_line(
    world: World, logged: Callable[[], str]
) -> None:
    await world.rows("UPDATE account_keys SET secret = '\\x00'")  # sealed with no key we know
    world.res.accounts.clear()
    answer = await world.post(world.order(CANARY))
    assert (answer.status_code, answer.json()["code"]) == (500, "InternalError")
    assert answer.json()["message"] == "The gateway met an error of its own. It has been recorded."
    errors = [line for line in logged().splitlines() if '"level": "error"' in line]
    assert len(errors) == 1
    assert answer.json()["request_id"] in errors[0]
