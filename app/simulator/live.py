"""Calls of a service from arrival to their last byte: tasks at once, pictures when they are made, streams as they go.

What a call means is `service.py`'s, what a stream says is `streaming.py`'s; here is only who waits for what.
"""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.simulator import problems, service, wire
from app.simulator.calls import Call, CallState
from app.simulator.exchange import Exchange, NoAnswer, client_gone, give, refuse
from app.simulator.faults import Fault, FaultKind, Operation
from app.simulator.problems import Problem
from app.simulator.service import Reply, Visit
from app.simulator.streaming import MEDIA_TYPE, error_frame, frame, plan_events


class LiveCalls:
    """Answers every call of a service."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def answer(self, request: Request) -> Response:
        """Carry one call through, as its headers want it."""
        operation = service.operation_of(request.headers)
        if operation is Operation.CREATE:
            return await self._exchange.answer(request, operation, meaning=service.create)
        try:
            visit = await self._exchange.receive(request, operation)
        except ClientDisconnect:  # the client gave up while sending
            return NoAnswer()
        fault = self._exchange.draw_fault(visit, operation)
        streamed = operation is Operation.STREAM and (fault is None or _leaves_a_stream(fault))
        begun = self._begin(visit, streamed=streamed) if fault is None or fault.processed else None
        if fault is not None and not streamed:
            return give(await self._exchange.spoil(fault, visit, operation=operation), visit)
        await self._exchange.dawdle()
        if not isinstance(begun, Call):
            return give(begun, visit)
        if streamed:
            return StreamAnswer(self._exchange, visit, call=begun, fault=fault)
        return await self._answer_whole(request, visit, call=begun)

    def _begin(self, visit: Visit, *, streamed: bool) -> Call | Reply:
        try:
            return service.begin_call(self._exchange.world, visit, streamed=streamed)
        except Problem as problem:
            return refuse(problem, visit)

    async def _answer_whole(self, request: Request, visit: Visit, *, call: Call) -> Response:
        gone = asyncio.ensure_future(client_gone(request.receive))
        try:
            if not await self._exchange.reach(call.ends_at, gone=gone):
                call.hung_up = gone.done()
                return NoAnswer()
        finally:
            gone.cancel()
        self._exchange.world.settle()
        if call.state is CallState.RUNNING:  # a reset has forgotten it
            return NoAnswer()
        try:
            return give(service.whole_answer(call, visit), visit)
        except Problem as problem:
            return give(refuse(problem, visit), visit)


class StreamAnswer(Response):
    """A stream of events, each sent when it is due: to its last one, to a fault, or until the client leaves."""

    def __init__(self, exchange: Exchange, visit: Visit, *, call: Call, fault: Fault | None) -> None:
        super().__init__()
        self._exchange = exchange
        self._visit = visit
        self._call = call
        self._fault = fault
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, then whatever ends the answer."""
        gone = asyncio.ensure_future(client_gone(receive))
        try:
            end = await self._tell(send, gone)
        finally:
            gone.cancel()
        await end(scope, receive, send)

    async def _tell(self, send: Send, gone: asyncio.Future[None]) -> Response:
        call, world = self._call, self._exchange.world
        events = plan_events(call.order, call.id)
        for number, event in enumerate(events, 1):
            if self._fault is not None and number > self._fault.after_events:
                break
            if not await self._exchange.reach(call.event_due_at(number - 1, len(events)), gone=gone):
                call.hung_up = gone.done()
                world.end_stream(call, CallState.BROKEN)
                return NoAnswer()
            if number == len(events) and call.failure is not None:
                return await self._fail(problems.failed(call.failure), send)
            pictures = world.announce(call, event.pictures)
            if number == len(events) and self._fault is None:
                world.end_stream(call, CallState.SUCCEEDED)
            await self._put(frame(number, event.data(wire.links_to(pictures, self._visit.file_base))), send)
        return _EndOfAnswer() if self._fault is None else await self._suffer(self._fault, send)

    async def _fail(self, problem: Problem, send: Send) -> Response:
        """Fail: with an event of its own, or with a plain refusal where nothing has been sent yet."""
        self._exchange.world.end_stream(self._call, CallState.FAILED)
        if not self._sent:
            return give(refuse(problem, self._visit), self._visit)
        await self._put(error_frame(self._sent + 1, problem, request_id=self._call.id), send)
        return _EndOfAnswer()

    async def _suffer(self, fault: Fault, send: Send) -> Response:
        world = self._exchange.world
        if fault.kind is FaultKind.ERROR_EVENT:
            world.end_stream(self._call, CallState.FAILED)
            problem = Problem(fault.status, fault.code, fault.message)
            await self._put(error_frame(self._sent + 1, problem, request_id=self._call.id), send)
            return _EndOfAnswer()
        world.end_stream(self._call, CallState.BROKEN)
        if fault.kind is FaultKind.HANG:
            await self._exchange.pause(fault.seconds)
        return NoAnswer()

    async def _put(self, content: bytes, send: Send) -> None:
        if not self._sent:
            self._visit.entry.status = 200
            headers = [(b"content-type", MEDIA_TYPE.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._sent += 1
        await send({"type": "http.response.body", "body": content, "more_body": True})


def _leaves_a_stream(fault: Fault) -> bool:
    """Tell whether a fault happens to a stream on its way; after every other one the call is made whole, unseen."""
    return fault.processed and fault.kind in (FaultKind.BREAK, FaultKind.ERROR_EVENT, FaultKind.HANG)


class _EndOfAnswer(Response):
    """Nothing more: what has been sent is the whole answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
