"""SQL of resends: idempotency keys, and tasks whose callers left without an answer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from app.lib.db import AnySession, Session, Statement, fetch

_NOW = "coalesce(cast(:now AS timestamptz), now())"

# An expired key is as good as none: it is written anew.
_INSERT = Statement(f"""
    INSERT INTO idempotency_keys (team_id, key, request_hash, task_id, created_at, expires_at)
    VALUES (:team_id, :key, :request_hash, :task_id, {_NOW}, {_NOW} + make_interval(secs => :life_seconds))
    ON CONFLICT (team_id, key) DO UPDATE
    SET request_hash = excluded.request_hash, task_id = excluded.task_id, created_at = excluded.created_at,
        expires_at = excluded.expires_at
    WHERE idempotency_keys.expires_at <= {_NOW}
       OR idempotency_keys.created_at < {_NOW} - interval '1 hour'  -- younger ones may not be visible yet
          AND NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.id = idempotency_keys.task_id)
       OR EXISTS (SELECT 1 FROM tasks WHERE tasks.id = idempotency_keys.task_id
                  AND tasks.refused_inline AND tasks.answer_status IS NULL)
    RETURNING 1
""")  # noqa: S608 -- the only thing put in is our own constant

_FIND = Statement(f"""
    SELECT idempotency_keys.request_hash, tasks.id AS task_id, tasks.mode
    FROM idempotency_keys JOIN tasks ON tasks.id = idempotency_keys.task_id
    WHERE idempotency_keys.team_id = :team_id AND tasks.team_id = :team_id AND idempotency_keys.key = :key
      AND idempotency_keys.expires_at > {_NOW}
""")  # noqa: S608

# Waits for whoever writes to such a task just now: passing it by would pay for it twice.
_ADOPT = Statement(f"""
    UPDATE tasks SET unanswered_at = NULL,
           waited_until = CASE WHEN mode = 'durable' AND finished_at IS NULL THEN {_NOW} + interval '60 seconds' END
    WHERE id = (
        SELECT id FROM tasks
        WHERE api_key_id = :api_key_id AND request_hash = :request_hash AND NOT refused_inline
          AND unanswered_at > {_NOW} - make_interval(secs => :life_seconds)
        ORDER BY unanswered_at LIMIT 1
        FOR UPDATE
    )
    RETURNING id AS task_id, mode
""")  # noqa: S608

_LEFT = text(f"""
    UPDATE tasks SET unanswered_at = {_NOW}, waited_until = NULL WHERE id = :id AND NOT refused_inline
""")  # noqa: S608

_FORGET = text(f"""
    DELETE FROM idempotency_keys
    WHERE (team_id, key) IN (
        SELECT team_id, key FROM idempotency_keys WHERE expires_at <= {_NOW} ORDER BY expires_at LIMIT :limit
    )
""")  # noqa: S608

_WAIT_ON = text(f"""
    UPDATE tasks SET waited_until = {_NOW} + make_interval(secs => :seconds)
    WHERE id = ANY (:ids) AND waited_until IS NOT NULL
""")  # noqa: S608

_ANSWERED = text("""
    UPDATE tasks SET waited_until = NULL, unanswered_at = NULL
    WHERE id = ANY (:ids) AND (waited_until IS NOT NULL OR unanswered_at IS NOT NULL)
""")

_DIED = text(f"""
    UPDATE tasks SET unanswered_at = {_NOW}, waited_until = NULL WHERE waited_until <= {_NOW} AND unanswered_at IS NULL
""")  # noqa: S608

_DIED_SENDING = text(f"""
    UPDATE tasks SET unanswered_at = {_NOW}, waited_until = NULL
    WHERE id = ANY (:ids) AND mode <> 'durable' AND (waited_until IS NOT NULL OR mode = 'relay')
""")  # noqa: S608


async def insert_key(session: AnySession, values: dict[str, Any]) -> bool:
    """Write down which task a team's key stands for; False: it stands for one already.

    A key whose task was never taken (our account was at fault, or its commit broke off) is free again.
    """
    return bool(await fetch(session, _INSERT, values))


async def find_key(session: AnySession, team_id: UUID, *, key: str, now: datetime | None) -> Mapping[str, Any] | None:
    """Read what a team's key stands for."""
    rows = await fetch(session, _FIND, {"team_id": team_id, "key": key, "now": now})
    return rows[0] if rows else None


async def adopt_unanswered(session: AnySession, values: dict[str, Any]) -> Mapping[str, Any] | None:
    """Take up the oldest task of an API key whose equal request was never answered, and clear its mark."""
    rows = await fetch(session, _ADOPT, values)
    return rows[0] if rows else None


async def mark_left(session: Session, task_id: UUID, *, now: datetime | None) -> None:
    """Mark a task whose caller left before its answer."""
    await session.execute(_LEFT, {"id": task_id, "now": now})


async def wait_on(session: Session, task_ids: Sequence[UUID], *, seconds: float, now: datetime | None) -> None:
    """Say that tasks are still waited for here."""
    await session.execute(_WAIT_ON, {"ids": list(task_ids), "seconds": seconds, "now": now})


async def mark_answered(session: Session, task_ids: Sequence[UUID]) -> None:
    """Say that nobody waits for tasks any more: they were answered, whatever was thought of their callers."""
    await session.execute(_ANSWERED, {"ids": list(task_ids)})


async def mark_unanswered_all_teams(session: Session, *, now: datetime | None) -> int:
    """Mark tasks whose waiting process has not been heard of; return how many."""
    return (await session.execute(_DIED, {"now": now})).rowcount


async def mark_unanswered_if_waited(session: Session, task_ids: Sequence[UUID], *, now: datetime | None) -> None:
    """Mark tasks whose sender died while its caller waited; a durable one's waiting process is another question."""
    await session.execute(_DIED_SENDING, {"ids": list(task_ids), "now": now})


async def forget_keys_all_teams(session: Session, *, now: datetime | None, limit: int) -> int:
    """Delete expired idempotency keys, a batch at a time."""
    return (await session.execute(_FORGET, {"now": now, "limit": limit})).rowcount
