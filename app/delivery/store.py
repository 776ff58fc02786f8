"""SQL of destinations, places, assets and uploads."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import Session
from app.models import Asset, Destination, Place, Task, Team, Upload

MOST_FORGOTTEN = 100


async def insert_place(session: Session, values: dict[str, Any]) -> None:
    """Add a version of a team's place; the old ones stay for the tasks that were accepted with them."""
    await session.execute(insert(Place).values(values))


async def set_destination(session: Session, team_id: UUID, *, place_id: UUID, credentials: bytes | None) -> None:
    """Make a place the team's present one; its credentials serve all the team's places."""
    statement = insert(Destination).values(team_id=team_id, place_id=place_id, credentials=credentials)
    # a folder needs none: those of the team's older places stay
    newest = func.coalesce(statement.excluded.credentials, Destination.credentials)
    changed = {"place_id": place_id, "credentials": newest, "updated_at": func.now()}
    await session.execute(statement.on_conflict_do_update(index_elements=["team_id"], set_=changed))


async def find_place(session: Session, team_id: UUID, place_id: UUID) -> RowMapping | None:
    """Read a place with the newest credentials of its team."""
    rows = await session.execute(
        select(*Place.__table__.c, Destination.credentials)
        .join(Destination, Destination.team_id == Place.team_id)
        .where(Place.team_id == team_id, Place.id == place_id)
    )
    return rows.mappings().one_or_none()


async def find_destination(session: Session, team_id: UUID) -> RowMapping | None:
    """Read a team's present place, without its credentials."""
    rows = await session.execute(
        select(*Place.__table__.c, Destination.updated_at)
        .join(Destination, Destination.place_id == Place.id)
        .where(Destination.team_id == team_id)
    )
    return rows.mappings().one_or_none()


async def read_destinations_all_teams(session: Session) -> Sequence[RowMapping]:
    """Read every team's present place, for `doctor`."""
    rows = await session.execute(
        select(Place.id, Place.team_id, Team.slug)
        .join(Destination, Destination.place_id == Place.id)
        .join(Team, Team.id == Place.team_id)
        .order_by(Team.slug)
    )
    return rows.mappings().all()


async def find_asset_all_teams(session: Session, asset_id: UUID) -> RowMapping | None:
    """Read an asset with what is needed to copy or serve it: for a step, or for a link whose signature was checked."""
    rows = await session.execute(
        select(*Asset.__table__.c, Task.account_id, Task.created_at.label("task_created_at"), Team.slug.label("team"))
        .join(Task, Task.id == Asset.task_id)
        .join(Team, Team.id == Asset.team_id)
        .where(Asset.id == asset_id)
    )
    return rows.mappings().one_or_none()


async def read_assets(session: Session, team_id: UUID, task_id: UUID) -> Sequence[RowMapping]:
    """Read a task's assets, without their upstream links."""
    shown = [column for column in Asset.__table__.c if column.name != "source"]
    rows = await session.execute(
        select(*shown).where(Asset.team_id == team_id, Asset.task_id == task_id).order_by(Asset.position)
    )
    return rows.mappings().all()


async def lock_task(session: Session, team_id: UUID, task_id: UUID) -> RowMapping:
    """Lock the task of an asset (lock order: work, tasks, assets), so that of its last two files one ends it."""
    rows = await session.execute(
        select(Task.id, Task.state, Task.attempt).where(Task.id == task_id, Task.team_id == team_id).with_for_update()
    )
    return rows.mappings().one()


async def mark_stored(session: Session, team_id: UUID, asset_id: UUID, **facts: Any) -> bool:
    """Record that a file is stored and verified; False: it was recorded before."""
    done = await session.execute(
        update(Asset)
        .where(Asset.id == asset_id, Asset.team_id == team_id, Asset.state != "stored")
        .values(state="stored", reason=None, **facts)
    )
    return done.rowcount == 1


async def mark_unstored(session: Session, team_id: UUID, asset_id: UUID, *, state: str, reason: str) -> None:
    """Record why a file is not stored; never undoes `stored`."""
    await session.execute(
        update(Asset)
        .where(Asset.id == asset_id, Asset.team_id == team_id, Asset.state != "stored")
        .values(state=state, reason=reason)
    )


def stored_facts(*, object_key: str, content_type: str, size_bytes: int, sha256: str, at: datetime) -> dict[str, Any]:
    """Name the columns that a stored file fills."""
    return {
        "object_key": object_key,
        "content_type": content_type,
        "size_bytes": size_bytes,
        "sha256": sha256,
        "stored_at": at,
    }


async def insert_upload(session: Session, values: dict[str, Any]) -> bool:
    """Record whose a folder of temporary uploads is; False: the folder is somebody's already."""
    done = await session.execute(insert(Upload).values(values).on_conflict_do_nothing(index_elements=["folder"]))
    return done.rowcount == 1


async def forget_uploads(session: Session, team_id: UUID, *, before: datetime) -> None:
    """Delete a team's uploads whose files are gone upstream; a few at a time, as the next policy deletes the next."""
    gone = select(Upload.id).where(Upload.team_id == team_id, Upload.expires_at < before).limit(MOST_FORGOTTEN)
    await session.execute(delete(Upload).where(Upload.id.in_(gone.with_for_update(skip_locked=True))))


async def find_upload_all_teams(session: Session, upload_id: UUID) -> RowMapping | None:
    """Read an upload whose signature was checked."""
    rows = await session.execute(select(*Upload.__table__.c).where(Upload.id == upload_id))
    return rows.mappings().one_or_none()


async def read_uploads(
    session: Session, team_id: UUID, *, model: str, folders: Collection[str], at: datetime
) -> Sequence[RowMapping]:
    """Read those of some folders that hold a team's uploads for a model, while their files live."""
    rows = await session.execute(
        select(Upload.folder, Upload.account_id).where(
            Upload.team_id == team_id, Upload.model == model, Upload.folder.in_(folders), Upload.expires_at > at
        )
    )
    return rows.mappings().all()


async def read_input_assets(session: Session, team_id: UUID, asset_ids: Collection[UUID]) -> Sequence[RowMapping]:
    """Read those of some assets that are a team's, with what is needed to pass them on as inputs."""
    rows = await session.execute(
        select(Asset.id, Asset.source, Asset.source_expires_at, Task.account_id)
        .join(Task, Task.id == Asset.task_id)
        .where(Asset.team_id == team_id, Asset.id.in_(asset_ids))
    )
    return rows.mappings().all()
