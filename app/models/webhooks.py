"""The table `webhook_events`: the outbox. Written by tasks/finish.py in the transaction that ends a task."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id


class WebhookEvent(Base):
    """Something a team may want to be told. One row per task and type: an ending is told once."""

    __tablename__ = "webhook_events"
    __table_args__ = (UniqueConstraint("task_id", "type"),)

    id: Mapped[Id]
    team_id: Mapped[UUID] = mapped_column(ForeignKey("teams.id"), index=True)
    task_id: Mapped[UUID]  # no foreign key: the event outlives the task's retention
    type: Mapped[str]  # task.succeeded, task.failed, task.canceled, task.expired
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)  # ids and states; no prompt, no link, no secret
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
