"""Sums for people: what each team used, by month, region, model and unit."""

import re
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import RowMapping

from app.errors import InvalidParameter
from app.ledger import store
from app.lib.db import reading
from app.resources import Resources

MONTH_FORM = re.compile(r"(20\d\d)-(0[1-9]|1[0-2])")
FIRST_MONTH, LAST_MONTH = date(2020, 1, 1), date(2100, 1, 1)


@dataclass(frozen=True, slots=True)
class UsageSum:
    """One line of a report. `quantity` is billed; the two others stand apart until a correction settles them."""

    month: str
    team: str
    region: str
    model: str
    unit: str
    tasks: int
    quantity: Decimal
    presumed: Decimal
    uncertain: Decimal


async def usage_report(res: Resources, *, team_id: UUID | None, month: str | None) -> list[UsageSum]:
    """Return sums for one team, or for all when `team_id` is None; for one month `YYYY-MM`, or for all.

    Raises:
        InvalidParameter: the month is not of that form.
    """
    zone = res.settings.billing_zone
    since, until = month_bounds(month, zone)
    async with reading(res) as session:
        if team_id is None:
            rows = await store.sum_months_all_teams(session, zone=zone.key, since=since, until=until)
        else:
            rows = await store.sum_months(session, team_id, zone=zone.key, since=since, until=until)
    return [_sum_from(row) for row in rows]


def _sum_from(row: RowMapping) -> UsageSum:
    shown = {"month": f"{row['month']:%Y-%m}", "team": row["team"] or "(removed)"}
    quantities = {name: plain(row[name]) for name in ("quantity", "presumed", "uncertain")}
    return UsageSum(**{**row, **shown, **quantities})


def plain(quantity: Decimal) -> Decimal:
    """Return a quantity as people write it: the column keeps six places, three images are 3.

    >>> plain(Decimal("3.000000")), plain(Decimal("13.930000")), plain(Decimal("100.000000"))
    (Decimal('3'), Decimal('13.93'), Decimal('100'))
    """
    whole = quantity.to_integral_value()
    return whole if quantity == whole else quantity.normalize()


def month_bounds(month: str | None, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the first instant of a billing month and of the next; of all time when `month` is None.

    >>> since, until = month_bounds("2026-12", ZoneInfo("Asia/Shanghai"))
    >>> since.isoformat(), until.isoformat()
    ('2026-12-01T00:00:00+08:00', '2027-01-01T00:00:00+08:00')
    """
    if month is None:
        return _midnight(FIRST_MONTH, zone), _midnight(LAST_MONTH, zone)
    found = MONTH_FORM.fullmatch(month)
    if found is None:
        raise InvalidParameter("month must be of the form YYYY-MM.")
    first = date(int(found[1]), int(found[2]), 1)
    following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
    return _midnight(first, zone), _midnight(following, zone)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone)
