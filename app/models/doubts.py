"""The table `doubts`: every attempt whose answer was lost, and the evidence that settles it."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, one_of


class Verdict(StrEnum):
    """How a doubt ended. `refused`: the operator said that the upstream did not take it. `answered`: a receipt came
    late, from a sender that had been given up."""

    ADOPTED = "adopted"
    ABSENT = "absent"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    ANSWERED = "answered"


class Doubt(Base):
    """One attempt in doubt. Made in the commit that moves its task to `doubtful`; looked at by the account's owner.

    The row outlives the doubt: what the upstream lists late may still be of an attempt that was given up.
    """

    __tablename__ = "doubts"
    __table_args__ = (
        CheckConstraint(one_of("verdict", Verdict), name="verdict_known"),
        CheckConstraint("(verdict IS NOT NULL) = (settled_at IS NOT NULL)", name="settled_iff_verdict"),
        Index("ix_doubts_open", "main_account", "region", "next_look_at", postgresql_where=text("verdict IS NULL")),
        Index("ix_doubts_window", "main_account", "region", "model", "sent_at"),
    )

    task_id: Mapped[UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    main_account: Mapped[str]
    region: Mapped[str]
    model: Mapped[str]
    account_key_id: Mapped[UUID | None]  # the upstream key of the call
    request_id: Mapped[str | None]  # of the upstream's 5xx, where it sent one
    sent_at: Mapped[datetime]  # the call left no earlier
    ends_at: Mapped[datetime]  # its answer was lost then; a sender that died: when its call would have been given up
    call_deadline_at: Mapped[datetime]  # two minutes after it, at the earliest, a listing proves anything absent
    next_look_at: Mapped[datetime]  # when the account's owner lists for it; moved with each listing
    looked_at: Mapped[datetime | None]  # the last complete listing began
    absent_at: Mapped[datetime | None]  # the first complete listing that could prove it absent, and did not show it
    candidates: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))  # as last listed
    verdict: Mapped[str | None]
    settled_at: Mapped[datetime | None]
