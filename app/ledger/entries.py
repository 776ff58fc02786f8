"""Writing ledger lines, inside the transaction of the fact they follow from. Owns which kinds there are lines for."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from app.ledger import store
from app.lib.db import AnySession
from app.lib.ids import new_id
from app.models.ledger import EntryKind
from app.upstream.results import Usage


async def record_usage(
    session: AnySession,
    task: Mapping[str, Any],
    usages: Iterable[Usage],
    *,
    request_id: str,
    at: datetime,
    zone: ZoneInfo,
) -> None:
    """Write one line per counted unit of a task that the upstream reported; written once, however often called."""
    for usage in usages:
        await _record(session, task, EntryKind.USAGE, usage=usage, request_id=request_id, at=at.astimezone(zone))


async def record_presumed(
    session: AnySession, task: Mapping[str, Any], *, unit: str, at: datetime, zone: ZoneInfo
) -> None:
    """Write what an expired task may have cost: the most it could make, apart from the bill."""
    usage = Usage(unit, Decimal(task["most"]))
    await _record(session, task, EntryKind.PRESUMED, usage=usage, request_id=None, at=at.astimezone(zone))


async def record_uncertain(
    session: AnySession, task: Mapping[str, Any], *, unit: str, at: datetime, zone: ZoneInfo
) -> None:
    """Write what a task of unknown outcome may have cost: the most it could make, apart from the bill."""
    usage = Usage(unit, Decimal(task["most"]))
    await _record(session, task, EntryKind.UNCERTAIN, usage=usage, request_id=None, at=at.astimezone(zone))


async def _record(
    session: AnySession,
    task: Mapping[str, Any],
    kind: EntryKind,
    *,
    usage: Usage,
    request_id: str | None,
    at: datetime,
) -> UUID | None:
    """Write a line and add it to its day's sums; `at` is in the zone whose days are billed."""
    entry_id = new_id()
    values = {
        "id": entry_id,
        "kind": str(kind),
        "team_id": task["team_id"],
        "api_key_id": task["api_key_id"],
        "task_id": task["id"],
        "tag": task["tag"],
        "account_id": task["account_id"],
        "main_account": task["main_account"],
        "region": task["region"],
        "model": task["model"],
        "unit": usage.unit,
        "tier": usage.tier,
        "quantity": usage.quantity,
        "flag": usage.flag,
        "upstream_task_id": task["upstream_task_id"],
        "upstream_request_id": request_id,
        "billed_at": at,
    }
    written = await store.insert_entry(session, {**values, "day": at.date()})
    return entry_id if written else None
