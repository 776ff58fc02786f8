"""delivery/inputs: who may use what as an input, and what the upstream gets in place of a link of ours."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from app.delivery.inputs import (
    INPUT_GONE,
    NOT_YOUR_FILE,
    NOT_YOUR_UPLOAD,
    TWO_ACCOUNTS,
    Inputs,
    check_inputs,
    fill_inputs,
)
from app.delivery.links import LinkedAsset, gateway_link
from app.delivery.uploads import open_upload
from app.errors import FileAway, InvalidParameter
from app.lib.ids import new_id
from app.models.assets import AssetState
from app.resources import Filled
from app.routing.accounts import all_accounts
from app.simulator import BEIJING, SINGAPORE, Simulator
from app.teams.authenticate import Caller, authenticate
from tests.api.parts import without_database
from tests.world import World, open_world

MODEL = "wan2.6-image"
PICTURE = b"\x89PNG\r\n\x1a\n" + b"not really a picture" * 10
RESOLVE = {"x-dashscope-ossresourceresolve": "enable"}
HOUR = 3600
ENDLESS = 365 * 24 * HOUR


@pytest_asyncio.fixture
async def wide(still_sim: Simulator, database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """A gateway with an account in two regions."""
    async with open_world(still_sim, database_url, tmp_path, regions=(BEIJING, SINGAPORE)) as world:
        yield world


@dataclass(frozen=True)
class Made:
    """A file that an earlier task of a team made, with our link to it and the upstream's own."""

    id: UUID
    team_id: UUID
    account_id: UUID
    link: str
    source: str


async def account_id(world: World, region: str = BEIJING) -> UUID:
    return next(account.id for account in await all_accounts(world.res) if account.region == region)


async def team_id(world: World, team: str = "alpha") -> UUID:
    found: UUID = (await world.row("SELECT id FROM teams WHERE slug = $1", team))["id"]
    return found


async def made_file(
    world: World, team: str = "alpha", content: bytes = PICTURE, *, source_lives_seconds: float = 24 * HOUR
) -> Made:
    """Leave behind what a task does that has ended: its row, its stored file, its link."""
    owner, account, task, asset = await team_id(world, team), await account_id(world), new_id(), new_id()
    key = (await world.row("SELECT id FROM api_keys WHERE team_id = $1", owner))["id"]
    place = (await world.row("SELECT place_id FROM destinations WHERE team_id = $1", owner))["place_id"]
    now = world.res.clock.now()
    await world.rows(
        """INSERT INTO tasks (id, team_id, api_key_id, mode, upstream_call, state, attempt, model, path, region,
               account_id, main_account, most, request_id, upstream_task_id, queue_deadline_at, finished_at)
           VALUES ($1, $2, $3, 'async', 'async', 'succeeded', 1, $4, 'p', $5, $6, $5, 1, 'r', $7, $8, $8)""",
        *(task, owner, key, MODEL, BEIJING, account, str(task), now),
    )
    source = f"https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com/{asset}.png?Expires=1&Signature=hush"
    await world.rows(
        """INSERT INTO assets (id, task_id, team_id, position, json_path, source, source_expires_at, state, place_id,
               object_key, content_type, size_bytes, sha256, stored_at)
           VALUES ($1, $2, $3, 0, 'p', $4, $5, 'stored', $6, $7, 'image/png', $8, $9, $10)""",
        *(asset, task, owner, world.res.keyring.seal(source.encode(), place=f"assets.source:{asset}")),
        *(now + timedelta(seconds=source_lives_seconds), place, f"{asset}.png", len(content)),
        *(hashlib.sha256(content).hexdigest(), now),
    )
    folder = world.folder / team
    folder.mkdir(exist_ok=True)
    (folder / f"{asset}.png").write_bytes(content)
    linked = LinkedAsset(asset, owner, 0, AssetState.STORED, place, f"{asset}.png", "image/png", source)
    return Made(asset, owner, account, gateway_link(world.res, linked), source)


async def caller(world: World, team: str = "alpha") -> Caller:
    return await authenticate(world.res, f"Bearer {world.keys[team]}")


async def uploaded(world: World, team: str = "alpha", *, model: str = MODEL, region: str = BEIJING) -> str:
    """Open an upload; return an `oss://` link into its folder."""
    data = await open_upload(world.res, await caller(world, team), model=model, region=region)
    return f"oss://{data['upload_dir']}/cup.png"


async def check(world: World, *inputs: Any, team: str = "alpha", model: str = MODEL) -> Inputs:
    fields = {"model": model, "input": {"messages": [{"content": [{"image": one} for one in inputs]}]}}
    body = json.dumps(fields).encode()
    return await check_inputs(world.res, await caller(world, team), fields=fields, body=body, model=model)


async def refused(world: World, *inputs: Any, team: str = "alpha", model: str = MODEL) -> str:
    with pytest.raises(InvalidParameter) as refusal:
        await check(world, *inputs, team=team, model=model)
    return refusal.value.message


async def fill(world: World, body: bytes, made: Made, *, region: str = BEIJING) -> Filled:
    account = await account_id(world, region)
    return await fill_inputs(world.res, team_id=made.team_id, account_id=account, model=MODEL, body=body)


def body_with(*links: str) -> bytes:
    return json.dumps({"model": MODEL, "input": {"images": links}}).encode()


def images(filled: Filled) -> list[str]:
    found: list[str] = json.loads(filled.body)["input"]["images"]
    return found


# --- who may use what ----------------------------------------------------------------------------------------------


async def test_a_call_without_such_inputs_asks_for_nothing(world: World) -> None:
    assert await check(world, "https://h/cup.png", "data:image/png;base64,AAAA", "OSS: a history", 7) == Inputs()


async def test_an_own_upload_pins_the_account_that_holds_it(wide: World) -> None:
    link = await uploaded(wide, region=SINGAPORE)
    assert await check(wide, "https://h/cup.png", link) == Inputs(await account_id(wide, SINGAPORE))


async def test_an_upload_of_another_team_model_or_time_is_refused_as_one_that_never_was(world: World) -> None:
    mine, theirs = await uploaded(world), await uploaded(world, "beta")
    said = [
        await refused(world, theirs),
        await refused(world, mine, model="qwen-image"),
        await refused(world, "oss://dashscope-instant/none/cup.png"),
        await refused(world, mine.replace("cup.png", "../x/cup.png")),
        await refused(world, mine.replace("cup.png", "..%2Fx%2Fcup.png")),
        await refused(world, mine.rpartition("/")[0]),
        await refused(world, mine.upper()),
        await refused(world, f" {mine}"),
        await refused(world, mine, theirs),
    ]
    world.sim.advance(48 * HOUR)
    assert {*said, await refused(world, mine)} == {NOT_YOUR_UPLOAD}


async def test_an_upload_is_found_however_its_name_is_written_and_wherever_it_stands(world: World) -> None:
    theirs = await uploaded(world, "beta")
    who = await caller(world)
    hidden = "\\u006fss:\\/\\/" + theirs.removeprefix("oss://")
    for body in (f'{{"a":[[{{"b":["{hidden}"]}}]]}}', '{"a":"' + "x" * 300_000 + f'","b":"{hidden}"}}'):
        with pytest.raises(InvalidParameter):
            await check_inputs(world.res, who, fields=json.loads(body), body=body.encode(), model=MODEL)


async def test_uploads_of_two_accounts_do_not_go_together(wide: World) -> None:
    links = [await uploaded(wide, region=region) for region in (BEIJING, SINGAPORE)]
    assert await refused(wide, *links) == TWO_ACCOUNTS


async def test_a_link_to_an_own_file_is_to_be_filled_in(world: World) -> None:
    made = await made_file(world)
    assert await check(world, made.link) == Inputs(has_ours=True)
    assert await check(world, made.link.replace("http://gateway", "https://old.example/prefix")) == Inputs(
        has_ours=True
    )


async def test_a_link_to_another_teams_file_is_refused_as_one_that_leads_nowhere(world: World) -> None:
    mine, theirs = await made_file(world), await made_file(world, "beta")
    said = [
        await refused(world, theirs.link),
        await refused(world, mine.link, theirs.link),
        await refused(world, mine.link.replace("signature=", "signature=x")),
        await refused(world, mine.link.partition("?")[0]),
        await refused(world, mine.link.replace(str(mine.id), str(new_id()))),
    ]
    await world.rows("DELETE FROM assets WHERE id = $1", mine.id)
    said.append(await refused(world, mine.link))
    assert set(said) == {NOT_YOUR_FILE}


async def test_a_link_that_has_ended_is_refused(world: World) -> None:
    made = await made_file(world)
    world.sim.advance(ENDLESS)
    assert await refused(world, made.link) == NOT_YOUR_FILE


async def test_what_only_looks_like_our_link_is_left_to_the_upstream(world: World) -> None:
    made = await made_file(world)
    other = made.link.replace("http://gateway", "https://elsewhere.example").replace("signature=", "signature=x")
    prompt = f"draw what you see at {made.link}"
    assert await check(world, other, prompt) == Inputs()
    filled = await fill(world, body_with(other, prompt), made)
    assert filled == Filled(body_with(other, prompt))


async def test_more_inputs_than_any_call_has_are_refused(world: World) -> None:
    assert "at most" in await refused(world, *["oss://a/b"] * 201)


# --- what the upstream gets ----------------------------------------------------------------------------------------


async def test_the_upstreams_own_link_is_given_back_to_the_account_that_made_it(world: World) -> None:
    made = await made_file(world)
    body = b'{"n": 1.50,\n "\\u0061":"\xe4\xb8\xad", "images" : [ "%s" ,"x"], "n2":1E3}' % made.link.encode()
    filled = await fill(world, body, made)
    assert filled == Filled(body.replace(made.link.encode(), made.source.encode()), {})


@pytest.mark.parametrize("escape", ["\\/", "\\u002f"])
async def test_a_link_is_found_however_it_is_written(world: World, escape: str) -> None:
    made = await made_file(world)
    body = b'{"image":"%s"}' % made.link.replace("/", escape).encode()
    assert json.loads((await fill(world, body, made)).body) == {"image": made.source}


async def test_a_source_that_dies_soon_is_passed_on_as_an_upload_once(world: World) -> None:
    made = await made_file(world, source_lives_seconds=HOUR / 2 - 1)
    first, second = await fill(world, body_with(made.link), made), await fill(world, body_with(made.link, "x"), made)
    (stored,) = world.sim.truth.uploads
    assert (stored.sha256, stored.model) == (hashlib.sha256(PICTURE).hexdigest(), MODEL)
    assert images(first) == [f"oss://{stored.key}"]
    assert images(second) == [f"oss://{stored.key}", "x"]
    assert first.headers == second.headers == RESOLVE


async def test_a_file_goes_to_another_account_as_an_upload_of_that_account(wide: World) -> None:
    made = await made_file(wide)
    filled = await fill(wide, body_with(made.link), made, region=SINGAPORE)
    (stored,) = wide.sim.truth.uploads
    assert images(filled) == [f"oss://{stored.key}"]
    assert stored.region == SINGAPORE


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("upload_policy", {"kind": "garbage", "status": 404, "body": "<html>"}),
        ("upload_policy", {"kind": "5xx"}),
        ("upload_policy", {"kind": "error", "status": 403, "code": "AccessDenied"}),
        ("upload", {"kind": "lost_answer"}),
        ("upload", {"kind": "garbage", "status": 400, "body": "<Error><Code>EntityTooLarge</Code></Error>"}),
    ],
)
async def test_a_small_file_travels_in_the_body_where_no_upload_is_possible(
    world: World, operation: str, fault: dict[str, Any]
) -> None:
    made = await made_file(world, source_lives_seconds=0)
    world.sim.fail_next(operation, **fault)
    filled = await fill(world, body_with(made.link), made)
    assert images(filled) == [f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"]
    assert filled.headers == {}


async def test_a_large_file_waits_for_an_upload_or_fails_its_task_where_there_are_none(world: World) -> None:
    made = await made_file(world, content=PICTURE + bytes(8 * 1024 * 1024), source_lives_seconds=0)
    world.sim.fail_next("upload_policy", "429")
    with pytest.raises(FileAway):
        await fill(world, body_with(made.link), made)
    world.sim.fail_next("upload_policy", "error", status=400, code="InvalidParameter", message="no")
    with pytest.raises(InvalidParameter) as refusal:
        await fill(world, body_with(made.link), made)
    assert "too large" in refusal.value.message
    assert images(await fill(world, body_with(made.link), made))[0].startswith("oss://")


async def test_a_file_that_is_gone_fails_its_task(world: World) -> None:
    made = await made_file(world, source_lives_seconds=0)
    (world.folder / "alpha" / f"{made.id}.png").unlink()
    with pytest.raises(InvalidParameter) as refusal:
        await fill(world, body_with(made.link), made)
    assert refusal.value.message == INPUT_GONE
    assert world.sim.truth.uploads == ()


async def test_a_file_is_filled_in_for_its_own_team_only(world: World) -> None:
    made = await made_file(world)
    with pytest.raises(InvalidParameter):
        await fill_inputs(
            world.res,
            team_id=await team_id(world, "beta"),
            account_id=made.account_id,
            model=MODEL,
            body=body_with(made.link),
        )


async def test_a_link_that_has_ended_since_its_call_was_accepted_is_still_filled_in(world: World) -> None:
    made = await made_file(world)
    world.sim.advance(ENDLESS)
    (stored_link,) = images(await fill(world, body_with(made.link), made))
    assert stored_link.startswith("oss://")


async def test_a_storage_that_is_away_sends_the_task_back_to_the_queue(world: World) -> None:
    made = await made_file(world, source_lives_seconds=0)
    await world.rows("DELETE FROM destinations")
    with pytest.raises(FileAway):
        await fill(world, body_with(made.link), made)


async def test_a_database_that_is_away_sends_the_task_back_to_the_queue(world: World) -> None:
    made = await made_file(world)
    async with without_database(world) as (res, _, _):
        with pytest.raises(FileAway):
            await fill_inputs(
                res, team_id=made.team_id, account_id=made.account_id, model=MODEL, body=body_with(made.link)
            )


async def test_a_body_as_large_as_any_is_filled_in_too(world: World) -> None:
    made = await made_file(world)
    picture = "data:image/png;base64," + "A" * 3_000_000
    filled = await fill(world, body_with(picture, made.link), made)
    assert images(filled) == [picture, made.source]
