"""SQL of teams and API keys."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import Session
from app.models import ApiKey, Destination, Team


async def insert_team(session: Session, values: dict[str, Any]) -> bool:
    """Add a team; False: the slug is taken."""
    done = await session.execute(insert(Team).values(values).on_conflict_do_nothing(index_elements=["slug"]))
    return done.rowcount == 1


async def read_teams_all_teams(session: Session) -> Sequence[RowMapping]:
    """Read all teams, each with whether it has a destination."""
    teams: Sequence[RowMapping] = (await session.execute(_teams().order_by(Team.slug))).mappings().all()
    return teams


async def find_team(session: Session, *, slug: str) -> RowMapping | None:
    """Read a team by its slug."""
    rows = await session.execute(_teams().where(Team.slug == slug))
    team: RowMapping | None = rows.mappings().one_or_none()
    return team


async def update_team(session: Session, team_id: UUID, values: dict[str, Any]) -> None:
    """Change what a team chose."""
    await session.execute(update(Team).where(Team.id == team_id).values(values))


async def insert_api_key(session: Session, values: dict[str, Any]) -> None:
    """Add an API key."""
    await session.execute(insert(ApiKey).values(values))


async def read_api_keys(session: Session, team_id: UUID) -> Sequence[RowMapping]:
    """Read a team's API keys, without their HMACs."""
    shown = [column for column in ApiKey.__table__.c if column.name != "secret_mac"]
    rows = await session.execute(select(*shown).where(ApiKey.team_id == team_id).order_by(ApiKey.created_at))
    return rows.mappings().all()


async def find_api_key_all_teams(session: Session, key_id: str) -> RowMapping | None:
    """Read what is needed to judge a caller: here, and only here, the team is not yet known."""
    rows = await session.execute(
        select(
            ApiKey.id,
            ApiKey.secret_mac,
            ApiKey.models.label("key_models"),
            ApiKey.expires_at,
            ApiKey.revoked_at,
            Team.id.label("team_id"),
            Team.slug,
            Team.regions,
            Team.default_region,
            Team.models.label("team_models"),
            Team.durable,
            Team.hold,
            Team.allow_unlisted_models,
            Team.rps,
            Team.max_queued,
            Team.queue_deadline_seconds,
        )
        .join(Team, Team.id == ApiKey.team_id)
        .where(ApiKey.id == key_id)
    )
    return rows.mappings().one_or_none()


async def revoke_api_key_all_teams(session: Session, key_id: str) -> bool:
    """Revoke a key, once; False: there is no such key."""
    done = await session.execute(
        update(ApiKey).where(ApiKey.id == key_id).values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
    )
    return done.rowcount == 1


def _teams() -> Select[Any]:
    has_destination = Destination.team_id.isnot(None).label("has_destination")
    return select(*Team.__table__.c, has_destination).outerjoin(Destination, Destination.team_id == Team.id)
