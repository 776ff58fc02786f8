"""SQL of doubts: the attempts whose answer was lost, what else may have made a listed task, and how doubts end."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, func, or_, select, text, update

from app.lib.db import Session, Statement, fetch
from app.models import AccountKey, Doubt, Task, TaskBody, TaskEvent, Team
from app.models.doubts import Verdict

_NOW = "coalesce(cast(:now AS timestamptz), now())"
FIRST_LOOK_SECONDS = 10.0

_OPEN = text(f"""
    INSERT INTO doubts (task_id, attempt, main_account, region, model, account_key_id, request_id, sent_at, ends_at,
                        call_deadline_at, next_look_at)
    SELECT id, attempt, main_account, region, model, account_key_id, upstream_request_id, sent_at,
           CASE WHEN :was_seen THEN greatest({_NOW}, sent_at) ELSE call_deadline_at END, call_deadline_at,
           {_NOW} + make_interval(secs => :first_look_seconds)
    FROM tasks WHERE id = :task_id AND state = 'doubtful'
    ON CONFLICT DO NOTHING
""")  # noqa: S608 -- the only thing put in is our own constant

_DUE = text(f"""
    SELECT doubts.task_id, doubts.attempt, doubts.model, doubts.sent_at, doubts.ends_at, doubts.call_deadline_at
    FROM doubts JOIN tasks ON tasks.id = doubts.task_id AND tasks.attempt = doubts.attempt
    WHERE doubts.main_account = :main_account AND doubts.region = :region AND doubts.verdict IS NULL
      AND doubts.next_look_at <= {_NOW} AND tasks.state = 'doubtful'
    ORDER BY doubts.model, doubts.sent_at
    LIMIT :limit
""")  # noqa: S608

# Whatever may have made a task that is listed and has no receipt: attempts in doubt, also those that were given up, and
# calls that are on the wire. A receipt that came late settles its attempt.
_SENDINGS = text("""
    SELECT doubts.task_id, doubts.attempt, doubts.sent_at, doubts.ends_at, doubts.call_deadline_at,
           coalesce(doubts.request_id, '') AS request_id, coalesce(account_keys.upstream_key_id, '') AS api_key_id,
           doubts.account_key_id, doubts.absent_at, doubts.candidates,
           doubts.verdict IS NULL AND tasks.state = 'doubtful' AND tasks.attempt = doubts.attempt AS is_open
    FROM doubts JOIN tasks ON tasks.id = doubts.task_id
    LEFT JOIN account_keys ON account_keys.id = doubts.account_key_id
    WHERE doubts.main_account = :main_account AND doubts.region = :region AND doubts.model = :model
      AND doubts.sent_at <= :until AND doubts.ends_at >= :since AND doubts.verdict IS DISTINCT FROM 'adopted'
      AND NOT (tasks.attempt = doubts.attempt AND tasks.upstream_task_id IS NOT NULL)
    UNION ALL
    SELECT tasks.id, tasks.attempt, tasks.sent_at, tasks.call_deadline_at, tasks.call_deadline_at, '',
           coalesce(account_keys.upstream_key_id, ''), tasks.account_key_id, NULL, '[]', false
    FROM tasks LEFT JOIN account_keys ON account_keys.id = tasks.account_key_id
    WHERE tasks.main_account = :main_account AND tasks.region = :region AND tasks.model = :model
      AND tasks.state = 'submitting' AND tasks.upstream_call = 'async' AND tasks.sent_at <= :until
      AND tasks.call_deadline_at >= :since
    ORDER BY sent_at
""")

_OWNED = text("""
    SELECT tasks.upstream_task_id, tasks.account_key_id, tasks.sent_at, tasks.submitted_at,
           EXISTS (SELECT 1 FROM doubts WHERE doubts.task_id = tasks.id AND doubts.attempt = tasks.attempt) AS doubted
    FROM tasks
    WHERE main_account = :main_account AND region = :region AND upstream_task_id = ANY (cast(:ids AS text[]))
    UNION ALL
    SELECT upstream_task_id, NULL, NULL, NULL, true
    FROM upstream_orphans
    WHERE main_account = :main_account AND region = :region AND upstream_task_id = ANY (cast(:ids AS text[]))
      AND task_id IS NOT NULL
""")

# What was adopted was made when the upstream says so: its age decides when it is forgotten there.
_ADOPT = Statement(f"""
    WITH task AS (
        UPDATE tasks SET state = 'pending', upstream_task_id = :upstream_task_id,
               upstream_request_id = coalesce(nullif(:request_id, ''), upstream_request_id),
               submitted_at = greatest(sent_at, least(coalesce(cast(:made_at AS timestamptz), sent_at), {_NOW})),
               waited_until = CASE WHEN mode = 'durable' THEN waited_until END
        WHERE id = :task_id AND attempt = :attempt AND upstream_task_id IS NULL AND state = 'doubtful'
        RETURNING id, attempt, state, main_account, region
    ), event AS (
        INSERT INTO task_events (task_id, attempt, state, at, reason)
        SELECT id, attempt, state, {_NOW}, :reason FROM task
    ), doubt AS (
        UPDATE doubts SET verdict = 'adopted', settled_at = {_NOW}
        FROM task WHERE doubts.task_id = task.id AND doubts.attempt = task.attempt
    ), orphan AS (
        UPDATE upstream_orphans SET task_id = task.id, attempt = task.attempt
        FROM task WHERE upstream_orphans.main_account = task.main_account AND upstream_orphans.region = task.region
                    AND upstream_orphans.upstream_task_id = :upstream_task_id AND upstream_orphans.task_id IS NULL
    )
    SELECT count(*) AS adopted FROM task
""")  # noqa: S608

_ANSWERED = text(f"""
    UPDATE doubts SET verdict = 'answered', settled_at = {_NOW}
    FROM tasks
    WHERE doubts.verdict IS NULL AND tasks.id = doubts.task_id AND tasks.state <> 'doubtful'
    RETURNING doubts.task_id
""")  # noqa: S608

_ORPHANS = text(f"""
    INSERT INTO upstream_orphans (id, main_account, region, upstream_task_id, reason, seen_at)
    SELECT shown.id, :main_account, :region, shown.upstream_task_id, 'listed', {_NOW}
    FROM unnest(cast(:ids AS uuid[]), cast(:upstream_task_ids AS text[])) AS shown (id, upstream_task_id)
    WHERE NOT EXISTS (
        SELECT 1 FROM tasks WHERE tasks.main_account = :main_account AND tasks.region = :region
           AND tasks.upstream_task_id = shown.upstream_task_id
    )
    ON CONFLICT DO NOTHING
    RETURNING upstream_task_id
""")  # noqa: S608


async def open_doubt(session: Session, task_id: UUID, *, was_seen: bool, now: datetime | None) -> None:
    """Write down a doubt, in the commit that moves its task there. `was_seen`: its sender saw the answer lost, now."""
    params = {"task_id": task_id, "was_seen": was_seen, "first_look_seconds": FIRST_LOOK_SECONDS, "now": now}
    await session.execute(_OPEN, params)


async def read_due_all_teams(
    session: Session, home: Mapping[str, str], *, limit: int, now: datetime | None
) -> Sequence[RowMapping]:
    """Read the doubts of a main account and region for which the list may say something new."""
    return (await session.execute(_DUE, {**home, "limit": limit, "now": now})).mappings().all()


async def read_sendings_all_teams(
    session: Session, home: Mapping[str, str], *, model: str, since: datetime, until: datetime
) -> Sequence[RowMapping]:
    """Read every attempt without a receipt that may have made a task of a model in a window. Before `read_owned`."""
    params = {**home, "model": model, "since": since, "until": until}
    return (await session.execute(_SENDINGS, params)).mappings().all()


async def read_owned_all_teams(session: Session, home: Mapping[str, str], ids: Sequence[str]) -> Sequence[RowMapping]:
    """Read which upstream tasks are known to be whose, with what their receipts teach."""
    return (await session.execute(_OWNED, {**home, "ids": list(ids)})).mappings().all()


async def read_key_ids(session: Session, key_ids: Sequence[UUID]) -> Mapping[UUID, str]:
    """Read the upstream's ids of upstream keys, as far as they were learned."""
    rows = await session.execute(
        select(AccountKey.id, AccountKey.upstream_key_id).where(
            AccountKey.id.in_(key_ids), AccountKey.upstream_key_id.isnot(None)
        )
    )
    return {row.id: row.upstream_key_id for row in rows}


async def learn_key_id(session: Session, key_id: UUID, upstream_key_id: str) -> None:
    """Remember the upstream's id of an upstream key; it never changes."""
    await session.execute(
        update(AccountKey)
        .where(AccountKey.id == key_id, AccountKey.upstream_key_id.is_(None))
        .values(upstream_key_id=upstream_key_id)
    )


async def note_look(session: Session, task_id: UUID, *, attempt: int, seen: dict[str, Any]) -> None:
    """Write down what a list said about an open doubt, and when to look next."""
    await session.execute(
        update(Doubt).where(Doubt.task_id == task_id, Doubt.attempt == attempt, Doubt.verdict.is_(None)).values(seen)
    )


async def postpone(session: Session, doubts: Sequence[tuple[UUID, int]], *, until: datetime) -> None:
    """Look later at doubts whose list could not be read."""
    same = [(Doubt.task_id == task_id) & (Doubt.attempt == attempt) for task_id, attempt in doubts]
    await session.execute(update(Doubt).where(or_(*same), Doubt.verdict.is_(None)).values(next_look_at=until))


async def adopt(session: Session, values: dict[str, Any]) -> bool:
    """Give a listed upstream task to an attempt in doubt; False: it is in doubt no more.

    Raises:
        Duplicate: the upstream task is another task's.
    """
    return bool((await fetch(session, _ADOPT, values))[0]["adopted"])


async def lock_doubtful_all_teams(session: Session, task_id: UUID, *, attempt: int) -> RowMapping | None:
    """Lock a task that is in doubt, with what its team chose; None: it is in doubt no more."""
    rows = await session.execute(
        select(*Task.__table__.c, Team.resubmit)
        .join(Team, Team.id == Task.team_id)
        .where(Task.id == task_id, Task.attempt == attempt, Task.state == "doubtful")
        .with_for_update(of=Task.__table__)
    )
    return rows.mappings().one_or_none()


async def close_doubt(session: Session, task_id: UUID, *, attempt: int, verdict: Verdict, at: datetime) -> None:
    """Say how a doubt ended, in the commit that ends it."""
    await session.execute(
        update(Doubt)
        .where(Doubt.task_id == task_id, Doubt.attempt == attempt, Doubt.verdict.is_(None))
        .values(verdict=str(verdict), settled_at=at)
    )


async def close_answered_all_teams(session: Session, *, now: datetime | None) -> int:
    """Say of doubts whose task went on by itself that they are over; return how many."""
    return len((await session.execute(_ANSWERED, {"now": now})).all())


async def insert_orphans(
    session: Session, home: Mapping[str, str], orphans: Mapping[str, UUID], *, now: datetime | None
) -> list[str]:
    """Write down listed upstream tasks that are nobody's, each with an id for its row; return those that are new."""
    params = {**home, "ids": list(orphans.values()), "upstream_task_ids": list(orphans), "now": now}
    return list((await session.execute(_ORPHANS, params)).scalars())


async def read_doubts_all_teams(session: Session, task_id: UUID) -> Sequence[RowMapping]:
    """Read the doubts of a task's attempts, for the operator."""
    rows = await session.execute(select(*Doubt.__table__.c).where(Doubt.task_id == task_id).order_by(Doubt.attempt))
    return rows.mappings().all()


async def read_requests_all_teams(session: Session, task_ids: Sequence[UUID]) -> Sequence[RowMapping]:
    """Read what was asked, sealed, of tasks whose prompts are to be compared."""
    rows = await session.execute(
        select(TaskBody.task_id, TaskBody.request).where(TaskBody.task_id.in_(task_ids), TaskBody.request.isnot(None))
    )
    return rows.mappings().all()


async def count_lost_senders(session: Session, task_id: UUID, *, reason: str) -> int:
    """Count how often the process died that was sending a task."""
    counted = select(func.count()).where(TaskEvent.task_id == task_id, TaskEvent.reason == reason)
    return int((await session.execute(counted)).scalar_one())
