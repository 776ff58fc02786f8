"""GET /api/v1/tasks/{id}: what became of a task, from Postgres. Always 200 to its team's key (design.md 7)."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.dependencies import caller, resources
from app.api.rendering import NO_STORE, request_id
from app.delivery.answers import task_answer
from app.lib.db import DatabaseAway

router = APIRouter()

HOLD_SECONDS = 2.0  # the Java SDK asks again at once after a 503: hold it back while the database is away


@router.get("/api/v1/tasks/{task_id}")
@router.get("/api/v1/tasks/{task_id}/", include_in_schema=False)
async def read(request: Request) -> Response:
    """Read a task (dashscope-api.md 2.8)."""
    asked_id = request.path_params["task_id"]
    try:
        who = await caller(request)
        answer = await task_answer(resources(request), who.team_id, asked_id, request_id=request_id(request))
    except DatabaseAway:
        await asyncio.sleep(HOLD_SECONDS)
        raise
    return Response(answer, headers=NO_STORE, media_type="application/json")
