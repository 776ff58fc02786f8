"""Calls answered as a stream of events: relayed, or the one answer of a call that has ended already as one event."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.calls import await_answer
from app.api.departure import watched
from app.api.rendering import NO_STORE
from app.delivery.answers import SyncAnswer, sync_answer
from app.delivery.relayed import link_of, passed_on
from app.errors import UpstreamAccountAtFault
from app.relay.call import AGAIN_SECONDS, trouble_of
from app.relay.entrance import Patience, enter
from app.relay.outlet import Outlet
from app.relay.stream import Passage, pump
from app.resources import Resources
from app.tasks.accept import Call
from app.tasks.leaving import Leaving, mark_once, marked_when_left
from app.tasks.outcome import Made
from app.tasks.prepare import NothingTaken
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
            async with marked_when_left(res, accepted.task_id, request=call.resent, left=left):
                ended = await _opened(passage, left=left)
            if not isinstance(ended, NothingTaken):
                break
            if patience.is_over(res):
                raise trouble_of(ended)
            await asyncio.sleep(AGAIN_SECONDS)
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
    return Events(
        passage.outlet,
        task_id=task_id,
        unread=lambda: mark_once(res, accepted.task_id, request=call.resent, left=left),
    )


class Events(Response):
    """A stream under way, event by event as its pump hands them on, until it ends or its reader hangs up.

    A reader that leaves before it was given anything has had no answer: `unread` is called.
    """

    media_type = "text/event-stream"

    def __init__(self, outlet: Outlet, *, task_id: str, unread: Callable[[], Awaitable[None]]) -> None:
        super().__init__(headers={**HEADERS, "X-Dashgate-Task-Id": task_id})
        del self.headers["content-length"]
        self._outlet, self._unread = outlet, unread

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. In a task of its own: at the end of the stack of calls that led here, each costs more."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(self._leave_with_reader(receive))
        try:
            await sending
        finally:
            leaving.cancel()
            self._outlet.leave()
        if not self._outlet.has_given:
            await self._unread()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._outlet.read():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _leave_with_reader(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._outlet.leave()


async def _opened(passage: Passage, *, left: Leaving) -> object:
    """Wait for the first word of the upstream; a reader that leaves before it is not waited for by the stream."""
    leaving = asyncio.ensure_future(left.wait())
    try:
        either: set[asyncio.Future[Any]] = {passage.opened, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if not passage.opened.done():
        passage.outlet.leave()
    return await passage.opened


def _whole(task_id: str, answer: SyncAnswer, *, as_event: bool = False) -> Response:
    headers = {**HEADERS, "X-Dashgate-Task-Id": task_id}
    if as_event and answer.status == 200:
        event = format_event("result", answer.body.decode(), event_id="1")
        return Response(event, headers=headers, media_type="text/event-stream")
    return Response(answer.body, answer.status, headers, media_type="application/json")
