"""SQL of tasks: their rows, bodies and events, the room they take, and the claims that join `work` with them.

Every change of state goes through `move` or one of the two statements of the create path; all are compare-and-set
over exactly the moves of states.py, and each writes its event.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, and_, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.lib import leases
from app.lib.db import AnySession, Session, Statement, fetch, run
from app.models import Asset, Task, TaskBody, UpstreamOrphan, Work
from app.models.tasks import State
from app.tasks.states import may_reach

_NOW = "coalesce(cast(:now AS timestamptz), now())"

_INSERT = Statement(f"""
    WITH task AS (
        INSERT INTO tasks (id, team_id, api_key_id, mode, upstream_call, state, attempt, model, path, request_hash,
                           pinned, region, account_id, main_account, account_key_id, place_id, tag, most, request_id,
                           created_at, queue_deadline_at, sent_at, call_deadline_at, submitted_at, waited_until)
        VALUES (:id, :team_id, :api_key_id, :mode, :upstream_call, :state, :attempt, :model, :path, :request_hash,
                :pinned, :region, :account_id, :main_account, :account_key_id,
                (SELECT place_id FROM destinations WHERE team_id = :team_id), :tag, :most, :request_id, {_NOW},
                {_NOW} + make_interval(secs => :queue_seconds), cast(:sent_at AS timestamptz),
                cast(:sent_at AS timestamptz) + make_interval(secs => :call_seconds),
                CASE WHEN :upstream_call = 'sync' THEN cast(:sent_at AS timestamptz) END,
                coalesce({_NOW} + make_interval(secs => cast(:waited_seconds AS float8)),
                         cast(:lease_until AS timestamptz)))
        RETURNING id, attempt, state, created_at, place_id
    ), body AS (
        INSERT INTO task_bodies (task_id, headers, request)
        SELECT id, cast(cast(:headers AS text) AS jsonb), :request FROM task
    ), event AS (
        INSERT INTO task_events (task_id, attempt, state, at) SELECT id, attempt, state, created_at FROM task
    ), due AS (
        INSERT INTO work (kind, key, account_id, team_id, due_at, deadline_at, priority, lease_id, lease_until, epoch,
                          attempts)
        VALUES ('submit', :key, :account_id, :team_id, coalesce(cast(:lease_until AS timestamptz), {_NOW}),
                {_NOW} + make_interval(secs => :queue_seconds), :priority, :lease_id,
                cast(:lease_until AS timestamptz), :attempt, :attempt)
    )
    SELECT place_id FROM task
""")  # noqa: S608

# The work row is deleted first (lock order: work, tasks): the UPDATE's condition makes it wait for `gone`.
# A create that waits on a connection is answered with its receipt; a call that runs as a task is waited for further.
_RECEIPT = Statement(f"""
    WITH gone AS (
        DELETE FROM work WHERE kind = 'submit' AND key = :key AND epoch = :epoch RETURNING 1
    ), task AS (
        UPDATE tasks SET state = 'pending', upstream_task_id = :upstream_task_id,
               upstream_request_id = :upstream_request_id, submitted_at = {_NOW},
               waited_until = CASE WHEN mode = 'durable' THEN waited_until END
        WHERE id = :id AND attempt = :attempt AND upstream_task_id IS NULL AND state IN ('submitting', 'doubtful')
          AND (SELECT count(*) FROM gone) >= 0
        RETURNING id, attempt, state
    ), event AS (
        INSERT INTO task_events (task_id, attempt, state, at, reason)
        SELECT id, attempt, state, {_NOW}, :reason FROM task
    )
    SELECT count(*) AS settled FROM task
""")  # noqa: S608

_CLAIM_LAPSED = text(f"""
    WITH lapsed AS (
        SELECT work.kind, work.key FROM work JOIN tasks ON tasks.id = cast(work.key AS uuid)
        WHERE work.kind = 'submit' AND work.due_at <= {_NOW}
          AND (tasks.state = 'submitting' OR tasks.state = 'running' AND tasks.upstream_call = 'sync')
        ORDER BY work.due_at LIMIT :limit
        FOR UPDATE OF work, tasks SKIP LOCKED
    ), gone AS (
        DELETE FROM work USING lapsed WHERE work.kind = lapsed.kind AND work.key = lapsed.key
        RETURNING cast(work.key AS uuid) AS id
    )
    SELECT tasks.* FROM tasks JOIN gone USING (id)
""")  # noqa: S608


_INSERT_ASSET = Statement("""
    INSERT INTO assets (id, task_id, team_id, position, json_path, source, source_expires_at, state, place_id)
    VALUES (:id, :task_id, :team_id, :position, :json_path, :source, :source_expires_at, :state, :place_id)
    ON CONFLICT (id) DO NOTHING  -- written again where nobody knows whether the first commit happened
""")

_NOTE_USAGE = Statement("""
    UPDATE tasks SET seen_usage = cast(cast(:seen AS text) AS jsonb) WHERE id = :id AND attempt = :attempt
""")

_WRITE_ANSWER = Statement("UPDATE task_bodies SET answer = :answer WHERE task_id = :task_id")

_FORGET_LATER = Statement("UPDATE task_bodies SET forget_at = :forget_at WHERE task_id = :task_id")


async def insert_task(session: AnySession, values: dict[str, Any]) -> UUID | None:
    """Insert a task with its body, its first event and its work, in one statement; return its team's present place."""
    place_id: UUID | None = (await fetch(session, _INSERT, values))[0]["place_id"]
    return place_id


async def record_receipt(session: AnySession, values: dict[str, Any]) -> bool:
    """Write the upstream's task id; False: the task had moved on, and the id is an orphan.

    Raises:
        Duplicate: the id is already another task's.
    """
    return bool((await fetch(session, _RECEIPT, values))[0]["settled"])


async def has_receipt(session: Session, task_id: UUID, upstream_task_id: str) -> bool:
    """Tell whether a task has just this receipt."""
    same = select(Task.id).where(Task.id == task_id, Task.upstream_task_id == upstream_task_id)
    return bool(await session.scalar(select(same.exists())))


async def move(
    session: AnySession,
    task_id: UUID,
    to: State,
    *,
    attempt: int | None = None,
    reason: str | None = None,
    **values: Any,
) -> Mapping[str, Any] | None:
    """Move a task to a state, if it may go there and is still in that attempt; return its row, or None if not.

    Whoever waits on a connection is answered with the first move, unless its call runs as a task: that wait goes on.
    """
    params = {
        **values,
        "moved_id": task_id,
        "moved_attempt": attempt,
        "moved_to": str(to),
        "moved_from": [str(state) for state in may_reach(to)],
        "moved_why": reason,
    }
    rows = await fetch(session, _move_with(tuple(sorted(values))), params)
    return rows[0] if rows else None


@lru_cache(maxsize=64)
def _move_with(columns: tuple[str, ...]) -> Statement:
    """Return the statement that moves a task and sets these columns; their names are this house's own."""
    sets = "".join(f", {column} = :{column}" for column in columns)
    return Statement(f"""
        WITH task AS (
            UPDATE tasks SET state = cast(:moved_to AS text),
                   waited_until = CASE WHEN mode = 'durable' THEN waited_until END{sets}
            WHERE id = :moved_id AND state = ANY (cast(:moved_from AS text[]))
              AND (cast(:moved_attempt AS int) IS NULL OR attempt = cast(:moved_attempt AS int))
            RETURNING *
        ), event AS (
            INSERT INTO task_events (task_id, attempt, state, reason)
            SELECT id, attempt, state, cast(:moved_why AS text) FROM task
        )
        SELECT * FROM task
    """)  # noqa: S608


async def lock_if_still_all_teams(session: Session, task_id: UUID, state: State) -> bool:
    """Lock a task that was read as being in a state; False: it has left it, perhaps just now."""
    found = await session.execute(select(Task.id).where(Task.id == task_id, Task.state == str(state)).with_for_update())
    return found.scalar_one_or_none() is not None


async def claim_lapsed_all_teams(session: Session, *, limit: int, now: datetime | None) -> Sequence[RowMapping]:
    """Take away the work of tasks whose sender died between the mark and the record; return the tasks, locked."""
    return (await session.execute(_CLAIM_LAPSED, {"limit": limit, "now": now})).mappings().all()


async def insert_orphan(session: Session, values: dict[str, Any]) -> None:
    """Write down an upstream task that is nobody's."""
    await session.execute(insert(UpstreamOrphan).values(values).on_conflict_do_nothing())


async def mark_stolen(
    session: Session, main_account: str, region: str, *, upstream_task_id: str, task_id: UUID
) -> None:
    """Two tasks claim one upstream task: both need an operator, neither changes its state."""
    owner = and_(Task.main_account == main_account, Task.region == region, Task.upstream_task_id == upstream_task_id)
    await session.execute(update(Task).where(or_(Task.id == task_id, owner)).values(needs_operator=True))


async def request_cancel(session: Session, team_id: UUID, task_id: UUID, *, at: datetime) -> bool:
    """Write down that a team wants a task cancelled upstream; False: it does not wait there, or not any more."""
    done = await session.execute(
        update(Task)
        .where(Task.id == task_id, Task.team_id == team_id, Task.mode != "relay", Task.state == "pending")
        .values(cancel_requested_at=func.coalesce(Task.cancel_requested_at, at))
    )
    return bool(done.rowcount)


async def clear_cancel_all_teams(session: Session, task_id: UUID) -> None:
    """Forget the wish to cancel a task: the upstream refused it, and the task goes on."""
    await session.execute(update(Task).where(Task.id == task_id).values(cancel_requested_at=None))


async def read_overdue_all_teams(
    session: Session, state: State, *, before: datetime | None, seconds: float, limit: int
) -> Sequence[RowMapping]:
    """Read tasks that stayed too long in a state: queued past its deadline, doubtful `seconds` after its send,
    delivering past its grace. `before` is the tests' clock."""
    now = func.coalesce(literal(before, Task.created_at.type), func.now())
    overdue = {
        State.QUEUED: Task.queue_deadline_at <= now,
        State.DOUBTFUL: Task.sent_at <= now - func.make_interval(0, 0, 0, 0, 0, 0, seconds),
        State.DELIVERING: Task.grace_until <= now,
    }[state]
    rows = await session.execute(
        select(Task.id, Task.attempt).where(Task.state == str(state), overdue).order_by(Task.id).limit(limit)
    )
    return rows.mappings().all()


async def note_oddity(session: Session, task_id: UUID, *, attempt: int, oddity: str) -> None:
    """Keep what the upstream said of a task that it never should; the first stays."""
    same = (Task.id == task_id, Task.attempt == attempt, Task.oddity.is_(None))
    await session.execute(update(Task).where(*same).values(oddity=oddity))


async def mark_poisoned(session: Session, asset_id: UUID, *, reason: str) -> UUID | None:
    """Say why a file is not copied for now, and that its task needs an operator; return the task."""
    whose = select(Asset.task_id).where(Asset.id == asset_id, Asset.state != "stored").scalar_subquery()
    marked = update(Task).where(Task.id == whose).values(needs_operator=True).returning(Task.id)
    task_id: UUID | None = (await session.execute(marked)).scalar_one_or_none()
    await session.execute(update(Asset).where(Asset.id == asset_id, Asset.state != "stored").values(reason=reason))
    return task_id


async def note_key(session: Session, task_id: UUID, *, attempt: int, account_key_id: UUID) -> None:
    """Write down with which other key an attempt calls once more."""
    same = (Task.id == task_id, Task.attempt == attempt)
    await session.execute(update(Task).where(*same).values(account_key_id=account_key_id))


async def note_usage(session: AnySession, task_id: UUID, *, attempt: int, seen: dict[str, Any]) -> None:
    """Keep what a stream says it has used so far."""
    await run(session, _NOTE_USAGE, {"id": task_id, "attempt": attempt, "seen": json.dumps(seen)})


async def read_streamed(session: Session, task_id: UUID) -> list[dict[str, Any]]:
    """Read the files that a stream had announced when its process died."""
    columns = (Asset.id, Asset.json_path, Asset.source_expires_at)
    rows = await session.execute(select(*columns).where(Asset.task_id == task_id).order_by(Asset.position))
    return [dict(row) for row in rows.mappings()]


async def insert_assets(session: AnySession, assets: list[dict[str, Any]]) -> None:
    """Write the files that an outcome named."""
    for asset in assets:
        await run(session, _INSERT_ASSET, asset)


async def has_unsettled_assets(session: Session, task_id: UUID) -> bool:
    """Tell whether a task still has files to wait for."""
    unsettled = select(Asset.id).where(Asset.task_id == task_id, Asset.state.in_(("waiting", "held", "blocked")))
    return bool(await session.scalar(select(unsettled.exists())))


async def write_answer(session: AnySession, task_id: UUID, answer: bytes) -> None:
    """Keep the upstream's final answer, sealed."""
    await run(session, _WRITE_ANSWER, {"task_id": task_id, "answer": answer})


async def forget_later(session: AnySession, task_id: UUID, *, at: datetime) -> None:
    """Say when the request of a task that has ended is to be deleted."""
    await run(session, _FORGET_LATER, {"task_id": task_id, "forget_at": at})


async def forget_requests_all_teams(session: Session, *, before: datetime, limit: int) -> int:
    """Delete the requests whose time has come, a batch at a time."""
    due = (
        select(TaskBody.task_id)
        .where(TaskBody.forget_at <= before, TaskBody.request.isnot(None))
        .order_by(TaskBody.forget_at)
        .limit(limit)
    )
    done = await session.execute(update(TaskBody).where(TaskBody.task_id.in_(due)).values(request=None))
    return done.rowcount


async def lock_work(session: Session, kind: str, key: str) -> leases.Lease | None:
    """Lock a row of work whoever holds it, as a lease that `leases.finish` takes; None: there is none."""
    found = select(*Work.__table__.c).where(Work.kind == kind, Work.key == key).with_for_update()
    row = (await session.execute(found)).mappings().one_or_none()
    return leases.lease_from(row, ends_monotonic=0.0) if row is not None else None
