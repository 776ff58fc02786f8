"""SQL of the ledger: lines are inserted, never changed; day sums are written in the same transaction."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Date, RowMapping, and_, cast, func, or_, select, text

from app.lib.db import AnySession, Session, Statement, fetch
from app.models import LedgerEntry, Team

# A line that is there already stays as it is, and is not added to its day again.
_INSERT_ENTRY = Statement("""
    WITH line AS (
        INSERT INTO ledger_entries (id, kind, team_id, api_key_id, task_id, tag, account_id, main_account, region,
                                    model, unit, tier, quantity, flag, upstream_task_id, upstream_request_id, billed_at)
        VALUES (:id, :kind, :team_id, :api_key_id, :task_id, :tag, :account_id, :main_account, :region, :model,
                :unit, :tier, :quantity, :flag, :upstream_task_id, :upstream_request_id, :billed_at)
        ON CONFLICT (task_id, unit, tier) WHERE kind <> 'correction' DO NOTHING
        RETURNING team_id, api_key_id, region, model, tag, unit, kind, quantity
    ), day AS (
        INSERT INTO usage_daily (day, team_id, api_key_id, region, model, tag, unit, kind, quantity, entries)
        SELECT cast(:day AS date), team_id, api_key_id, region, model, tag, unit, kind, quantity, 1 FROM line
        ON CONFLICT (day, team_id, api_key_id, region, model, tag, unit, kind) DO UPDATE
        SET quantity = usage_daily.quantity + excluded.quantity, entries = usage_daily.entries + 1
    )
    SELECT 1 FROM line
""")


async def insert_entry(session: AnySession, values: dict[str, Any]) -> bool:
    """Write a line and add it to the sums of its day; False: (task, unit, tier) has one already, which stays."""
    return bool(await fetch(session, _INSERT_ENTRY, values))


async def read_task_entries(session: Session, team_id: UUID, task_id: UUID) -> Sequence[RowMapping]:
    """Read the lines of one task."""
    rows = await session.execute(
        select(*LedgerEntry.__table__.c)
        .where(LedgerEntry.team_id == team_id, LedgerEntry.task_id == task_id)
        .order_by(LedgerEntry.id)
    )
    return rows.mappings().all()


async def sum_months(
    session: Session, team_id: UUID, *, zone: str, since: datetime, until: datetime
) -> Sequence[RowMapping]:
    """Sum one team's lines by month, region, model and unit."""
    return await _sum_months(session, LedgerEntry.team_id == team_id, zone=zone, since=since, until=until)


async def sum_months_all_teams(
    session: Session, *, zone: str, since: datetime, until: datetime
) -> Sequence[RowMapping]:
    """Sum every team's lines by month, region, model and unit."""
    return await _sum_months(session, text("true"), zone=zone, since=since, until=until)


async def _sum_months(
    session: Session, whose: Any, *, zone: str, since: datetime, until: datetime
) -> Sequence[RowMapping]:
    month = cast(func.date_trunc("month", func.timezone(zone, LedgerEntry.billed_at)), Date).label("month")
    billed = or_(LedgerEntry.kind == "usage", LedgerEntry.kind == "correction")
    columns = (Team.slug.label("team"), LedgerEntry.region, LedgerEntry.model, LedgerEntry.unit)
    rows = await session.execute(
        select(
            month,
            *columns,
            func.coalesce(func.sum(LedgerEntry.quantity).filter(billed), 0).label("quantity"),
            func.coalesce(func.sum(LedgerEntry.quantity).filter(LedgerEntry.kind == "presumed"), 0).label("presumed"),
            func.coalesce(func.sum(LedgerEntry.quantity).filter(LedgerEntry.kind == "uncertain"), 0).label("uncertain"),
            func.count(LedgerEntry.task_id.distinct()).label("tasks"),
        )
        .outerjoin(Team, Team.id == LedgerEntry.team_id)
        .where(and_(LedgerEntry.billed_at >= since, LedgerEntry.billed_at < until, whose))
        .group_by(month, *columns)
        .order_by(month, *columns)
    )
    return rows.mappings().all()
