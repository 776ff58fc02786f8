"""POST /api/v1/services/{path}: every DashScope service path. Parses a call and hands it to the room that makes it."""

import json
import re
from typing import Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Request, Response

from app.api.bodies import read_json
from app.api.calls import answer_call
from app.api.departure import watched
from app.api.dependencies import caller, resources
from app.api.rendering import NO_STORE, request_id
from app.api.streams import stream_call
from app.delivery.answers import sync_answer
from app.delivery.inputs import check_inputs
from app.errors import InvalidParameter, Throttled, UpstreamRefused
from app.lib.db import DatabaseAway
from app.resources import Resources
from app.routing.ways import Asked
from app.tasks.accept import TAG_MAX_CHARS, Call, accept
from app.tasks.leaving import marked_when_left
from app.tasks.waiting import wait_for_verdict
from app.teams.authenticate import Caller
from app.upstream.client import FORWARDED_HEADERS

router = APIRouter()

MODEL_MAX_CHARS = 200
TAG_FORM = re.compile(rf"[A-Za-z0-9_.:/-]{{1,{TAG_MAX_CHARS}}}")
HEADER_FORM = re.compile(r"[\x20-\x7e]{1,200}")
KEY_FORM = re.compile(r"[\x21-\x7e]{1,255}")


@router.post("/api/v1/services/{path:path}")
async def create(request: Request) -> Response:
    """Make a call (dashscope-api.md 2.5 to 2.7): the headers decide whether it is a task, a stream or plain."""
    res, who = resources(request), await caller(request)
    await check_rate(res, who)
    if request.headers.get("x-dashscope-encryptionkey") is not None:
        raise InvalidParameter("An encrypted body cannot be read by this gateway.")
    body, fields = await read_json(request, limit_bytes=res.settings.body_limit_bytes)
    call = await _call(request, who, body=body, fields=fields)
    if call.asked.is_async:
        return await _create_task(request, res, who, call=call)
    if call.asked.streams:
        return await stream_call(request, res, who, call=call)
    async with watched(request) as left:
        task_id, answer = await answer_call(res, who, call, left=left)
    structlog.contextvars.bind_contextvars(task=str(task_id))
    return Response(answer.body, answer.status, task_headers(task_id), media_type="application/json")


async def check_rate(res: Resources, who: Caller) -> None:
    """Refuse what comes above the team's request rate.

    Raises:
        Throttled: with when to come again.
    """
    if who.rps is not None and (wait_seconds := await res.rates.take(f"team:{who.team_id}", per_second=who.rps)):
        raise Throttled(wait_seconds)


def task_headers(task_id: UUID) -> dict[str, str]:
    """Return the headers of every answer that came of a task: whoever sends again by itself need not."""
    return {**NO_STORE, "X-Dashgate-Task-Id": str(task_id), "x-should-retry": "false"}


async def _create_task(request: Request, res: Resources, who: Caller, *, call: Call) -> Response:
    async with watched(request) as left:
        accepted = await accept(res, who, call, left=left)
        if accepted.is_twin:
            async with marked_when_left(res, accepted.task_id, request=call.resent, left=left):
                await _follow_twin(res, who, accepted.task_id)
    task_id = str(accepted.task_id)
    structlog.contextvars.bind_contextvars(task=task_id)
    answer = {"request_id": call.request_id, "output": {"task_status": "PENDING", "task_id": task_id}}
    return Response(json.dumps(answer), headers=task_headers(accepted.task_id), media_type="application/json")


async def _follow_twin(res: Resources, who: Caller, task_id: UUID) -> None:
    """Wait, as the first caller does, until the upstream has spoken; what it refused at once is refused here, too."""
    try:
        is_task = await wait_for_verdict(res, who.team_id, task_id)
    except DatabaseAway:  # it is a task, as far as anybody knows: an error would be sent again
        return
    if not is_task:
        refused = await sync_answer(res, who.team_id, task_id)
        raise UpstreamRefused(refused.status, refused.body, task_id=str(task_id))


async def _call(request: Request, who: Caller, *, body: bytes, fields: dict[str, Any]) -> Call:
    model, parameters = fields.get("model"), fields.get("parameters", {})
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_MAX_CHARS:
        raise InvalidParameter("model must be the name of a model.")
    forwarded = {name: request.headers[name] for name in FORWARDED_HEADERS if name in request.headers}
    if not all(HEADER_FORM.fullmatch(value) for value in forwarded.values()):
        raise InvalidParameter("A DashScope header has characters that cannot be passed on.")
    inputs = await check_inputs(resources(request), who, fields=fields, body=body, model=model)
    is_async, streams = (_is_on(request, f"x-dashscope-{name}") for name in ("async", "sse"))
    return Call(
        asked=Asked(request.path_params["path"], is_async=is_async, streams=streams and not is_async),
        body=body,
        model=model,
        parameters=parameters if isinstance(parameters, dict) else {},
        headers=forwarded,
        request_id=request_id(request),
        region=request.headers.get("x-dashgate-region"),
        tag=read_tag(request),
        durable=request.headers.get("x-dashgate-durable", "true").strip().lower() != "false",
        idempotency_key=read_idempotency_key(request),
        pinned_account=inputs.account_id,
    )


def read_tag(request: Request) -> str:
    """Return the team's own word for a call.

    Raises:
        InvalidParameter: it has other characters, or too many.
    """
    tag = request.headers.get("x-dashgate-tag", "")
    if tag and not TAG_FORM.fullmatch(tag):
        raise InvalidParameter(f"X-Dashgate-Tag takes up to {TAG_MAX_CHARS} of A-Z a-z 0-9 _ . : / -")
    return tag


def read_idempotency_key(request: Request) -> str | None:
    """Return the key by which a team makes a call once.

    Raises:
        InvalidParameter: there are several, or it has other characters than printable ASCII, or too many.
    """
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not KEY_FORM.fullmatch(given[0]):
        raise InvalidParameter("Idempotency-Key takes 1 to 255 printable ASCII characters, without spaces.")
    return given[0]


def _is_on(request: Request, name: str) -> bool:
    return request.headers.get(name, "").strip().lower() == "enable"
