"""The table `work`: whatever is due has one narrow row here, and only here."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base


class Work(Base):
    """Due work. Written only through lib/leases.py and the claims in tasks/store.py.

    Kinds: `account` (key main_account/region: list sweeps, result reads), `submit` (task), `deliver` (asset),
    `webhook` (event, endpoint), `chore` (name), `owner` (a process that polls: due
    when it has gone silent). A row is deleted when its work is finished.
    """

    __tablename__ = "work"
    __table_args__ = (
        Index("ix_work_due", "kind", text("priority DESC"), "due_at"),
        # queued work that somebody waits for on a connection: few, and sent first
        Index("ix_work_waited", "team_id", "key", postgresql_where=text("kind = 'submit' AND priority > 0")),
        {
            # hot and short-lived: room for updates in the page, and vacuum long before a scan notices
            "postgresql_with": {
                "fillfactor": "70",
                "autovacuum_vacuum_scale_factor": "0.01",
                "autovacuum_vacuum_threshold": "200",
                "autovacuum_vacuum_cost_delay": "0",
            }
        },
    )

    kind: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    account_id: Mapped[UUID | None]
    team_id: Mapped[UUID | None]
    due_at: Mapped[datetime]  # while leased: the lease's end, so a dead holder's work is due again by itself
    deadline_at: Mapped[datetime | None]  # after this the work has lost its point; its step decides what then
    priority: Mapped[int] = mapped_column(server_default="0")  # higher first: somebody waits on a connection
    attempts: Mapped[int] = mapped_column(server_default="0")  # claims since the last success or "not yet"
    lease_id: Mapped[UUID | None]  # which claim holds it; for people and logs
    lease_until: Mapped[datetime | None]
    epoch: Mapped[int] = mapped_column(server_default="0")  # +1 with each claim: the fence of every write-back
