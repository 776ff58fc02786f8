"""One account of the upstream, as calls: create, look, cancel, list. Each returns a value of `answers` or raises.

Owns the wire: headers, time limits, size caps, and what counts as "nothing was sent". Decides nothing about a task.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from urllib.parse import quote

import httpx

from app.errors import AnswerLost, CouldNotFindOut, NotSent
from app.lib import guard
from app.lib.http import Limits, Outside
from app.upstream import answers
from app.upstream.faults import Fault, fault_of
from app.upstream.lists import ListQuery, page_of

Method = Literal["GET", "POST"]

_LIMITS = Limits()
ANSWER_MAX_BYTES = 1024 * 1024
TASK_CALL_SECONDS = 5.0
POLICY_CALL_SECONDS = 10.0
UPSTREAM_ID_MAX_CHARS = 200
BROKEN_THERE = frozenset(
    {"APIConnectionError", "ClientDisconnect"}
)  # a 400 that tells of a lost call, not of a bad one
# What an upload policy has to say (dashscope-api.md 7.1).
POLICY_TEXTS = (
    *("upload_host", "upload_dir", "oss_access_key_id", "policy", "signature"),
    *("x_oss_object_acl", "x_oss_forbid_overwrite"),
)
POLICY_NUMBERS = ("expire_in_seconds", "max_file_size_mb", "capacity_limit_mb")
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

    outside: Outside
    base_url: str
    workspace: str | None
    key: str

    def __repr__(self) -> str:
        return f"Upstream({self.base_url})"

    def without_key(self, answer: bytes) -> bytes:
        """Return an answer without our key, should the upstream ever repeat it: answers go on to teams."""
        return answer.replace(self.key.encode(), b"***")

    def own_headers(self) -> dict[str, str]:
        """Return the headers that are the account's to say, never a team's."""
        own = {"Authorization": f"Bearer {self.key}", "Accept-Encoding": "identity"}
        return {**own, "X-DashScope-WorkSpace": self.workspace} if self.workspace else own

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

    async def cancel_task(self, upstream_task_id: str) -> answers.Cancel:
        """Ask for a task to be cancelled (dashscope-api.md 3.3); the upstream does that only while it is PENDING.

        Raises:
            CouldNotFindOut: as `look`; whether it was heard is unknown.
        """
        reply = await self._ask_anything("POST", f"/tasks/{upstream_task_id}/cancel")
        code = text_of(reply.fields, "code")
        is_verdict = 400 <= reply.status < 500 and code and code not in BROKEN_THERE
        if is_verdict and fault_of(reply.status, code, text_of(reply.fields, "message")) is Fault.CALLER:
            return answers.CancelRefused(code)
        _answered(reply)
        return answers.CancelHeard()

    async def list_tasks(self, query: ListQuery) -> answers.TaskPage:
        """Read a page of the account's task list: also the cheapest proof that region and key belong together.

        Raises:
            CouldNotFindOut: as `look`.
        """
        page = page_of((await self._ask(f"/tasks?{query.text()}")).fields, query)
        if page is None:
            raise CouldNotFindOut("no list")
        return page

    async def get_upload_policy(self, model: str) -> answers.UploadPolicy | answers.Refused:
        """Ask for a place to put input files for a model (dashscope-api.md 7.1).

        Raises:
            CouldNotFindOut: unreachable, or no answer that says yes or no.
        """
        target = f"/uploads?action=getPolicy&model={quote(model, safe='')}"
        try:
            reply = await self._call("GET", target, timeout_seconds=POLICY_CALL_SECONDS)
            if reply.status in (404, 405) and not text_of(reply.fields, "code"):
                return answers.Refused(reply.status, "", "", "", reply.body, Fault.CALLER)  # it has no such call
            if 400 <= reply.status < 500:
                return refusal(reply, text_of(reply.fields, "request_id"))
        except (guard.Refused, httpx.TransportError, TimeoutError, AnswerLost) as error:
            raise CouldNotFindOut(type(error).__name__) from error
        policy = _upload_policy(reply.fields.get("data")) if reply.status == 200 else None
        if policy is None:
            raise CouldNotFindOut(f"{reply.status} without a policy")
        return policy

    async def _ask(self, target: str) -> Reply:
        """GET something under the base; only a whole JSON answer with 200 is an answer."""
        return _answered(await self._ask_anything("GET", target))

    async def _ask_anything(self, method: Method, target: str) -> Reply:
        """Make a task call, and take whatever comes back."""
        try:
            return await self._call(method, target, timeout_seconds=TASK_CALL_SECONDS)
        except (guard.Refused, httpx.TransportError, TimeoutError) as error:
            raise CouldNotFindOut(type(error).__name__) from error

    async def _call(
        self,
        method: Method,
        target: str,
        *,
        timeout_seconds: float,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        sent = {**(headers or {}), **self.own_headers()}
        async with (
            asyncio.timeout(timeout_seconds),
            self.outside.call(method, self.base_url + target, headers=sent, body=body, limits=_LIMITS) as response,
        ):
            read = bytearray()
            async for chunk in response.aiter_raw():
                read += chunk
                if len(read) > ANSWER_MAX_BYTES:
                    raise httpx.RemoteProtocolError("the answer is too long")
            return reply_from(response, self.without_key(bytes(read)))


def reply_from(response: httpx.Response, body: bytes) -> Reply:
    """Return an answer whose body was read."""
    return Reply(response.status_code, body, _fields(body), _retry_after(response.headers))


def _answered(reply: Reply) -> Reply:
    """Return an answer to a question about tasks; anything but JSON with 200 is none."""
    if reply.status != 200:
        code = text_of(reply.fields, "code")
        fault = fault_of(reply.status, code, text_of(reply.fields, "message"))
        raise CouldNotFindOut(
            f"{reply.status} {code}".strip(),
            throttled=fault is Fault.LOAD,
            account_at_fault=fault is Fault.ACCOUNT,
        )
    if not reply.fields:
        raise CouldNotFindOut("not a JSON object")
    return reply


def _receipt(reply: Reply) -> answers.Accepted | answers.Refused:
    """Classify a create's answer (failure-model.md 2.3)."""
    request_id = text_of(reply.fields, "request_id")
    if reply.status >= 500:
        raise AnswerLost(f"{reply.status} {text_of(reply.fields, 'code')}".strip(), request_id=request_id or None)
    if reply.status >= 400 or (reply.status == 200 and reply.fields.get("code") and "output" not in reply.fields):
        return refusal(reply, request_id)
    output = reply.fields.get("output")
    task_id = output.get("task_id") if isinstance(output, dict) else None
    if reply.status != 200 or not _is_upstream_id(task_id):
        raise AnswerLost(f"{reply.status} without a task id", request_id=request_id or None)
    return answers.Accepted(str(task_id), request_id)


def refusal(reply: Reply, request_id: str) -> answers.Refused:
    """Read a refusal: certain that nothing was taken.

    Raises:
        AnswerLost: it is not the upstream's own verdict.
    """
    code, message = text_of(reply.fields, "code"), text_of(reply.fields, "message")
    # a key may also be refused without a code, in words alone (dashscope-api.md 5.2)
    is_said = bool(code) or reply.status == 429 or (reply.status == 401 and bool(message))
    if code in BROKEN_THERE or not is_said:
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
    request_id, word = text_of(reply.fields, "request_id"), output.get("task_status")
    match word:
        case "RUNNING":
            return answers.Running(request_id)
        case "SUCCEEDED":
            return answers.Succeeded(request_id, reply.fields, reply.body)
        case "FAILED":
            # The code stands in `output`; one page of the documentation prints it beside (dashscope-api.md 2.8).
            code = text_of(output, "code") or text_of(reply.fields, "code") or "InternalError"
            message = text_of(output, "message") or text_of(reply.fields, "message")
            return answers.Failed(request_id, code, message, reply.body)
        case "CANCELED":
            return answers.Canceled(request_id, reply.body)
        case "UNKNOWN":
            return answers.Gone(request_id)
        case str():
            return answers.Pending(word[:40], request_id)
    raise CouldNotFindOut("no task_status")


def _upload_policy(data: Any) -> answers.UploadPolicy | None:
    """Read an upload policy; None when it is not whole. What it has beside the documented fields is not looked at."""
    if not isinstance(data, dict):
        return None
    read: dict[str, Any] = {name: text_of(data, name) for name in POLICY_TEXTS}
    read |= {name: data.get(name) for name in POLICY_NUMBERS}
    if not all(read.values()) or not all(type(read[name]) is int and read[name] > 0 for name in POLICY_NUMBERS):
        return None
    return answers.UploadPolicy(**read)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}  # HTML of a proxy, a truncated answer, a depth bomb: not an answer
    return parsed if isinstance(parsed, dict) else {}


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """Return a text that a row can hold: without NUL or half of a surrogate pair."""
    value = fields.get(name)
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
