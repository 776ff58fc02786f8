"""SQL of the outbox."""

from typing import Any

from app.lib.db import AnySession, Statement, run

_INSERT = Statement("""
    INSERT INTO webhook_events (id, team_id, task_id, type, payload)
    VALUES (:id, :team_id, :task_id, :type, cast(cast(:payload AS text) AS jsonb))
    ON CONFLICT (task_id, type) DO NOTHING
""")


async def insert_event(session: AnySession, values: dict[str, Any]) -> None:
    """Write an event once per task and type."""
    await run(session, _INSERT, values)
