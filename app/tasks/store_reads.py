"""SQL of what is read of tasks: by their teams, by operators, for the metrics. Changes nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, RowMapping, func, select, true, tuple_

from app.lib.db import AnySession, Session, Statement, fetch
from app.lib.ids import find_uuid
from app.models import Account, Task, TaskEvent, Team, Work
from app.models.tasks import Mode
from app.tasks.states import shown_as

_ANSWER = """
           tasks.team_id, tasks.id, tasks.state, tasks.upstream_call, tasks.created_at, tasks.started_at,
           tasks.finished_at, tasks.code, tasks.message,
           CASE WHEN tasks.finished_at IS NOT NULL
                THEN (SELECT answer FROM task_bodies WHERE task_id = tasks.id) END AS answer,
           CASE WHEN tasks.state = 'succeeded' THEN cast((
               SELECT json_agg(json_build_object(
                   'id', assets.id, 'json_path', assets.json_path, 'state', assets.state, 'position', assets.position,
                   'object_key', assets.object_key, 'place_id', assets.place_id, 'content_type', assets.content_type,
                   'source', encode(assets.source, 'hex')) ORDER BY assets.position)
               FROM assets WHERE assets.task_id = tasks.id) AS text) END AS assets
"""

_READ_ANSWERS = Statement(f"""
    SELECT {_ANSWER}
    FROM unnest(cast(:team_ids AS uuid[]), cast(:task_ids AS uuid[])) AS asked (team_id, task_id)
    JOIN tasks ON tasks.id = asked.task_id AND tasks.team_id = asked.team_id
    WHERE NOT tasks.refused_inline
""")  # noqa: S608

_FIND_ANSWER = Statement(f"""
    SELECT tasks.answer_status, tasks.request_id,
           coalesce(tasks.last_request_id, tasks.upstream_request_id) AS upstream_request_id, {_ANSWER}
    FROM tasks WHERE tasks.id = :task_id AND tasks.team_id = :team_id
""")  # noqa: S608


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which of a team's tasks a list shows, and which page of them; None asks for nothing.

    `created_from` and `created_to` are both included; `task_id` may be what no task has.
    """

    created_from: datetime
    created_to: datetime
    page_no: int
    page_size: int
    task_id: str | None = None
    word: str | None = None  # DashScope's, for a status
    model: str | None = None
    api_key_id: str | None = None
    region: str | None = None


async def read_answers(
    session: AnySession, asked: Sequence[tuple[UUID, UUID]]
) -> dict[tuple[UUID, UUID], Mapping[str, Any]]:
    """Read what teams may know of their tasks, asked as (team id, task id): the row, and once it ended its sealed
    answer and its assets as JSON. What is not the team's is not there."""
    params = {"team_ids": [team_id for team_id, _ in asked], "task_ids": [task_id for _, task_id in asked]}
    return {(row["team_id"], row["id"]): row for row in await fetch(session, _READ_ANSWERS, params)}


async def find_answer(session: AnySession, team_id: UUID, task_id: UUID) -> Mapping[str, Any] | None:
    """Read the same of one task and what else a waiting connection is told; also of a create refused at once."""
    rows = await fetch(session, _FIND_ANSWER, {"team_id": team_id, "task_id": task_id})
    return rows[0] if rows else None


async def read_waited_all_teams(session: Session, task_ids: Sequence[UUID]) -> dict[UUID, RowMapping]:
    """Read what those who wait for tasks look at; each was found to be its waiter's team's before the wait began."""
    columns = (Task.id, Task.state, Task.upstream_call, Task.attempt, Task.cancel_requested_at)
    rows = await session.execute(select(*columns).where(Task.id.in_(task_ids)))
    return {row["id"]: row for row in rows.mappings()}


async def find_own(session: Session, team_id: UUID, task_id: UUID) -> RowMapping | None:
    """Read where a team's task stands; relays and creates that were refused at once are no tasks to it."""
    rows = await session.execute(select(Task.id, Task.state, Task.attempt).where(Task.id == task_id, *_own(team_id)))
    return rows.mappings().one_or_none()


async def list_own(session: Session, team_id: UUID, wanted: TaskFilter) -> tuple[int, Sequence[RowMapping]]:
    """Read one page of a team's tasks, the newest first, and how many there are on all pages."""
    chosen = (*_own(team_id), *_chosen(wanted))
    columns = (
        *(Task.id, Task.state, Task.upstream_call, Task.model, Task.path, Task.region, Task.api_key_id),
        *(Task.request_id, Task.created_at, Task.submitted_at, Task.started_at, Task.finished_at),
    )
    page = (
        select(*columns)
        .where(*chosen)
        .order_by(Task.created_at.desc(), Task.id.desc())
        .limit(wanted.page_size)
        .offset((wanted.page_no - 1) * wanted.page_size)
        .subquery()
    )
    total = select(func.count().label("total")).select_from(Task).where(*chosen).subquery()
    # a page beyond the end is one row without a task, so that its total is told all the same
    paired = select(total.c.total, page).select_from(total.outerjoin(page, true()))
    ordered = paired.order_by(page.c.created_at.desc(), page.c.id.desc())
    rows = (await session.execute(ordered)).mappings().all()
    return rows[0]["total"], [row for row in rows if row["id"] is not None]


def _own(team_id: UUID) -> tuple[ColumnElement[bool], ...]:
    return Task.team_id == team_id, Task.mode.in_((Mode.ASYNC, Mode.DURABLE)), Task.refused_inline.is_(False)


def _chosen(wanted: TaskFilter) -> Iterator[ColumnElement[bool]]:
    yield Task.created_at.between(wanted.created_from, wanted.created_to)
    if wanted.task_id is not None:
        yield Task.id == (find_uuid(wanted.task_id) or UUID(int=0))
    if wanted.word is not None:
        yield tuple_(Task.state, Task.upstream_call).in_(shown_as(wanted.word))
    exact = ((Task.model, wanted.model), (Task.api_key_id, wanted.api_key_id), (Task.region, wanted.region))
    for column, value in exact:
        if value is not None:
            yield column == value


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
