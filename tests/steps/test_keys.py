"""Teams and API keys as the operator's commands make them."""

from decimal import Decimal

import pytest

from app.errors import CommandRefused
from app.teams.authenticate import Caller, authenticate
from app.teams.keys import find_parts
from app.teams.teams import TeamChange, change_team, create_team, get_team, issue_key, list_keys, list_teams, revoke_key
from tests.world import World


async def caller(world: World, team: str = "alpha") -> Caller:
    return await authenticate(world.res, world.headers(team)["Authorization"])


async def test_a_key_is_shown_once_and_kept_as_a_tag_of_it(world: World) -> None:
    key_id, text = await issue_key(world.res, "alpha", name="ci")
    parts = find_parts(text)
    assert parts is not None
    row = await world.row("SELECT * FROM api_keys WHERE id = $1", key_id)
    assert (parts.key_id, len(row["secret_mac"])) == (key_id, 32)
    assert parts.secret not in str(row)


async def test_a_listing_shows_keys_without_what_proves_them(world: World) -> None:
    await issue_key(world.res, "alpha", name="ci")
    listed = await list_keys(world.res, "alpha")
    assert [row["name"] for row in listed] == ["", "ci"]
    assert all("secret_mac" not in row for row in listed)


async def test_two_keys_are_never_alike(world: World) -> None:
    keys = [await issue_key(world.res, "alpha") for _ in range(20)]
    assert len({key_id for key_id, _ in keys}) == len({text for _, text in keys}) == 20


async def test_a_key_is_revoked_once_and_keeps_that_instant(world: World) -> None:
    key_id, _ = await issue_key(world.res, "alpha")
    await revoke_key(world.res, key_id)
    first = await world.row("SELECT revoked_at FROM api_keys WHERE id = $1", key_id)
    await revoke_key(world.res, key_id)
    assert await world.row("SELECT revoked_at FROM api_keys WHERE id = $1", key_id) == first


async def test_what_does_not_exist_cannot_be_revoked_or_get_a_key(world: World) -> None:
    for command in (revoke_key(world.res, "nosuchid"), issue_key(world.res, "delta"), list_keys(world.res, "delta")):
        with pytest.raises(CommandRefused):
            await command


async def test_a_key_lives_at_least_a_day_and_at_most_ten_years(world: World) -> None:
    for days in (0, -1, 3651):
        with pytest.raises(CommandRefused):
            await issue_key(world.res, "alpha", expires_in_days=days)


async def test_a_slug_is_plain_and_its_teams_alone(world: World) -> None:
    for slug in ("", "-a", "A", "a b", "a_b", "a" * 64, "alpha", "\u00e9t\u00e9", "\u0661", "a\n"):
        with pytest.raises(CommandRefused):
            await create_team(world.res, slug, regions=["cn-beijing"])
    await create_team(world.res, "a-1", regions=["cn-beijing", "us-east-1", "cn-beijing"])
    row = next(row for row in await list_teams(world.res) if row["slug"] == "a-1")
    assert (row["regions"], row["default_region"]) == (["cn-beijing", "us-east-1"], "cn-beijing")


async def test_a_listing_tells_which_team_has_no_destination(world: World) -> None:
    listed = {row["slug"]: row["has_destination"] for row in await list_teams(world.res)}
    assert listed == {"alpha": True, "beta": True, "gamma": False}


async def test_a_caller_carries_what_its_team_chose(world: World) -> None:
    usual = await caller(world)
    assert (usual.durable, usual.hold, usual.allow_unlisted_models, usual.rps) == (True, False, False, None)
    choices: TeamChange = {"durable": False, "hold": True, "allow_unlisted_models": True, "rps": Decimal("0.5")}
    await change_team(world.res, "alpha", choices)
    chosen = await caller(world)
    assert (chosen.durable, chosen.hold, chosen.allow_unlisted_models, chosen.rps) == (False, True, True, 0.5)
    assert (await caller(world, "beta")).durable is True


async def test_what_another_process_changed_of_a_team_is_known_within_five_seconds(world: World) -> None:
    await caller(world)
    await world.rows("UPDATE teams SET hold = true WHERE slug = 'alpha'")
    assert (await caller(world)).hold is False
    world.sim.advance(4)
    assert (await caller(world)).hold is True


async def test_a_change_of_a_team_leaves_all_else_as_it_is(world: World) -> None:
    before = dict(await get_team(world.res, "alpha"))
    after = dict(await change_team(world.res, "alpha", {"regions": ["us-east-1", "cn-beijing", "us-east-1"]}))
    assert after == {**before, "regions": ["us-east-1", "cn-beijing"], "default_region": "us-east-1"}
    assert (await caller(world)).regions == ("us-east-1", "cn-beijing")


@pytest.mark.parametrize("change", [{}, {"rps": Decimal(0)}, {"rps": Decimal("0.0000001")}, {"rps": Decimal("1e9")}])
async def test_a_change_of_a_team_that_makes_no_sense_is_refused(world: World, change: TeamChange) -> None:
    with pytest.raises(CommandRefused):
        await change_team(world.res, "alpha", change)
    assert (await get_team(world.res, "alpha"))["rps"] is None
