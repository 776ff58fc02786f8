"""/livez, /readyz, /metrics and /openapi.json: what machines ask of a process. The full story only for the operator."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.dependencies import OperatorDep, ResourcesDep, is_operator
from app.api.openapi import document
from app.errors import NotReady
from app.lib.db import DatabaseAway, reading
from app.lib.metrics import TASKS_OPEN, WORK_DUE, WORK_OLDEST_SECONDS, exposition
from app.models.tasks import State
from app.resources import Resources, check_ready
from app.routing.accounts import all_accounts
from app.tasks.states import is_terminal
from app.tasks.store_reads import count_due_all_teams, count_open_all_teams

public = APIRouter()
operators = APIRouter(dependencies=[OperatorDep])
operators_public = APIRouter()  # on the operators' surface, for probes too

WORK_KINDS = ("account", "submit", "deliver", "webhook", "chore")


@public.get("/livez")
async def live() -> dict[str, str]:
    """Tell that the process runs; asks nothing of anybody."""
    return {"status": "ok"}


@public.get("/readyz")
async def ready(res: ResourcesDep, response: Response) -> dict[str, str]:
    """Tell whether this process can serve: database reachable, at our schema, sealed with our key."""
    state = await _readiness(res)
    response.status_code = 200 if state["status"] == "ok" else 503
    return {"status": state["status"]}


@operators_public.get("/readyz")
async def ready_in_full(request: Request, res: ResourcesDep, response: Response) -> dict[str, Any]:
    """Tell the same, and to the operator's token every finding; having no account yet is a warning."""
    state = await _readiness(res)
    response.status_code = 200 if state["status"] == "ok" else 503
    return state if is_operator(request) else {"status": state["status"]}


@operators.get("/metrics")
async def metrics(res: ResourcesDep) -> Response:
    """Return the metrics; those of the tables are counted now."""
    async with reading(res) as session:
        by_state = {row["state"]: row["count"] for row in await count_open_all_teams(session)}
        by_kind = {row["kind"]: row for row in await count_due_all_teams(session)}
    for state in State:
        if not is_terminal(state):
            TASKS_OPEN.labels(str(state)).set(by_state.get(str(state), 0))
    for kind in WORK_KINDS:
        WORK_DUE.labels(kind).set(by_kind[kind]["count"] if kind in by_kind else 0)
        WORK_OLDEST_SECONDS.labels(kind).set(float(by_kind[kind]["oldest_seconds"]) if kind in by_kind else 0)
    return Response(exposition(), media_type="text/plain; version=0.0.4")


@operators.get("/openapi.json")
async def openapi(res: ResourcesDep) -> dict[str, Any]:
    """Return the OpenAPI document of the teams' routes; on their own surface it is not served."""
    return document(res.settings.public_url)


async def _readiness(res: Resources) -> dict[str, Any]:
    try:
        await check_ready(res)
        accounts = await all_accounts(res)
    except (NotReady, DatabaseAway) as error:
        return {"status": "unready", "problem": str(error)}
    warnings = [] if accounts else ["W01 no account yet: add one with `dashgate account add`"]
    return {"status": "ok", "warnings": warnings}
