"""GET /v1/usage: a team's own numbers."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app.api.dependencies import CallerDep, ResourcesDep
from app.ledger.reports import usage_report

router = APIRouter()


@router.get("/v1/usage")
async def read(res: ResourcesDep, caller: CallerDep, month: str | None = None) -> dict[str, Any]:
    """Sum the calling team's usage by month, region, model and unit; `month` is YYYY-MM."""
    lines = await usage_report(res, team_id=caller.team_id, month=month)
    return {"billing_timezone": res.settings.billing_timezone, "lines": [asdict(line) for line in lines]}
