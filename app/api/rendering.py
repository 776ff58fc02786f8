"""Errors in the costume of the route: DashScope's shape under /api/v1, OpenAI's on its routes, problem+json elsewhere
(design.md 7).

Under /uploads the clients think they speak to the upstream's object storage: its XML.
"""

import json
import re
from typing import Any
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import Response

from app.errors import CallerError, DashgateError, UpstreamRefused

DASHSCOPE_PREFIX = "/api/v1"
STORE_PREFIX = "/uploads/"
OPENAI_PREFIXES = ("/v1/images", "/compatible-mode")
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
OPENAI_QUOTA = "insufficient_quota"
OPENAI_RATE = "rate_limit_exceeded"
_WORD_BEGINS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
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
    path: str = request.scope["path"]  # as matched; never rebuilt from the Host header
    if any(_is_below(path, prefix) for prefix in OPENAI_PREFIXES):
        return _json(openai_error(error, request_id(request)), error.status, headers=headers)
    if isinstance(error, UpstreamRefused):
        return Response(error.body, error.status, headers, media_type="application/json")
    if _is_below(path, DASHSCOPE_PREFIX):
        return _json(dashscope_error(error, request_id(request)), error.status, headers=headers)
    if path.startswith(STORE_PREFIX):
        return Response(store_error(error, request_id(request)), error.status, headers, media_type="application/xml")
    return _json(problem(error, path), error.status, headers=headers, media_type="application/problem+json")


def dashscope_error(error: DashgateError, request_id: str) -> dict[str, Any]:
    """Return an error in DashScope's shape (dashscope-api.md 2.5)."""
    return {"code": error.code, "message": error.message, "request_id": request_id}


def openai_error(error: DashgateError, request_id: str) -> dict[str, Any]:
    """Return an error in OpenAI's shape, with the codes that DashScope's compatible mode uses (dashscope-api.md 5)."""
    code, message = error.code, error.message
    if isinstance(error, UpstreamRefused):
        code, message, request_id = _upstreams_words(error, request_id)
    kind = OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    named = {"message": message, "type": kind, "param": getattr(error, "param", None), "code": openai_code(code)}
    return {"error": named, "request_id": request_id}


def openai_code(code: str) -> str:
    """Return a code as OpenAI's clients know it.

    >>> [openai_code(code) for code in ("InvalidApiKey", "DataInspectionFailed", "IPInfringementSuspect")]
    ['invalid_api_key', 'data_inspection_failed', 'ip_infringement_suspect']
    >>> [openai_code(code) for code in ("Throttling.RateQuota", "Throttling.AllocationQuota", "limit_requests")]
    ['rate_limit_exceeded', 'insufficient_quota', 'rate_limit_exceeded']
    >>> openai_code("InternalError.Algo"), openai_code("Dashgate.UpstreamAccount")
    ('internal_error_algo', 'dashgate_upstream_account')
    """
    snake = _WORD_BEGINS.sub("_", code).strip("_").lower()
    if snake in ("throttling_allocation_quota", OPENAI_QUOTA):
        return OPENAI_QUOTA
    return OPENAI_RATE if snake.startswith(("throttling", "limit_")) else snake


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


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _upstreams_words(error: UpstreamRefused, request_id: str) -> tuple[str, str, str]:
    """Return code, message and request id of a verdict in DashScope's shape; of any other, what we say of it."""
    try:
        said = json.loads(error.body)
    except (ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    ours = (error.code, error.message, request_id)
    told = (said.get(name) for name in ("code", "message", "request_id"))
    code, message, request_id = (
        text if isinstance(text, str) and text else our for text, our in zip(told, ours, strict=True)
    )
    return code, message, request_id


def _json(
    fields: dict[str, Any], status: int, *, headers: dict[str, str], media_type: str = "application/json"
) -> Response:
    body = json.dumps(fields, ensure_ascii=False).encode()
    return Response(body, status, headers, media_type=media_type)
