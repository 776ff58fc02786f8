"""/admin/v1: the operators' routes, behind the admin token. Later parts add theirs to this frame."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from app.api.dependencies import OperatorDep, ResourcesDep
from app.ledger.reports import usage_report

router = APIRouter(prefix="/admin/v1", dependencies=[OperatorDep])


@router.get("/usage")
async def read_usage(res: ResourcesDep, month: str | None = None) -> dict[str, Any]:
    """Sum every team's usage by month, region, model and unit; `month` is YYYY-MM."""
    lines = await usage_report(res, team_id=None, month=month)
    return {"billing_timezone": res.settings.billing_timezone, "lines": [asdict(line) for line in lines]}
