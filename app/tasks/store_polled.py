"""SQL of what the owner of an account reads of its open tasks, and of the starts that a list showed it.

The one move here is a compare-and-set with its event, as those in store.py, for many tasks at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import RowMapping, and_, select

from app.lib.db import Session, Statement, fetch
from app.models import AccountModel, Task, Team

_MARK_STARTED = Statement("""
    WITH listed AS (
        SELECT tasks.id FROM unnest(cast(:ids AS uuid[]), cast(:attempts AS int[])) AS shown (id, attempt)
        JOIN tasks ON tasks.id = shown.id AND tasks.attempt = shown.attempt
        WHERE tasks.state = 'pending' ORDER BY tasks.id
        FOR UPDATE OF tasks SKIP LOCKED
    ), task AS (
        UPDATE tasks SET state = 'running', started_at = cast(:at AS timestamptz),
               waited_until = CASE WHEN mode = 'durable' THEN waited_until END
        FROM listed WHERE tasks.id = listed.id
        RETURNING tasks.id, tasks.attempt, tasks.state
    ), event AS (
        INSERT INTO task_events (task_id, attempt, state, at, reason)
        SELECT id, attempt, state, cast(:at AS timestamptz), 'listed' FROM task
    )
    SELECT id FROM task
""")


@dataclass(frozen=True, slots=True)
class Part:
    """Which of the open tasks to read: those of some ids, or so many after an id."""

    after: UUID | None = None
    limit: int | None = None
    ids: Sequence[UUID] | None = None


EVERYTHING = Part()


async def read_polled_all_teams(
    session: Session, main_account: str, *, region: str, part: Part = EVERYTHING
) -> Sequence[RowMapping]:
    """Read open tasks of one main account and region in the order of their ids, each with its team's weight and the
    seconds that its model was seen to take."""
    model = and_(
        AccountModel.main_account == Task.main_account,
        AccountModel.region == Task.region,
        AccountModel.model == Task.model,
    )
    query = (
        select(
            *(Task.id, Task.attempt, Task.state, Task.team_id, Task.account_id, Task.model, Task.waited_until),
            *(Task.upstream_task_id, Task.submitted_at, Task.place_id, Task.cancel_requested_at),
            *(Team.weight, AccountModel.learned_seconds),
        )
        .join(Team, Team.id == Task.team_id)
        .outerjoin(AccountModel, model)
        .where(Task.main_account == main_account, Task.region == region, Task.state.in_(("pending", "running")))
        .where(Task.upstream_task_id.isnot(None))
        .order_by(Task.id)
        .limit(part.limit)
    )
    if part.after is not None:
        query = query.where(Task.id > part.after)
    if part.ids is not None:
        query = query.where(Task.id.in_(part.ids))
    return (await session.execute(query)).mappings().all()


async def mark_started_all_teams(session: Session, tasks: Sequence[tuple[UUID, int]], *, at: datetime) -> list[UUID]:
    """Move tasks that the upstream's list shows at work, given with their attempts, to `running`; return which moved.

    One that somebody else is changing at this moment is passed over: it is on its way further.
    """
    params = {"ids": [task_id for task_id, _ in tasks], "attempts": [attempt for _, attempt in tasks], "at": at}
    return [row["id"] for row in await fetch(session, _MARK_STARTED, params)]
