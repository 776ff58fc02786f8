"""SQL of what is read of tasks: by their teams, by operators, for the metrics. Changes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, func, select

from app.lib.db import AnySession, Session, Statement, fetch
from app.models import Account, Task, TaskEvent, Team, Work

_READ_ANSWERS = Statement("""
    SELECT tasks.team_id, tasks.id, tasks.state, tasks.created_at, tasks.started_at, tasks.finished_at,
           tasks.code, tasks.message,
           CASE WHEN tasks.finished_at IS NOT NULL
                THEN (SELECT answer FROM task_bodies WHERE task_id = tasks.id) END AS answer,
           CASE WHEN tasks.state = 'succeeded' THEN cast((
               SELECT json_agg(json_build_object(
                   'id', assets.id, 'json_path', assets.json_path, 'state', assets.state, 'position', assets.position,
                   'object_key', assets.object_key, 'place_id', assets.place_id, 'content_type', assets.content_type,
                   'source', encode(assets.source, 'hex')) ORDER BY assets.position)
               FROM assets WHERE assets.task_id = tasks.id) AS text) END AS assets
    FROM unnest(cast(:team_ids AS uuid[]), cast(:task_ids AS uuid[])) AS asked (team_id, task_id)
    JOIN tasks ON tasks.id = asked.task_id AND tasks.team_id = asked.team_id
    WHERE NOT tasks.refused_inline
""")


async def read_answers(
    session: AnySession, asked: Sequence[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], Mapping[str, Any]]:
    """Read what teams may know of their tasks, asked as (team id, task id): the row, and once it ended its sealed
    answer and its assets as JSON. What is not the team's is not there."""
    params = {"team_ids": [team_id for team_id, _ in asked], "task_ids": [task_id for _, task_id in asked]}
    return {(row["team_id"], row["id"]): row for row in await fetch(session, _READ_ANSWERS, params)}


async def find_task_all_teams(session: Session, task_id: UUID) -> RowMapping | None:
    """Read a task with its team's slug and its account's name, for the operator."""
    rows = await session.execute(
        select(*Task.__table__.c, Team.slug.label("team"), Account.name.label("account"))
        .join(Team, Team.id == Task.team_id)
        .join(Account, Account.id == Task.account_id)
        .where(Task.id == task_id)
    )
    return rows.mappings().one_or_none()


async def list_tasks_all_teams(
    session: Session, *, team: str | None, state: str | None, limit: int
) -> Sequence[RowMapping]:
    """Read the newest tasks, for the operator."""
    columns = (Task.id, Task.state, Task.model, Task.region, Task.code, Task.created_at, Task.finished_at)
    query = select(Team.slug.label("team"), *columns).join(Team, Team.id == Task.team_id)
    if team is not None:
        query = query.where(Team.slug == team)
    if state is not None:
        query = query.where(Task.state == state)
    return (await session.execute(query.order_by(Task.created_at.desc()).limit(limit))).mappings().all()


async def read_events_all_teams(session: Session, task_id: UUID) -> Sequence[RowMapping]:
    """Read a task's transitions in their order, for the operator."""
    rows = await session.execute(
        select(TaskEvent.attempt, TaskEvent.state, TaskEvent.at, TaskEvent.reason)
        .where(TaskEvent.task_id == task_id)
        .order_by(TaskEvent.at, TaskEvent.attempt)
    )
    return rows.mappings().all()


async def count_open_all_teams(session: Session) -> Sequence[RowMapping]:
    """Count tasks that have not ended, by state, for the metrics."""
    ended = ("succeeded", "failed", "canceled", "expired")
    rows = await session.execute(
        select(Task.state, func.count().label("count")).where(Task.state.notin_(ended)).group_by(Task.state)
    )
    return rows.mappings().all()


async def count_due_all_teams(session: Session) -> Sequence[RowMapping]:
    """Count due work and its greatest age in seconds, by kind, for the metrics."""
    age = func.extract("epoch", func.now() - func.min(Work.due_at))
    rows = await session.execute(
        select(Work.kind, func.count().label("count"), age.label("oldest_seconds"))
        .where(Work.due_at <= func.now())
        .group_by(Work.kind)
    )
    return rows.mappings().all()
