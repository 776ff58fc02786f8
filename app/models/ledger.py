"""The tables `ledger_entries` and `usage_daily`: what each team used. Append only.

Triggers refuse UPDATE, DELETE and TRUNCATE of `ledger_entries` (made in the migration): a correction is a new line.
"""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Id, one_of


class EntryKind(StrEnum):
    """`usage`: the upstream reported it. `presumed`: the task expired unread. `uncertain`: the outcome is unknown.
    `correction`: settles or amends an earlier line. Bills sum `usage` and `correction`."""

    USAGE = "usage"
    PRESUMED = "presumed"
    UNCERTAIN = "uncertain"
    CORRECTION = "correction"


class LedgerEntry(Base):
    """One immutable line: (task, unit, tier). No foreign keys: a line outlives its task, team row and account."""

    __tablename__ = "ledger_entries"
    __table_args__ = (
        CheckConstraint(one_of("kind", EntryKind), name="kind_known"),
        Index(
            "uq_ledger_entries_task_unit_tier",
            "task_id",
            "unit",
            "tier",
            unique=True,
            postgresql_where=text("kind <> 'correction'"),
        ),
        Index("ix_ledger_entries_team_id_billed_at", "team_id", "billed_at"),
        Index("ix_ledger_entries_billed_at", "billed_at"),
    )

    id: Mapped[Id]
    kind: Mapped[str]
    team_id: Mapped[UUID]
    api_key_id: Mapped[str]
    task_id: Mapped[UUID]
    tag: Mapped[str] = mapped_column(server_default="")
    account_id: Mapped[UUID]
    main_account: Mapped[str]
    region: Mapped[str]
    model: Mapped[str]
    unit: Mapped[str]  # image, …
    tier: Mapped[str] = mapped_column(server_default="")  # what else sets the price: a resolution, a parameter
    quantity: Mapped[Decimal]
    flag: Mapped[str | None]  # why a person should look: counted_artifacts, counts_disagree, unknown_usage
    upstream_task_id: Mapped[str | None]
    upstream_request_id: Mapped[str | None]
    billed_at: Mapped[datetime]  # when we learned of it: the month it is billed in
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class UsageDaily(Base):
    """Sums per day, written in the ledger's own transaction; days are those of DASHGATE_BILLING_TIMEZONE."""

    __tablename__ = "usage_daily"

    day: Mapped[date] = mapped_column(primary_key=True)
    team_id: Mapped[UUID] = mapped_column(primary_key=True)
    api_key_id: Mapped[str] = mapped_column(primary_key=True)
    region: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    unit: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    quantity: Mapped[Decimal]
    entries: Mapped[int]
