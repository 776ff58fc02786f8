"""The public port: DashScope's URL space, once per region, and the file host. Routes only."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.simulator import service, upload_calls
from app.simulator.exchange import Exchange, Meaning
from app.simulator.faults import Operation
from app.simulator.live import LiveCalls

ALL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def native_path(region: str) -> str:
    """Return the path of a region's native base URL."""
    return f"/{region}/api/v1"


def create_front(exchange: Exchange) -> Starlette:
    """Make the ASGI app of the public port."""

    def route(path: str, operation: Operation, meaning: Meaning, *, methods: tuple[str, ...] = ("GET",)) -> Route:
        return Route(path, _endpoint(exchange, operation, meaning=meaning), methods=list(methods))

    base = native_path("{region}")
    app = Starlette(
        routes=[
            Route(f"{base}/services/{{part:path}}", LiveCalls(exchange).answer, methods=["POST"]),
            route(f"{base}/tasks", Operation.LIST, service.list_tasks),
            route(f"{base}/tasks/", Operation.LIST, service.list_tasks),
            route(f"{base}/tasks/{{part}}", Operation.QUERY, service.query),
            route(f"{base}/tasks/{{part}}/", Operation.QUERY, service.query),
            route(f"{base}/tasks/{{part}}/cancel", Operation.CANCEL, service.cancel, methods=("POST",)),
            route(f"{base}/tasks/{{part}}/cancel/", Operation.CANCEL, service.cancel, methods=("POST",)),
            route(f"{base}/uploads", Operation.UPLOAD_POLICY, upload_calls.give_policy),
            route(f"{base}/uploads/", Operation.UPLOAD_POLICY, upload_calls.give_policy),
            route("/oss/{region}/{part:path}", Operation.UPLOAD, upload_calls.take_file, methods=("POST",)),
            route("/files/{region}/{part:path}", Operation.FILE, service.read_file, methods=("GET", "HEAD")),
            route("/{part:path}", Operation.OTHER, service.unknown, methods=ALL_METHODS),
        ]
    )
    app.router.redirect_slashes = False
    return app


def _endpoint(
    exchange: Exchange, operation: Operation, *, meaning: Meaning
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await exchange.answer(request, operation, meaning=meaning)

    return endpoint
