"""Calls answered as a stream of events: relayed, or the one answer of a call that has ended already as one event."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.api.calls import await_answer
from app.api.departure import watched
from app.api.rendering import NO_STORE
from app.delivery.answers import SyncAnswer, sync_answer
from app.delivery.relayed import link_of, passed_on
from app.errors import UpstreamAccountAtFault
from app.relay.call import AGAIN_SECONDS, trouble_of
from app.relay.entrance import Patience, enter
from app.relay.stream import Passage, pump
from app.resources import Resources
from app.tasks.accept import Call
from app.tasks.outcome import Made
from app.tasks.prepare import NothingTaken
from app.tasks.resend import mark_left
from app.teams.authenticate import Caller
from app.upstream.answers import Refused
from app.upstream.faults import Fault
from app.upstream.streams import format_event

HEADERS = {**NO_STORE, "X-Accel-Buffering": "no", "x-should-retry": "false"}


async def stream_call(request: Request, res: Resources, caller: Caller, *, call: Call) -> Response:
    """Make a streamed call; a reader that leaves leaves the stream to its end.

    Raises:
        DashgateError, DatabaseAway: before the first event, as for a call without a stream.
    """
    async with watched(request) as left:
        patience = Patience(res.clock.monotonic() + res.settings.sync_wait_seconds, left)
        while True:
            accepted = await enter(res, caller, call, patience=patience)
            if accepted.attempt is None:
                answer = await await_answer(res, caller, accepted, call=call, left=left)
                return _whole(str(accepted.task_id), answer, as_event=True)
            passage = Passage(accepted.attempt, lambda asset: link_of(res, asset))
            res.calls.start(pump(res, passage))
            ended = await _opened(res, passage, left=left)
            if not isinstance(ended, NothingTaken):
                break
            await asyncio.sleep(AGAIN_SECONDS)
            if patience.is_over(res):
                raise trouble_of(ended)
    task_id = str(accepted.task_id)
    match ended:
        case Made():
            return _whole(task_id, passed_on(res, ended))
        case Refused(fault=Fault.ACCOUNT):
            raise UpstreamAccountAtFault()
        case Refused(status=status, body=body):
            return _whole(task_id, SyncAnswer(status, body))
    if not passage.is_open:
        return _whole(task_id, await sync_answer(res, caller.team_id, accepted.task_id))
    headers = {**HEADERS, "X-Dashgate-Task-Id": task_id}
    return StreamingResponse(passage.outlet.read(), headers=headers, media_type="text/event-stream")


async def _opened(res: Resources, passage: Passage, *, left: asyncio.Event) -> object:
    """Wait for the first word of the upstream; a reader that leaves before it has no answer at all."""
    leaving = asyncio.ensure_future(left.wait())
    try:
        either: set[asyncio.Future[Any]] = {passage.opened, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if not passage.opened.done():
        passage.outlet.leave()
        await mark_left(res, passage.attempt.task_id)
    return await passage.opened


def _whole(task_id: str, answer: SyncAnswer, *, as_event: bool = False) -> Response:
    headers = {**HEADERS, "X-Dashgate-Task-Id": task_id}
    if as_event and answer.status == 200:
        event = format_event("result", answer.body.decode(), event_id="1")
        return Response(event, headers=headers, media_type="text/event-stream")
    return Response(answer.body, answer.status, headers, media_type="application/json")
