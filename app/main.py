"""The web process: which routes there are on which surface, what surrounds them, how it starts and stops."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Sequence
from typing import Literal

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from app.api import admin, assets, openai, ops, services, tasks, uploads, usage
from app.api.edge import Edge
from app.api.rendering import error_response
from app.api.wire import Wire
from app.errors import DashgateError, InvalidParameter, MethodNotAllowed, NotFound
from app.lib.db import DatabaseAway
from app.resources import Resources
from app.tasks.accept import WAIT_LIFE_SECONDS
from app.tasks.waiting import say_still_waiting

log = structlog.get_logger()

Surface = Literal["teams", "operators"]

# the order is the order of asking: status reads are most of all calls
TEAMS: Sequence[APIRouter] = (
    *(tasks.router, services.router, assets.router, uploads.router),
    *(openai.router, usage.router, ops.public),
)
OPERATORS: Sequence[APIRouter] = (ops.operators_public, ops.operators, ops.public, admin.router)
KEEP_ALIVE_SECONDS = 15
STOP_SECONDS = 20.0  # open answers may end; files being read are cut off after this
LAST_BYTES_SECONDS = 2.0  # an answer that was waited for has its end, and is still on its way out
STILL_WAITING_SECONDS = WAIT_LIFE_SECONDS / 3
BACKLOG = 1024


def create_app(surface: Surface, res: Resources) -> ASGIApp:
    """Assemble one surface. Its documents are off: what is served is in docs/."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.resources = res
    for router in TEAMS if surface == "teams" else OPERATORS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_middleware(Edge)
    return app


async def serve(res: Resources, *, teams: str | None, operators: str | None, stop: asyncio.Event) -> None:
    """Serve one or both surfaces, each at its HOST:PORT, until `stop` is set.

    Raises:
        OSError: an address is taken.
    """
    surfaces: list[tuple[Surface, str]] = []
    if teams:
        surfaces.append(("teams", teams))
    if operators:
        surfaces.append(("operators", operators))
    sockets = [listen(address) for _, address in surfaces]
    servers = [_Server(_config(create_app(surface, res))) for surface, _ in surfaces]
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(server.serve(sockets=[listening]))
            for server, listening in zip(servers, sockets, strict=True)
        ]
        awaiting = group.create_task(_say_still_waiting(res))
        _settle_memory()
        log.info("serve.started", **dict(surfaces))
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        ends_at = res.clock.monotonic() + res.settings.drain_seconds
        await _stop(res, servers, running, ends_at=ends_at)
        awaiting.cancel()
    late = await res.calls.drain(max(0.0, ends_at - res.clock.monotonic()))
    log.info("serve.stopped", unfinished_calls=late)


def _settle_memory() -> None:
    """Let the garbage collector pass over what was loaded: it stays, and looking through it takes 50 ms each time."""
    gc.collect()
    gc.freeze()


async def _stop(
    res: Resources, servers: Sequence["_Server"], running: Sequence[asyncio.Task[None]], *, ends_at: float
) -> None:
    """Accept nothing more, end what only watches, and let synchronous calls have their answers.

    Files being read and other answers have 20 s; a call that is relayed or waited for has until `ends_at` (monotonic).
    """
    res.waiters.end_all()
    for server in servers:
        server.should_exit = True
    await asyncio.wait(running, timeout=STOP_SECONDS)
    while (res.awaited or len(res.calls)) and res.clock.monotonic() < ends_at:
        await asyncio.wait(running, timeout=1.0)
        if all(server.done() for server in running):
            return
    await asyncio.wait(running, timeout=LAST_BYTES_SECONDS)
    for server in servers:
        server.force_exit = True


async def _say_still_waiting(res: Resources) -> None:
    """Tell the database, while there are any, which calls are waited for on this process's connections."""
    while True:
        await asyncio.sleep(STILL_WAITING_SECONDS)
        with contextlib.suppress(DatabaseAway):  # the next may find it back, before the marks run out
            await say_still_waiting(res)


def listen(address: str) -> socket.socket:
    """Open a listening socket at HOST:PORT; port 0 takes a free one. Without Nagle's delay: answers are small."""
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: we stop both surfaces together."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]  # uvicorn's own is untyped here
        yield


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Wire,
        ws="none",
        access_log=False,
        proxy_headers=False,  # nobody's word about where a call comes from is taken
        log_config=None,
        lifespan="off",
        server_header=False,
        date_header=True,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=None,  # _stop decides
    )


def _unrouted(request: Request, error: Exception) -> Response:
    """Unknown path or method, in the costume of the route."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    named: DashgateError = MethodNotAllowed() if status == 405 else NotFound()
    response = error_response(request, named)
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _malformed(request: Request, _: Exception) -> Response:
    """A query parameter of the wrong form; its value is not echoed."""
    return error_response(request, InvalidParameter("A parameter is malformed."))
