"""Teams and their API keys as the operator's commands see them: create, change, list, issue, revoke."""

import re
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TypedDict
from uuid import UUID

from sqlalchemy import RowMapping

from app.errors import CommandRefused
from app.lib.db import reading, transaction
from app.lib.ids import new_id
from app.resources import Resources
from app.teams import store
from app.teams.authenticate import MAC_PURPOSE
from app.teams.keys import new_key

MOST_KEY_DAYS = 3650
LEAST_RPS, MOST_RPS = Decimal("0.001"), 100_000
MOST_WEIGHT = 1_000
MOST_QUEUED = 10_000_000
MOST_QUEUE_SECONDS = 7 * 86_400
SLUG_FORM = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")  # as the table's own check


class TeamChange(TypedDict, total=False):
    """What `team set` was told; what is absent stays. None: no limit, no cap, or as the setting says. `regions`: the
    preferred one first."""

    durable: bool
    hold: bool
    allow_unlisted_models: bool
    rps: Decimal | None
    weight: int
    max_queued: int | None
    queue_deadline_seconds: int | None
    resubmit: bool
    regions: Sequence[str]
    models: Sequence[str]


async def create_team(res: Resources, slug: str, *, regions: Sequence[str]) -> UUID:
    """Create a team; its first region is its default.

    Raises:
        CommandRefused: the slug is taken or not of the form a-z, 0-9 and dashes.
    """
    if not SLUG_FORM.fullmatch(slug):
        raise CommandRefused("A team's slug has a-z, 0-9 and dashes, at most 63, and begins with no dash.")
    team_id = new_id()
    values = {"id": team_id, "slug": slug, "regions": list(dict.fromkeys(regions)), "default_region": regions[0]}
    async with transaction(res) as session:
        if not await store.insert_team(session, values):
            raise CommandRefused(f"There is already a team named {slug}.")
    return team_id


async def change_team(res: Resources, slug: str, change: TeamChange) -> RowMapping:
    """Change what a team chose and return its row; every process obeys within five seconds.

    Raises:
        CommandRefused: no such team, nothing to change, or a number out of bounds.
    """
    _check(change)
    values = {**change}
    if "regions" in change:
        values |= {"regions": list(dict.fromkeys(change["regions"])), "default_region": change["regions"][0]}
    team = await get_team(res, slug)
    async with transaction(res) as session:
        await store.update_team(session, team["id"], values)
    res.api_keys.clear()
    return await get_team(res, slug)


def _check(change: TeamChange) -> None:
    if not change:
        raise CommandRefused("Say what to change.")
    rps, weight = change.get("rps"), change.get("weight", 1)
    max_queued, seconds = change.get("max_queued"), change.get("queue_deadline_seconds")
    if rps is not None and not LEAST_RPS <= rps <= MOST_RPS:
        raise CommandRefused(f"A rate is {LEAST_RPS} to {MOST_RPS} a second.")
    if not 1 <= weight <= MOST_WEIGHT:
        raise CommandRefused(f"A weight is a whole number from 1 to {MOST_WEIGHT}.")
    if max_queued is not None and not 1 <= max_queued <= MOST_QUEUED:
        raise CommandRefused(f"A cap is a whole number from 1 to {MOST_QUEUED}.")
    if seconds is not None and not 1 <= seconds <= MOST_QUEUE_SECONDS:
        raise CommandRefused("A queue deadline is above zero hours and at most 168.")


async def get_team(res: Resources, slug: str) -> RowMapping:
    """Return a team by its slug.

    Raises:
        CommandRefused: there is none.
    """
    async with reading(res) as session:
        team = await store.find_team(session, slug=slug)
    if team is None:
        raise CommandRefused(f"There is no team named {slug}.")
    return team


async def list_teams(res: Resources) -> Sequence[RowMapping]:
    """Return all teams."""
    async with reading(res) as session:
        return await store.read_teams_all_teams(session)


async def issue_key(
    res: Resources, slug: str, *, name: str = "", expires_in_days: int | None = None, models: Sequence[str] = ("*",)
) -> tuple[str, str]:
    """Issue an API key; return its id and the key itself, which is never seen again.

    Raises:
        CommandRefused: no such team, or a life that is not 1 to 3650 days.
    """
    if expires_in_days is not None and not 0 < expires_in_days <= MOST_KEY_DAYS:
        raise CommandRefused(f"A key may live 1 to {MOST_KEY_DAYS} days.")
    team = await get_team(res, slug)
    text, parts = new_key()
    values = {
        "id": parts.key_id,
        "team_id": team["id"],
        "name": name,
        "secret_mac": res.keyring.mac(MAC_PURPOSE, parts.secret.encode()),
        "models": list(models),
        "expires_at": res.clock.now() + timedelta(days=expires_in_days) if expires_in_days else None,
    }
    async with transaction(res) as session:
        await store.insert_api_key(session, values)
    return parts.key_id, text


async def list_keys(res: Resources, slug: str) -> Sequence[RowMapping]:
    """Return a team's API keys, as far as they may be shown.

    Raises:
        CommandRefused: no such team.
    """
    team = await get_team(res, slug)
    async with reading(res) as session:
        return await store.read_api_keys(session, team["id"])


async def revoke_key(res: Resources, key_id: str) -> None:
    """Revoke an API key; every process obeys within five seconds.

    Raises:
        CommandRefused: there is no such key.
    """
    async with transaction(res) as session:
        if not await store.revoke_api_key_all_teams(session, key_id):
            raise CommandRefused(f"There is no API key {key_id}.")
    res.api_keys.clear()
