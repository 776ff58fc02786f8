"""The edge: what happens to every request, whatever its route. Ids, time, one log line, and no exception gets past.

A plain ASGI layer, because every request pays for it.
"""

import time

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.rendering import error_response
from app.errors import DashgateError, InternalTrouble, StoreAway
from app.lib.db import DatabaseAway
from app.lib.ids import new_id
from app.lib.metrics import route_meters

log = structlog.get_logger()

NO_ROUTE = "none"
LEFT = 499  # as proxies count a client that did not wait for its answer


class Edge:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = str(new_id())
        scope["dashgate.request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # in the middle of its body: nobody is there to be told
            status = status or LEFT
            log.info("request.left")
        except Exception as error:
            if status:
                log.exception("request.broken", path=scope["path"])
                raise  # the answer had begun: only the connection can tell
            response = error_response(Request(scope), _named(error))
            await response(scope, receive, send_with_id)
        finally:
            _count(scope, status, seconds=time.monotonic() - started)


def _named(error: Exception) -> DashgateError:
    """Say what an exception is to the caller; only surprises are 500, and only they are logged as errors."""
    if isinstance(error, DashgateError):
        log.info("request.refused", status=error.status, code=error.code)
        return error
    if isinstance(error, DatabaseAway):
        log.error("database.away", error=str(error))
        return StoreAway()
    log.exception("request.failed")
    return InternalTrouble()


def _count(scope: Scope, status: int, *, seconds: float) -> None:
    route = scope.get("route")
    template = getattr(route, "path", NO_ROUTE)
    counter, histogram = route_meters(template, status)
    counter.inc()
    histogram.observe(seconds)
    log.debug("request.answered", route=template, status=status, milliseconds=round(seconds * 1000, 1))
