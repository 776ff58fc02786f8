"""One request from arrival to answer: noted in the journal, hit by its fault, slowed down.

Every call of the public port passes here, whatever it means; the meaning is `service.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.simulator import problems, service, wire
from app.simulator.clock import real_monotonic
from app.simulator.faults import Fault, FaultKind, Operation
from app.simulator.journal import mask_key
from app.simulator.problems import Problem
from app.simulator.service import Reply, Visit
from app.simulator.world import World

# The name under which `server.py` hands each request a way to close its connection.
HANG_UP = "simulator.hang_up"

Meaning = Callable[[World, Visit], Reply]


class Exchange:
    """Answers requests, and keeps those waiting that hang or are answered slowly."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._released = asyncio.Event()

    def release(self) -> None:
        """Let go of everything that hangs or is being slow."""
        self.close()
        self._released = asyncio.Event()

    def close(self) -> None:
        """Release, and let nothing wait any more."""
        self._released.set()

    async def answer(self, request: Request, operation: Operation, *, meaning: Meaning) -> Response:
        """Carry one request through.

        Where a fault lets the request take effect, that comes first: the task is made, only the answer suffers.
        Slowness comes last, so that rates are judged by the instant of arrival.
        """
        try:
            visit = await self._receive(request, operation)
        except ClientDisconnect:  # the client gave up while sending
            return NoAnswer()
        fault = self.world.next_fault(operation, visit.region)
        reply = self._act(visit, meaning) if fault is None or fault.processed else None
        if fault is not None:
            visit.entry.fault = fault.kind.value
            reply = await self._spoil(fault, visit, operation=operation)
        await self._pause(self.world.dice.uniform(0, self.world.options.hostility.slowness_seconds))
        if reply is None:
            return NoAnswer()
        visit.entry.status = reply.status
        return Response(reply.content, reply.status, headers=reply.headers, media_type=reply.media_type)

    async def _receive(self, request: Request, operation: Operation) -> Visit:
        headers = dict(request.headers)
        region = request.path_params.get("region", "")
        entry = self.world.journal.write(
            at=self.world.clock.now(),
            received_monotonic=real_monotonic(),
            region=region,
            operation=operation.value,
            method=request.method,
            path=request.url.path,
            key=mask_key(service.bearer(headers)),
        )
        return Visit(
            region=region,
            method=request.method,
            path=request.url.path,
            raw_query=request.scope["query_string"],
            headers=headers,
            body=await request.body(),
            request_id=str(uuid4()),
            entry=entry,
            part=request.path_params.get("part", ""),
        )

    def _act(self, visit: Visit, meaning: Meaning) -> Reply:
        try:
            return meaning(self.world, visit)
        except Problem as problem:
            return _refusal(problem, visit)

    async def _spoil(self, fault: Fault, visit: Visit, *, operation: Operation) -> Reply | None:
        """Return the answer that the fault leaves, or None for no answer at all."""
        match fault.kind:
            case FaultKind.THROTTLED:
                problem = problems.rate_exceeded()
            case FaultKind.UNAVAILABLE:
                problem = problems.internal_error() if fault.status == 500 else problems.model_unavailable()
            case FaultKind.LOST_ANSWER:
                return None
            case FaultKind.HANG:
                await self._pause(fault.seconds)
                return None
        if operation is Operation.FILE:
            return service.file_refusal(visit, problem.code, problem.message, status=problem.status)
        return _refusal(problem, visit)

    async def _pause(self, seconds: float) -> None:
        """Wait so many real seconds, or until `release`."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), seconds)


class NoAnswer(Response):
    """Not an answer: the connection is closed without a byte."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][HANG_UP]()
        while (await receive())["type"] != "http.disconnect":
            pass  # until the server has noticed; returning earlier would make it send a 500


def _refusal(problem: Problem, visit: Visit) -> Reply:
    return Reply.json(wire.problem_body(problem, visit.request_id), problem.status)
