"""One account of the upstream, as calls: create, look, list. Each returns a value of `answers` or raises.

Owns the wire: headers, time limits, size caps, and what counts as "nothing was sent". Decides nothing about a task.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import httpx

from app.errors import AnswerLost, CouldNotFindOut, NotSent
from app.lib import guard
from app.upstream import answers
from app.upstream.faults import Fault, fault_of

ANSWER_MAX_BYTES = 1024 * 1024
TASK_CALL_SECONDS = 5.0
UPSTREAM_ID_MAX_CHARS = 200
BROKEN_THERE = frozenset(
    {"APIConnectionError", "ClientDisconnect"}
)  # a 400 that tells of a lost call, not of a bad one
# Headers of a request that the upstream acts on (dashscope-api.md 1.4); nothing else of a team's request travels.
FORWARDED_HEADERS = ("x-dashscope-ossresourceresolve", "x-dashscope-datainspection")


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer read whole: `fields` is its JSON object, empty when it is none."""

    status: int
    body: bytes
    fields: dict[str, Any]
    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """An account's base URL and key, on the one way out. Its repr shows no key."""

    client: httpx.AsyncClient
    base_url: str
    workspace: str | None
    key: str

    def __repr__(self) -> str:
        return f"Upstream({self.base_url})"

    async def create_task(
        self, path: str, body: bytes, *, headers: Mapping[str, str], timeout_seconds: float
    ) -> answers.Accepted | answers.Refused:
        """Create a task from a body passed on byte for byte (dashscope-api.md 2.7).

        Raises:
            NotSent: no byte left the house.
            AnswerLost: it may have been taken: no answer, a 5xx, or an answer without a task id.
        """
        own = {"Content-Type": "application/json", "X-DashScope-Async": "enable"}
        sent = {**{name: headers[name] for name in FORWARDED_HEADERS if name in headers}, **own}
        try:
            reply = await self._call(
                "POST", f"/services/{path}", timeout_seconds=timeout_seconds, body=body, headers=sent
            )
        except (guard.Refused, httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NotSent() from error
        except (httpx.TransportError, TimeoutError) as error:
            raise AnswerLost(type(error).__name__) from error
        return _receipt(reply)

    async def look(self, upstream_task_id: str) -> answers.Look:
        """Ask once what became of a task (dashscope-api.md 2.8).

        Raises:
            CouldNotFindOut: throttled, unreachable, nonsense, or our account is at fault. Never an ending.
        """
        reply = await self._ask(f"/tasks/{upstream_task_id}")
        output = reply.fields.get("output")
        if not isinstance(output, dict):
            raise CouldNotFindOut("no output")
        return _look(reply, output)

    async def list_tasks(self, *, page_size: int = 10) -> dict[str, Any]:
        """Read a page of the account's task list: also the cheapest proof that region and key belong together.

        Raises:
            CouldNotFindOut: as `look`.
        """
        return (await self._ask(f"/tasks?page_no=1&page_size={page_size}")).fields

    async def _ask(self, target: str) -> Reply:
        """GET something under the base; only a whole JSON answer with 200 is an answer."""
        try:
            reply = await self._call("GET", target, timeout_seconds=TASK_CALL_SECONDS)
        except (guard.Refused, httpx.TransportError, TimeoutError) as error:
            raise CouldNotFindOut(type(error).__name__) from error
        if reply.status != 200:
            code = _text(reply.fields, "code")
            fault = fault_of(reply.status, code, _text(reply.fields, "message"))
            raise CouldNotFindOut(
                f"{reply.status} {code}".strip(),
                throttled=fault is Fault.LOAD,
                account_at_fault=fault is Fault.ACCOUNT,
            )
        if not reply.fields:
            raise CouldNotFindOut("not a JSON object")
        return reply

    async def _call(
        self,
        method: str,
        target: str,
        *,
        timeout_seconds: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        own = {"Authorization": f"Bearer {self.key}", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self.workspace:
            own["X-DashScope-WorkSpace"] = self.workspace
        async with (
            asyncio.timeout(timeout_seconds),
            self.client.stream(
                method, _parsed(self.base_url + target), content=body, headers={**(headers or {}), **own}
            ) as response,
        ):
            read = bytearray()
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) > ANSWER_MAX_BYTES:
                    raise httpx.RemoteProtocolError("the answer is too long")
            return Reply(response.status_code, bytes(read), _fields(bytes(read)), _retry_after(response.headers))


@lru_cache(maxsize=256)
def _parsed(url: str) -> httpx.URL:
    """Parse an address once: creates go to few, and httpx takes 100 us for it."""
    return httpx.URL(url)


def _receipt(reply: Reply) -> answers.Accepted | answers.Refused:
    """Classify a create's answer (failure-model.md 2.3)."""
    request_id = _text(reply.fields, "request_id")
    if reply.status >= 500:
        raise AnswerLost(f"{reply.status} {_text(reply.fields, 'code')}".strip(), request_id=request_id or None)
    if reply.status >= 400 or (reply.status == 200 and reply.fields.get("code") and "output" not in reply.fields):
        return _refusal(reply, request_id)
    output = reply.fields.get("output")
    task_id = output.get("task_id") if isinstance(output, dict) else None
    if reply.status != 200 or not _is_upstream_id(task_id):
        raise AnswerLost(f"{reply.status} without a task id", request_id=request_id or None)
    return answers.Accepted(str(task_id), request_id)


def _refusal(reply: Reply, request_id: str) -> answers.Refused:
    code, message = _text(reply.fields, "code"), _text(reply.fields, "message")
    if code in BROKEN_THERE or (not code and reply.status != 429):
        _no_verdict(reply, code=code, request_id=request_id)
    return answers.Refused(
        status=reply.status if reply.status >= 400 else 400,
        code=code,
        message=message,
        request_id=request_id,
        body=reply.body,
        fault=fault_of(reply.status, code, message),
        retry_after_seconds=reply.retry_after_seconds,
    )


def _no_verdict(reply: Reply, *, code: str, request_id: str) -> NoReturn:
    """A 4xx without the upstream's own error shape came from something in between."""
    raise AnswerLost(f"{reply.status} {code or 'without a code'}", request_id=request_id or None)


def _look(reply: Reply, output: dict[str, Any]) -> answers.Look:
    request_id, word = _text(reply.fields, "request_id"), output.get("task_status")
    match word:
        case "RUNNING":
            return answers.Running(request_id)
        case "SUCCEEDED":
            return answers.Succeeded(request_id, reply.fields, reply.body)
        case "FAILED":
            # The code stands in `output`; one page of the documentation prints it beside (dashscope-api.md 2.8).
            code = _text(output, "code") or _text(reply.fields, "code") or "InternalError"
            message = _text(output, "message") or _text(reply.fields, "message")
            return answers.Failed(request_id, code, message, reply.body)
        case "CANCELED":
            return answers.Canceled(request_id, reply.body)
        case "UNKNOWN":
            return answers.Gone(request_id)
        case str():
            return answers.Pending(word[:40], request_id)
    raise CouldNotFindOut("no task_status")


def _fields(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # HTML of a proxy, a truncated answer, a depth bomb: not an answer
    return parsed if isinstance(parsed, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    """Return a text that a row can hold: without NUL or half of a surrogate pair."""
    return value.replace("\x00", "").encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _is_upstream_id(value: Any) -> bool:
    """Only ids that may stand in a URL and a row: printable, no slash, not endless."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= UPSTREAM_ID_MAX_CHARS
        and value.isascii()
        and value.replace("-", "").replace("_", "").isalnum()
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) <= 6 else None
