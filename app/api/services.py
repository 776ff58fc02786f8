"""POST /api/v1/services/{path}: every DashScope service path. Parses a create and hands it to tasks/accept."""

import json
import re
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response

from app.api.bodies import read_json
from app.api.dependencies import caller, resources
from app.api.rendering import NO_STORE, request_id
from app.errors import InvalidParameter, UnsupportedOperation
from app.tasks.accept import TAG_MAX_CHARS, Call, accept
from app.upstream.client import FORWARDED_HEADERS

router = APIRouter()

MODEL_MAX_CHARS = 200
OSS_INPUT = re.compile(rb'"\s*oss:(?://|\\/\\/)', re.IGNORECASE)
TAG_FORM = re.compile(rf"[A-Za-z0-9_.:/-]{{1,{TAG_MAX_CHARS}}}")
HEADER_FORM = re.compile(r"[\x20-\x7e]{1,200}")


@router.post("/api/v1/services/{path:path}")
async def create(request: Request) -> Response:
    """Create a task (dashscope-api.md 2.7)."""
    res, who = resources(request), await caller(request)
    if request.headers.get("x-dashscope-encryptionkey") is not None:
        raise InvalidParameter("An encrypted body cannot be read by this gateway.")
    body, fields = await read_json(request, limit_bytes=res.settings.body_limit_bytes)
    call = _call(request, body, fields=fields)
    if request.headers.get("x-dashscope-async", "").lower() != "enable":
        raise UnsupportedOperation("This gateway takes asynchronous calls: send X-DashScope-Async: enable.")
    task_id = str(await accept(res, who, call))
    structlog.contextvars.bind_contextvars(task=task_id)
    answer = {"request_id": call.request_id, "output": {"task_status": "PENDING", "task_id": task_id}}
    headers = {**NO_STORE, "X-Dashgate-Task-Id": task_id, "x-should-retry": "false"}
    return Response(json.dumps(answer), headers=headers, media_type="application/json")


def _call(request: Request, body: bytes, *, fields: dict[str, Any]) -> Call:
    model, parameters = fields.get("model"), fields.get("parameters", {})
    if OSS_INPUT.search(body):
        # readable by every key of the account, so whose it is must be known; uploads come with a later part
        raise InvalidParameter("An oss:// input must be an upload of this team.")
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_MAX_CHARS:
        raise InvalidParameter("model must be the name of a model.")
    tag = request.headers.get("x-dashgate-tag", "")
    if tag and not TAG_FORM.fullmatch(tag):
        raise InvalidParameter(f"X-Dashgate-Tag takes up to {TAG_MAX_CHARS} of A-Z a-z 0-9 _ . : / -")
    forwarded = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
    if not all(HEADER_FORM.fullmatch(value) for value in forwarded.values()):
        raise InvalidParameter("A DashScope header has characters that cannot be passed on.")
    return Call(
        path=request.path_params["path"],
        body=body,
        model=model,
        parameters=parameters if isinstance(parameters, dict) else {},
        headers=forwarded,
        region=request.headers.get("x-dashgate-region"),
        tag=tag,
        request_id=request_id(request),
    )
