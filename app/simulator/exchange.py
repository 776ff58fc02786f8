"""One request from arrival to answer: noted in the journal, hit by its fault, slowed down.

Every call of the public port passes here, whatever it means; the meaning is `service.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.simulator import problems, service, wire
from app.simulator.clock import real_monotonic
from app.simulator.faults import FILE_HOST_OPERATIONS, Fault, FaultKind, Operation
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
            visit = await self.receive(request, operation)
        except ClientDisconnect:  # the client gave up while sending
            return NoAnswer()
        fault = self.draw_fault(visit, operation)
        reply = self._act(visit, meaning) if fault is None or fault.processed else None
        if fault is not None:
            reply = await self.spoil(fault, visit, operation=operation)
        await self.dawdle()
        return give(reply, visit)

    async def receive(self, request: Request, operation: Operation) -> Visit:
        """Read a request and write it into the journal. Raises: `ClientDisconnect`."""
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

    def draw_fault(self, visit: Visit, operation: Operation) -> Fault | None:
        """Return what must go wrong with a request, and note it."""
        fault = self.world.next_fault(
            operation, visit.region, key=service.bearer(visit.headers), model=lambda: service.named_model(visit)
        )
        if fault is not None:
            visit.entry.fault = fault.kind.value
        return fault

    def _act(self, visit: Visit, meaning: Meaning) -> Reply:
        try:
            return meaning(self.world, visit)
        except Problem as problem:
            return refuse(problem, visit)

    async def spoil(self, fault: Fault, visit: Visit, *, operation: Operation) -> Reply | None:
        """Return the answer that the fault leaves, or None for no answer at all."""
        match fault.kind:
            case FaultKind.THROTTLED:
                problem = problems.rate_exceeded()
            case FaultKind.UNAVAILABLE:
                problem = problems.internal_error() if fault.status == 500 else problems.model_unavailable()
            case FaultKind.ERROR:
                problem = Problem(fault.status, fault.code, fault.message)
            case FaultKind.GARBAGE:
                return Reply(fault.status, fault.body.encode(), fault.media_type)
            case FaultKind.LOST_ANSWER:
                return None
            case FaultKind.HANG:
                await self.pause(fault.seconds)
                return None
        if operation in FILE_HOST_OPERATIONS:
            return service.file_refusal(visit, problem.code, problem.message, status=problem.status)
        return refuse(problem, visit)

    async def dawdle(self) -> None:
        """Be as slow as a hostile simulator is."""
        await self.pause(self.world.dice.uniform(0, self.world.options.hostility.slowness_seconds))

    async def reach(self, instant: float, *, gone: asyncio.Future[None]) -> bool:
        """Wait for a simulated instant; return False when the client has `gone` first, or on `release`."""
        released = self._released
        due = asyncio.ensure_future(self.world.clock.reach(instant))
        let_go = asyncio.ensure_future(released.wait())
        ends: set[asyncio.Future[Any]] = {due, let_go, gone}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        due.cancel()
        let_go.cancel()
        return due.done() and not gone.done() and not released.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait so many real seconds, or until `release`."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), seconds)


class NoAnswer(Response):
    """Not an answer: the connection is closed without a byte."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"][HANG_UP]()
        await client_gone(receive)  # until the server has noticed; returning earlier would make it send a 500


async def client_gone(receive: Receive) -> None:
    """Wait until the connection of a request, read to its end, is closed."""
    while (await receive())["type"] != "http.disconnect":
        pass


def give(reply: Reply | None, visit: Visit) -> Response:
    """Put an answer, or None for no answer at all, on the wire."""
    if reply is None:
        return NoAnswer()
    visit.entry.status = reply.status
    return Response(reply.content, reply.status, headers=reply.headers, media_type=reply.media_type)


def refuse(problem: Problem, visit: Visit) -> Reply:
    """Make the answer to a call that is refused."""
    return Reply.json(wire.problem_body(problem, visit.request_id), problem.status)
