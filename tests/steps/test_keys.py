"""Teams and API keys as the operator's commands make them."""

import pytest

from app.errors import CommandRefused
from app.teams.keys import find_parts
from app.teams.teams import create_team, issue_key, list_keys, list_teams, revoke_key
from tests.world import World


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
