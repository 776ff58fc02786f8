"""What became of tasks, from Postgres: one, a list, as it changes; and the wish that one should not be made.

A read is always 200 to its team's key, a cancel 400 unless the task waits; both tell nothing of others' tasks
(design.md 7).
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Send

from app.api.dependencies import caller, resources
from app.api.rendering import NO_STORE, dashscope_error, request_id
from app.delivery.answers import awaited_task_answer, task_answer, task_answers
from app.errors import DashgateError, InvalidParameter, StoreAway, Throttled, UnsupportedOperation
from app.lib.db import DatabaseAway
from app.lib.ids import find_uuid
from app.resources import Resources
from app.tasks.cancel import Cancel, cancel
from app.tasks.listing import list_tasks
from app.tasks.standing import Standing, find_standing
from app.teams.authenticate import Caller

router = APIRouter()

HOLD_SECONDS = 2.0  # the Java SDK asks again at once after a 503: hold it back while the database is away
MOST_WAIT_SECONDS = 60.0
WAIT_FORM = re.compile(r"[0-9]{1,2}(\.[0-9]{1,6})?")
HEARTBEAT_SECONDS = 15.0  # proxies give a silent connection up after 30 s and more
HEARTBEAT = b":heartbeat\n\n"
MOST_STREAMS = 50  # of one team in one process
NOT_PENDING = "Failed to cancel the task, please confirm if the task is in PENDING status."  # the upstream's words


@router.get("/api/v1/tasks/{task_id}")
@router.get("/api/v1/tasks/{task_id}/", include_in_schema=False)
async def read(request: Request) -> Response:
    """Read a task (dashscope-api.md 2.8); `?wait=SECONDS` answers when it has ended, or when the time is up."""
    res, asked_id, own_id = resources(request), request.path_params["task_id"], request_id(request)
    try:
        who = await caller(request)
        seconds = _wait_seconds(request) if request.scope["query_string"] else 0
        if seconds:
            answer = await awaited_task_answer(res, who.team_id, asked_id, request_id=own_id, wait_seconds=seconds)
        else:
            answer = await task_answer(res, who.team_id, asked_id, request_id=own_id)
        standing = await find_standing(res, who.team_id, asked_id)
    except DatabaseAway:
        await asyncio.sleep(HOLD_SECONDS)
        raise
    headers = {**NO_STORE, **{f"X-Dashgate-{name}": str(number) for name, number in _told(standing)}}
    return Response(answer, headers=headers, media_type="application/json")


@router.get("/api/v1/tasks")
@router.get("/api/v1/tasks/", include_in_schema=False)
async def list_own(request: Request) -> Response:
    """List the team's tasks (dashscope-api.md 3.2)."""
    who = await caller(request)
    page = await list_tasks(
        resources(request), who.team_id, team=who.team, asked=request.query_params, request_id=request_id(request)
    )
    return _json(page)


@router.post("/api/v1/tasks/{task_id}/cancel")
@router.post("/api/v1/tasks/{task_id}/cancel/", include_in_schema=False)
async def cancel_own(request: Request) -> Response:
    """Cancel a task that waits (dashscope-api.md 3.3)."""
    who, task_id = await caller(request), find_uuid(request.path_params["task_id"])
    if task_id is None or await cancel(resources(request), who.team_id, task_id) is Cancel.REFUSED:
        raise UnsupportedOperation(NOT_PENDING)
    return _json({"request_id": request_id(request)})


@router.get("/api/v1/tasks/{task_id}/events")
@router.get("/api/v1/tasks/{task_id}/events/", include_in_schema=False)
async def events(request: Request) -> Response:
    """Stream what a read would say, each time that it changes, until the task has ended."""
    res, who = resources(request), await caller(request)
    if res.streams[who.team_id] >= MOST_STREAMS:
        raise Throttled()
    headers = {**NO_STORE, "X-Accel-Buffering": "no"}
    return _EventStream(_events(request, res, who), headers=headers, media_type="text/event-stream")


class _EventStream(StreamingResponse):
    """A stream whose source is closed with it, also where the client leaves between two events."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]  # it is our own generator
            await super().stream_response(send)


async def _events(request: Request, res: Resources, who: Caller) -> AsyncIterator[bytes]:
    """Write events in DashScope's framing (dashscope-api.md 2.6); trouble ends them in the same framing."""
    number, own_id, asked_id = 0, request_id(request), request.path_params["task_id"]
    with _counted(res, who):
        answers = task_answers(res, who.team_id, asked_id, request_id=own_id, silence_seconds=HEARTBEAT_SECONDS)
        try:
            async with aclosing(answers):
                async for answer in answers:
                    await caller(request)  # a key that was revoked meanwhile reads nothing more
                    number += answer is not None
                    standing = await find_standing(res, who.team_id, asked_id)
                    lines = "".join(f":{name.upper()}/{told}\n" for name, told in _told(standing)).encode()
                    event = HEARTBEAT if answer is None else _event(number, "result", status=200, data=answer)
                    yield lines + event
        except (DashgateError, DatabaseAway) as error:
            named = error if isinstance(error, DashgateError) else StoreAway()
            data = json.dumps(dashscope_error(named, own_id)).encode()
            yield _event(number + 1, "error", status=named.status, data=data)


def _told(standing: Standing | None) -> list[tuple[str, int]]:
    """Return what is said of a queued task beside its state: in headers, or in comments of a stream."""
    return [("Queue-Position", standing.place), ("Queue-Seconds", standing.seconds)] if standing else []


def _event(number: int, kind: str, *, status: int, data: bytes) -> bytes:
    return f"id:{number}\nevent:{kind}\n:HTTP_STATUS/{status}\ndata:".encode() + data + b"\n\n"


@contextmanager
def _counted(res: Resources, who: Caller) -> Iterator[None]:
    res.streams[who.team_id] += 1
    try:
        yield
    finally:
        res.streams[who.team_id] -= 1
        if not res.streams[who.team_id]:
            del res.streams[who.team_id]


def _wait_seconds(request: Request) -> float:
    text = request.query_params.get("wait", "0")
    if not WAIT_FORM.fullmatch(text) or float(text) > MOST_WAIT_SECONDS:
        raise InvalidParameter(f"wait must be a number of seconds, at most {MOST_WAIT_SECONDS:.0f}.")
    return float(text)


def _json(fields: dict[str, Any]) -> Response:
    return Response(json.dumps(fields, ensure_ascii=False), headers=NO_STORE, media_type="application/json")
