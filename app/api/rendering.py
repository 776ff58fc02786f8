"""Errors in the costume of the route: DashScope's shape under /api/v1, problem+json elsewhere (design.md 7).

Under /uploads the clients think they speak to the upstream's object storage: its XML.
"""

import json
from typing import Any
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from app.errors import CallerError, DashgateError, UpstreamRefused

DASHSCOPE_PREFIX = "/api/v1"
STORE_PREFIX = "/uploads/"
NO_STORE = {"Cache-Control": "no-store"}


def error_response(request: Request, error: DashgateError) -> Response:
    """Render an error for the route that was asked; the upstream's own verdict passes unchanged."""
    headers = {**NO_STORE, "x-should-retry": "true" if error.retry == "later" else "false"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    task_id = getattr(error, "task_id", None)
    if task_id is not None:
        headers["X-Dashgate-Task-Id"] = task_id
    if isinstance(error, UpstreamRefused):
        return Response(error.body, error.status, headers, media_type="application/json")
    path: str = request.scope["path"]  # as matched; never rebuilt from the Host header
    if path == DASHSCOPE_PREFIX or path.startswith(f"{DASHSCOPE_PREFIX}/"):
        return _json(dashscope_error(error, request_id(request)), error.status, headers=headers)
    if path.startswith(STORE_PREFIX):
        return Response(store_error(error, request_id(request)), error.status, headers, media_type="application/xml")
    return _json(problem(error, path), error.status, headers=headers, media_type="application/problem+json")


def dashscope_error(error: DashgateError, request_id: str) -> dict[str, Any]:
    """Return an error in DashScope's shape (dashscope-api.md 2.5)."""
    return {"code": error.code, "message": error.message, "request_id": request_id}


def store_error(error: DashgateError, request_id: str) -> bytes:
    """Return an error as the upstream's object storage words it."""
    named = {"Code": error.code, "Message": error.message, "RequestId": request_id}
    inside = "".join(f"  <{name}>{escape(text)}</{name}>\n" for name, text in named.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>\n{inside}</Error>\n'.encode()


def problem(error: DashgateError, path: str) -> dict[str, Any]:
    """Return an error as a problem (RFC 9457)."""
    title = (type(error).__doc__ or "").strip().splitlines()[0]
    kind = "about:blank" if isinstance(error, CallerError) else f"urn:dashgate:{error.code}"
    return {"type": kind, "title": title, "status": error.status, "detail": error.message, "instance": path}


def request_id(request: Request) -> str:
    """Return the id this request was given at the edge (api/edge.py)."""
    return str(request.scope["dashgate.request_id"])


def _json(
    fields: dict[str, Any], status: int, *, headers: dict[str, str], media_type: str = "application/json"
) -> Response:
    body = json.dumps(fields, ensure_ascii=False).encode()
    return Response(body, status, headers, media_type=media_type)
