"""SQL of the outbox."""

from typing import Any

from sqlalchemy.dialects.postgresql import insert

from app.lib.db import Session
from app.models import WebhookEvent


async def insert_event(session: Session, values: dict[str, Any]) -> None:
    """Write an event once per task and type."""
    await session.execute(
        insert(WebhookEvent).values(values).on_conflict_do_nothing(index_elements=["task_id", "type"])
    )
