"""GET /api/v1/uploads and POST /uploads/{id}: whose folder it is, what leaves the house, and what never does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest

from app.routing.keys import add_key
from app.simulator import BEIJING, SINGAPORE, Simulator
from tests.api.parts import without_database
from tests.world import World, open_world

MODEL = "wan2.6-image"
CONTENT = b"not really\r\n--a picture--\r\n"
FILE_LIFE_HOURS = 48


async def ask(world: World, team: str = "alpha", **changes: str) -> httpx.Response:
    headers = {name: changes.pop(name) for name in list(changes) if name.startswith("X-")}
    wanted = {"action": "getPolicy", "model": MODEL, **changes}
    return await world.http.get("/api/v1/uploads", params=wanted, headers=world.headers(team, **headers))


async def policy(world: World, team: str = "alpha", **changes: str) -> dict[str, Any]:
    answer = await ask(world, team, **changes)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["data"])


def form(given: dict[str, Any], name: str = "cup.png", **changes: str | None) -> dict[str, str]:
    """Fill in the form that a policy asks for; `changes` are fields to set otherwise, or to leave out."""
    fields = {
        "OSSAccessKeyId": given["oss_access_key_id"],
        "Signature": given["signature"],
        "policy": given["policy"],
        "key": f"{given['upload_dir']}/{name}",
        "x-oss-object-acl": given["x_oss_object_acl"],
        "x-oss-forbid-overwrite": given["x_oss_forbid_overwrite"],
        "success_action_status": "200",
        "x-oss-content-type": "image/png",
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


async def send(
    world: World, given: dict[str, Any], content: bytes = CONTENT, name: str = "cup.png", **changes: str | None
) -> httpx.Response:
    fields = form(given, name, **changes)
    return await world.http.post(given["upload_host"], data=fields, files={"file": (name, content)})


def refusal(answer: httpx.Response) -> tuple[int, str | None]:
    """Expect a refusal in the words of the upstream's object storage; return its status and code."""
    assert answer.headers["content-type"] == "application/xml"
    error = ET.fromstring(answer.text)  # noqa: S314 -- our own words
    assert [part.tag for part in error] == ["Code", "Message", "RequestId"]
    assert error.findtext("RequestId") == answer.headers["x-request-id"]
    return answer.status_code, error.findtext("Code")


async def uploads(world: World) -> list[dict[str, Any]]:
    return await world.rows("SELECT * FROM uploads ORDER BY created_at")


async def move_account(world: World, host: str) -> None:
    """Let only this host take the account's files."""
    await world.rows("UPDATE accounts SET file_hosts = ARRAY[$1]", host)
    world.res.accounts.clear()


# --- the policy ----------------------------------------------------------------------------------------------------


async def test_a_policy_has_the_upstreams_shape_and_leads_to_us(world: World) -> None:
    answer = await ask(world)
    body = answer.json()
    straight = await asked_straight(world)
    assert body.keys() == {"request_id", "data"} == straight.keys()
    assert body["data"].keys() == straight["data"].keys()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"
    (row,) = await uploads(world)
    assert body["data"]["upload_host"] == f"http://gateway/uploads/{row['id']}"
    same = ("expire_in_seconds", "max_file_size_mb", "capacity_limit_mb", "x_oss_object_acl", "x_oss_forbid_overwrite")
    assert {name: body["data"][name] for name in same} == {name: straight["data"][name] for name in same}


async def asked_straight(world: World) -> dict[str, Any]:
    """What the upstream itself answers."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(
            f"{world.sim.base_url(BEIJING)}/uploads",
            params={"action": "getPolicy", "model": MODEL},
            headers={"Authorization": f"Bearer {world.sim.key(BEIJING)}"},
        )
    return dict(answer.json())


async def test_a_row_says_whose_the_folder_is_and_how_long_its_files_live(world: World) -> None:
    given = await policy(world)
    (row,) = await uploads(world)
    now = world.res.clock.now()
    assert (row["folder"], row["model"]) == (given["upload_dir"], MODEL)
    assert row["team_id"] == (await world.row("SELECT id FROM teams WHERE slug = 'alpha'"))["id"]
    assert (row["policy_expires_at"] - now).total_seconds() == given["expire_in_seconds"]
    assert (row["expires_at"] - now).total_seconds() == FILE_LIFE_HOURS * 3600
    assert row["most_bytes"] == given["max_file_size_mb"] * 1024 * 1024


async def test_the_upstreams_credentials_never_leave_the_house(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        given = await policy(world)
        answer = await send(world, given)
    upstreams = list(world.sim.truth.temporary_store._grants)
    said = f"{given}{answer.headers}{answer.text}{caplog.text}{await uploads(world)}"
    assert len(upstreams) == 1
    assert upstreams[0] not in said
    assert "LTAI" not in said
    assert world.sim.file_host not in f"{given}{answer.headers}"


async def test_a_header_chooses_the_region_of_an_upload(
    still_sim: Simulator, database_url: str, tmp_path: Path
) -> None:
    async with open_world(still_sim, database_url, tmp_path, regions=(BEIJING, SINGAPORE)) as world:
        for region in (BEIJING, SINGAPORE):
            await policy(world, **{"X-Dashgate-Region": region})
        asked = [entry.region for entry in world.sim.truth.journal.read(operation="upload_policy")]
        assert asked == [BEIJING, SINGAPORE]
        assert (await ask(world, **{"X-Dashgate-Region": "us-east-1"})).json()["code"] == "InvalidParameter"


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "no-such-model"}, 400, "ModelNotFound"),
        ({"model": ""}, 400, "InvalidParameter"),
        ({"model": "m" * 201}, 400, "InvalidParameter"),
        ({"action": "other"}, 400, "InvalidParameter"),
    ],
)
async def test_a_request_for_a_policy_that_makes_no_sense_is_refused(
    world: World, changes: dict[str, str], status: int, code: str
) -> None:
    answer = await ask(world, **changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await uploads(world) == []


async def test_a_policy_needs_a_key_that_may_call_the_model(world: World) -> None:
    assert (await world.http.get("/api/v1/uploads?action=getPolicy&model=x")).status_code == 401
    await world.rows("UPDATE teams SET models = '{qwen-*}' WHERE slug = 'alpha'")
    world.res.api_keys.clear()
    assert (await ask(world)).json()["code"] == "AccessDenied"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"kind": "429"}, 429, "Throttling.RateQuota"),
        ({"kind": "5xx"}, 503, "ServiceUnavailable"),
        ({"kind": "lost_answer"}, 503, "ServiceUnavailable"),
        ({"kind": "garbage"}, 503, "ServiceUnavailable"),
        ({"kind": "garbage", "body": '{"data": {"policy": "p", "signature": "s"}}'}, 503, "ServiceUnavailable"),
        ({"kind": "error", "status": 401, "code": "InvalidApiKey"}, 503, "Dashgate.UpstreamAccount"),
        ({"kind": "error", "status": 400, "code": "Arrearage"}, 503, "Dashgate.UpstreamAccount"),
        ({"kind": "garbage", "status": 404, "body": "<html>"}, 400, "UnsupportedOperation"),
    ],
)
async def test_trouble_of_the_upstream_is_told_as_it_is_for_creates(
    world: World, fault: dict[str, Any], status: int, code: str
) -> None:
    world.sim.fail_next("upload_policy", **fault)
    answer = await ask(world)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["x-should-retry"] == (
        "true" if code in ("Throttling.RateQuota", "ServiceUnavailable") else "false"
    )
    assert ("retry-after" in answer.headers) == (answer.headers["x-should-retry"] == "true")
    assert await uploads(world) == []


async def test_the_upstreams_own_refusal_of_the_request_passes_unchanged(world: World) -> None:
    world.sim.fail_next("upload_policy", "error", status=400, code="InvalidParameter", message="not for this model")
    answer = await ask(world)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidParameter")
    assert answer.json()["message"] == "not for this model"
    assert answer.json()["request_id"] != answer.headers["x-request-id"]


async def test_a_key_that_is_refused_is_followed_by_the_accounts_next(world: World) -> None:
    await add_key(world.res, BEIJING, "sk-wrong")
    world.res.accounts.clear()
    await policy(world)
    statuses = [entry.status for entry in world.sim.truth.journal.read(operation="upload_policy")]
    assert statuses == [401, 200]


async def test_uploads_that_are_gone_upstream_are_forgotten_with_the_next_policy(world: World) -> None:
    await policy(world)
    await policy(world, "beta")
    world.sim.advance(FILE_LIFE_HOURS * 3600 + 1)
    kept = await policy(world)
    assert {row["folder"] for row in await uploads(world)} >= {kept["upload_dir"]}
    assert len(await uploads(world)) == 2  # beta's waits for beta


async def test_no_database_is_told_as_passing_trouble(world: World) -> None:
    given = await policy(world)
    async with without_database(world) as (_, teams, _):
        answer = await teams.post(given["upload_host"], data=form(given), files={"file": ("cup.png", CONTENT)})
    assert refusal(answer) == (503, "ServiceUnavailable")


# --- the file ------------------------------------------------------------------------------------------------------


async def test_a_file_arrives_upstream_whole_and_in_the_teams_folder(world: World) -> None:
    given = await policy(world)
    answer = await send(world, given, name="杯 1.png")
    assert (answer.status_code, answer.content) == (200, b"")
    (stored,) = world.sim.truth.uploads
    assert stored.key == f"{given['upload_dir']}/杯 1.png"
    assert (stored.sha256, stored.model) == (hashlib.sha256(CONTENT).hexdigest(), MODEL)


async def test_the_fields_travel_in_the_documented_order_with_the_file_last(world: World) -> None:
    await send(world, await policy(world))
    (entry,) = world.sim.truth.journal.read(operation="upload")
    assert list(entry.body) == [
        *("OSSAccessKeyId", "Signature", "policy", "key", "x-oss-object-acl", "x-oss-forbid-overwrite"),
        *("success_action_status", "x-oss-content-type"),
    ]
    assert entry.body["OSSAccessKeyId"] != "dashgate"


async def test_one_policy_takes_several_files_but_none_twice(world: World) -> None:
    given = await policy(world)
    answers = [await send(world, given, name=name) for name in ("a.png", "b.png", "a.png")]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    assert refusal(answers[2]) == (409, "FileAlreadyExists")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"Signature": "bm8="}, 403, "SignatureDoesNotMatch"),
        ({"Signature": None}, 403, "SignatureDoesNotMatch"),
        ({"policy": "e30="}, 403, "SignatureDoesNotMatch"),
        ({"OSSAccessKeyId": "LTAI"}, 403, "InvalidAccessKeyId"),
        ({"key": "elsewhere/cup.png"}, 403, "AccessDenied"),
        ({"key": "cup.png"}, 403, "AccessDenied"),
        ({"key": None}, 403, "AccessDenied"),
    ],
)
async def test_a_form_that_is_not_what_its_policy_says_is_refused_and_nothing_leaves(
    world: World, changes: dict[str, str | None], status: int, code: str
) -> None:
    answer = await send(world, await policy(world), **changes)
    assert refusal(answer) == (status, code)
    assert world.sim.truth.journal.read(operation="upload") == []


@pytest.mark.parametrize("name", ["..", "a/b.png", "", "x" * 256, "a\x00.png"])
async def test_only_a_plain_name_may_stand_in_the_folder(world: World, name: str) -> None:
    given = await policy(world)
    answer = await send(world, given, key=f"{given['upload_dir']}/{name}")
    assert refusal(answer)[0] in (400, 403)
    assert world.sim.truth.journal.read(operation="upload") == []


async def test_a_policy_ends(world: World) -> None:
    given = await policy(world)
    world.sim.advance(given["expire_in_seconds"])
    assert refusal(await send(world, given)) == (403, "AccessDenied")
    assert world.sim.truth.uploads == ()


async def test_one_uploads_policy_opens_no_other_upload(world: World) -> None:
    mine, theirs = await policy(world), await policy(world, "beta")
    answer = await send(world, {**mine, "upload_host": theirs["upload_host"], "upload_dir": theirs["upload_dir"]})
    assert refusal(answer) == (403, "SignatureDoesNotMatch")


async def test_a_file_above_the_policys_limit_is_refused_before_it_is_read(world: World) -> None:
    given = await policy(world)
    await world.rows("UPDATE uploads SET most_bytes = $1", len(CONTENT) - 1)
    assert refusal(await send(world, given)) == (400, "EntityTooLarge")
    await world.rows("UPDATE uploads SET most_bytes = $1", len(CONTENT))
    assert (await send(world, given)).status_code == 200


def as_multipart(fields: dict[str, str], content: bytes = CONTENT, *, end: str = "\r\n--b--\r\n") -> bytes:
    """Write a form by hand, with boundary `b`."""
    head = "".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields)
    head += '--b\r\nContent-Disposition: form-data; name="file"; filename="cup.png"\r\n\r\n'
    return head.encode() + content + end.encode()


async def in_pieces(body: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


SECOND_KEY = '\r\n--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nelsewhere/x\r\n--b--\r\n'


async def test_a_field_behind_the_file_goes_nowhere(world: World) -> None:
    given = await policy(world)
    body = as_multipart(form(given), end=SECOND_KEY)
    await world.http.post(
        given["upload_host"], content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert {stored.key for stored in world.sim.truth.uploads} <= {f"{given['upload_dir']}/cup.png"}
    keys = {entry.body["key"] for entry in world.sim.truth.journal.read(operation="upload") if entry.body}
    assert "elsewhere/x" not in keys


@pytest.mark.parametrize("end", ["", "\r\n--b", "\r\n--b--\r\nand more"])
async def test_a_form_that_does_not_end_with_its_file_leaves_no_file_upstream(world: World, end: str) -> None:
    given = await policy(world)
    body = as_multipart(form(given), end=end)
    answer = await world.http.post(
        given["upload_host"], content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert refusal(answer) == (400, "MalformedPOSTRequest")
    assert world.sim.truth.uploads == ()


async def test_a_form_may_end_without_a_line_end(world: World) -> None:
    given = await policy(world)
    content = CONTENT * 5_000
    body = as_multipart(form(given), content, end="\r\n--b--")
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(body))}
    answer = await world.http.post(given["upload_host"], content=in_pieces(body), headers=headers)
    assert answer.status_code == 200, answer.text
    (stored,) = world.sim.truth.uploads
    assert stored.sha256 == hashlib.sha256(content).hexdigest()


async def test_fields_behind_a_large_file_are_refused(world: World) -> None:
    given = await policy(world)
    body = as_multipart(form(given), CONTENT * 5_000, end=SECOND_KEY)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(body))}
    answer = await world.http.post(given["upload_host"], content=in_pieces(body), headers=headers)
    assert refusal(answer) == (400, "MalformedPOSTRequest")
    assert world.sim.truth.uploads == ()


async def test_a_form_of_another_type_of_unknown_length_or_with_a_field_twice_is_refused(world: World) -> None:
    given = await policy(world)
    content_type = {"Content-Type": "multipart/form-data; boundary=b"}
    body = as_multipart(form(given), CONTENT * 10)
    twice = body.replace(b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nx\r\n--b\r\n', 1)
    answers = [
        await world.http.post(given["upload_host"], content=body, headers={"Content-Type": "text/plain"}),
        await world.http.post(given["upload_host"], content=in_pieces(body, 100), headers=content_type),
        await world.http.post(given["upload_host"], content=twice, headers=content_type),
    ]
    assert [refusal(answer) for answer in answers] == [
        (412, "PreconditionFailed"),
        (411, "MissingContentLength"),
        (400, "MalformedPOSTRequest"),
    ]
    assert world.sim.truth.journal.read(operation="upload") == []


async def test_a_client_that_leaves_in_the_middle_leaves_no_file_upstream(world: World) -> None:
    given = await policy(world)
    body = as_multipart(form(given), b"x" * 300_000)

    async def broken_off() -> AsyncIterator[bytes]:
        yield body[:200_000]

    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(body))}
    answer = await world.http.post(given["upload_host"], content=broken_off(), headers=headers)
    assert refusal(answer) == (400, "MalformedPOSTRequest")
    assert world.sim.truth.uploads == ()


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"kind": "5xx"}, 503, "ServiceUnavailable"),
        ({"kind": "lost_answer"}, 503, "ServiceUnavailable"),
        ({"kind": "garbage", "status": 403, "body": "<html>"}, 503, "ServiceUnavailable"),
        (
            {"kind": "garbage", "status": 403, "body": "<Error><Code>SignatureDoesNotMatch</Code></Error>"},
            *(503, "Dashgate.UpstreamAccount"),
        ),
        (
            {
                "kind": "garbage",
                "status": 400,
                "body": "<Error><Code>EntityTooLarge</Code><Message>a &lt; b</Message><Secret>hush</Secret></Error>",
            },
            *(400, "EntityTooLarge"),
        ),
    ],
)
async def test_what_the_store_answers_is_told_without_its_secrets(
    world: World, fault: dict[str, Any], status: int, code: str
) -> None:
    given = await policy(world)
    world.sim.fail_next("upload", **fault)
    answer = await send(world, given)
    assert refusal(answer) == (status, code)
    assert "hush" not in answer.text
    if code == "EntityTooLarge":
        assert "a &lt; b" in answer.text


async def test_a_store_at_a_host_that_nobody_allowed_gets_nothing(world: World) -> None:
    given = await policy(world)
    await move_account(world, "elsewhere.example")
    assert refusal(await send(world, given)) == (503, "Dashgate.UpstreamAccount")
    assert world.sim.truth.journal.read(operation="upload") == []


# --- its size ------------------------------------------------------------------------------------------------------


@dataclass
class CountingStore:
    """A store that takes any form, and remembers its length and the hash of what came."""

    port: int = 0
    head: str = ""
    received_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.head = (await reader.readuntil(b"\r\n\r\n")).decode()
        stated = next(line for line in self.head.lower().split("\r\n") if line.startswith("content-length:"))
        left = int(stated.split(":")[1])
        while left:
            chunk = await reader.read(min(left, 65_536))
            left -= len(chunk)
            self.received_bytes += len(chunk)
            self.digest.update(chunk)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def counting_store(world: World) -> AsyncIterator[CountingStore]:
    """Put a counting store in the place of the simulator's."""
    store = CountingStore()
    listener = await asyncio.start_server(store.serve, "127.0.0.1", 0)
    store.port = listener.sockets[0].getsockname()[1]
    host = f"127.0.0.1:{store.port}"
    await move_account(world, host)
    async with listener:
        yield store


async def test_a_large_file_is_never_whole_in_memory(world: World) -> None:
    size = 60 * 1024 * 1024
    piece = b"0123456789abcdef" * 4096
    async with counting_store(world) as store:
        given = await policy_at(world, store)
        head, end = as_multipart(form(given), b"", end=""), b"\r\n--b--\r\n"

        async def body() -> AsyncIterator[bytes]:
            yield head
            for _ in range(size // len(piece)):
                yield piece
            yield end

        headers = {
            "Content-Type": "multipart/form-data; boundary=b",
            "Content-Length": str(len(head) + size + len(end)),
        }
        tracemalloc.start()
        try:
            answer = await world.http.post(given["upload_host"], content=body(), headers=headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert answer.status_code == 200, answer.text
    assert size < store.received_bytes < size + 4096
    assert "transfer-encoding" not in store.head.lower()
    assert peak < size // 4


async def policy_at(world: World, store: CountingStore) -> dict[str, Any]:
    """Open an upload whose policy names the counting store."""
    given = await policy(world)
    (row,) = await uploads(world)
    place = f"uploads.policy:{row['id']}"
    opened = world.res.keyring.open(row["policy"], place=place)
    there = opened.replace(world.sim.file_host.encode(), f"127.0.0.1:{store.port}".encode())
    assert there != opened
    await world.rows("UPDATE uploads SET policy = $1", world.res.keyring.seal(there, place=place))
    return given
