"""What each answer of the upstream means: taken, refused, nothing sent, or nobody knows."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import httpx
import pytest

from app.errors import AnswerLost, CouldNotFindOut, NotSent
from app.lib.guard import AddressRefused, UrlRefused
from app.lib.http import Limits, Outside
from app.upstream import answers
from app.upstream.client import ANSWER_MAX_BYTES, Upstream
from app.upstream.faults import ACCOUNT_CODES, Fault, fault_of

ERROR = {"code": "InvalidParameter", "message": "no such size", "request_id": "r-1"}


class ScriptedOutside:
    """The way out, answered by a function."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @contextlib.asynccontextmanager
    async def call(
        self, method: str, url: str, *, headers: dict[str, str], body: bytes | None, limits: Limits
    ) -> AsyncIterator[httpx.Response]:
        async with self._client.stream(method, url, headers=headers, content=body) as response:
            yield response


def upstream(answer: Callable[[httpx.Request], httpx.Response], workspace: str | None = None) -> Upstream:
    scripted = cast(Outside, ScriptedOutside(httpx.AsyncClient(transport=httpx.MockTransport(answer))))
    return Upstream(scripted, "https://upstream.example/api/v1", workspace, "sk-canary")


def answering(status: int, body: Any = b"", **headers: str) -> Upstream:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return upstream(lambda _: httpx.Response(status, stream=httpx.ByteStream(content), headers=headers))


def failing(error: Exception) -> Upstream:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return upstream(answer)


async def create(of: Upstream) -> answers.Accepted | answers.Refused:
    return await of.create_task("aigc/x", b"{}", headers={}, timeout_seconds=5)


async def refused(of: Upstream) -> answers.Refused:
    answer = await create(of)
    assert isinstance(answer, answers.Refused), answer
    return answer


# --- creates -------------------------------------------------------------------------------------------------------


async def test_a_task_id_is_a_receipt() -> None:
    body = {"output": {"task_id": "abc-1", "task_status": "PENDING"}, "request_id": "r-1"}
    assert await create(answering(200, body)) == answers.Accepted("abc-1", "r-1")


async def test_a_create_carries_our_key_and_the_workspace_and_asks_for_no_encoding() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b'{"output":{"task_id":"a"}}'))

    given = {"x-dashscope-ossresourceresolve": "enable", "authorization": "Bearer theirs", "cookie": "a=b"}
    await upstream(answer, "ws-1").create_task("aigc/x", b'{"a": 1}', headers=given, timeout_seconds=5)
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "https://upstream.example/api/v1/services/aigc/x")
    assert request.content == b'{"a": 1}'
    assert request.headers["authorization"] == "Bearer sk-canary"
    assert request.headers["x-dashscope-workspace"] == "ws-1"
    assert request.headers["x-dashscope-async"] == "enable"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["x-dashscope-ossresourceresolve"] == "enable"
    assert "cookie" not in request.headers


async def test_a_refusal_keeps_the_upstreams_bytes() -> None:
    body = b'{"code":"InvalidParameter", "message":"\xe4\xb8\xad",\n"request_id":"r-1"}'
    answer = await refused(answering(400, body))
    assert (answer.body, answer.status, answer.fault) == (body, 400, Fault.CALLER)
    assert (answer.code, answer.message, answer.request_id) == ("InvalidParameter", "\u4e2d", "r-1")


async def test_an_error_with_status_200_is_a_refusal_all_the_same() -> None:
    assert (await refused(answering(200, ERROR))).status == 400


async def test_a_429_is_load_even_without_a_word() -> None:
    for body in (ERROR | {"code": "Throttling.RateQuota"}, b"", b"<html>"):
        assert (await refused(answering(429, body))).fault is Fault.LOAD


async def test_what_the_upstream_asks_to_wait_is_kept_when_it_is_a_number_of_seconds() -> None:
    expected = {"7": 7.0, "0": 0.0, "-1": None, "soon": None, "Wed, 21 Oct 2026 07:28:00 GMT": None, "9" * 9: None}
    seen = {given: (await refused(answering(429, **{"Retry-After": given}))).retry_after_seconds for given in expected}
    assert seen == expected


@pytest.mark.parametrize("code", ["APIConnectionError", "ClientDisconnect"])
async def test_a_connection_that_broke_on_their_side_is_a_lost_answer(code: str) -> None:
    with pytest.raises(AnswerLost):
        await create(answering(400, ERROR | {"code": code}))


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_5xx_is_a_lost_answer_and_its_request_id_is_evidence(status: int) -> None:
    with pytest.raises(AnswerLost) as lost:
        await create(answering(status, ERROR))
    assert lost.value.request_id == "r-1"


NO_VERDICT: dict[str, tuple[int, Any]] = {
    "empty": (200, b""),
    "page": (200, b"<html>"),
    "list": (200, []),
    "no output": (200, {"request_id": "r"}),
    "no id": (200, {"output": {}}),
    "number": (200, {"output": {"task_id": 7}}),
    "slash": (200, {"output": {"task_id": "../a"}}),
    "blank": (200, {"output": {"task_id": ""}}),
    "NUL": (200, {"output": {"task_id": "a\x00"}}),
    "endless id": (200, {"output": {"task_id": "a" * 201}}),
    "other letters": (200, {"output": {"task_id": "\u0430bc"}}),
    "deep": (200, b"[" * 100_000),
    "too long": (200, b" " * (ANSWER_MAX_BYTES + 1)),
    "page with 403": (403, b"<html>a proxy</html>"),
    "created": (201, {"output": {"task_id": "abc"}}),
    "redirect": (302, b""),
}


@pytest.mark.parametrize("answer", NO_VERDICT.values(), ids=NO_VERDICT.keys())
async def test_what_is_no_verdict_is_a_lost_answer(answer: tuple[int, Any]) -> None:
    with pytest.raises(AnswerLost):
        await create(answering(*answer))


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x"), UrlRefused("x"), AddressRefused("x")],
)
async def test_what_never_left_was_not_sent(error: Exception) -> None:
    with pytest.raises(NotSent):
        await create(failing(error))


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("x"),
        httpx.WriteTimeout("x"),
        httpx.ReadError("x"),
        httpx.WriteError("x"),
        httpx.RemoteProtocolError("x"),
        TimeoutError(),
    ],
)
async def test_what_may_have_arrived_is_a_lost_answer(error: Exception) -> None:
    with pytest.raises(AnswerLost):
        await create(failing(error))


def test_an_upstream_never_shows_its_key() -> None:
    assert "canary" not in repr(answering(200))


# --- looks ---------------------------------------------------------------------------------------------------------


def said(word: Any, **more: Any) -> dict[str, Any]:
    return {"request_id": "r-2", "output": {"task_status": word, **more}}


async def test_each_word_has_its_meaning() -> None:
    for word, kind in (
        ("PENDING", answers.Pending),
        ("SUSPENDED", answers.Pending),
        ("A NEW WORD", answers.Pending),
        ("RUNNING", answers.Running),
        ("SUCCEEDED", answers.Succeeded),
        ("FAILED", answers.Failed),
        ("CANCELED", answers.Canceled),
        ("UNKNOWN", answers.Gone),
    ):
        answer = await answering(200, said(word)).look("abc")
        assert (type(answer), answer.request_id) == (kind, "r-2"), word


async def test_a_failure_tells_why_wherever_the_upstream_put_it() -> None:
    inside = await answering(200, said("FAILED", code="A", message="a")).look("abc")
    beside = await answering(200, said("FAILED") | {"code": "B", "message": "b"}).look("abc")
    nowhere = await answering(200, said("FAILED")).look("abc")
    assert [(f.code, f.message) for f in (inside, beside, nowhere) if isinstance(f, answers.Failed)] == [
        ("A", "a"),
        ("B", "b"),
        ("InternalError", ""),
    ]


async def test_text_that_no_row_can_hold_is_made_to_fit() -> None:
    answer = await answering(200, b'{"output":{"task_status":"FAILED","code":"A\\u0000","message":"\\ud83d!"}}').look(
        "a"
    )
    assert isinstance(answer, answers.Failed)
    assert (answer.code, answer.message) == ("A", "?!")


@pytest.mark.parametrize(
    "answer",
    [
        (200, b""),
        (200, []),
        (200, {"output": None}),
        (200, {"output": {}}),
        (200, said(7)),
        (200, b"[" * 100_000),
        (200, b" " * (ANSWER_MAX_BYTES + 1)),
        (404, said("FAILED")),
        (500, said("SUCCEEDED")),
        (302, b""),
    ],
)
async def test_what_is_no_answer_to_a_look_ends_nothing(answer: tuple[int, Any]) -> None:
    with pytest.raises(CouldNotFindOut):
        await answering(*answer).look("abc")


async def test_a_look_that_was_not_answered_says_whose_trouble_it_is() -> None:
    seen = {}
    for status, code in ((429, "Throttling"), (401, "InvalidApiKey"), (503, "ModelUnavailable")):
        with pytest.raises(CouldNotFindOut) as trouble:
            await answering(status, ERROR | {"code": code}).look("abc")
        seen[status] = (trouble.value.throttled, trouble.value.account_at_fault)
    assert seen == {429: (True, False), 401: (False, True), 503: (False, False)}


@pytest.mark.parametrize("error", [httpx.ConnectError("x"), httpx.ReadTimeout("x"), TimeoutError(), UrlRefused("x")])
async def test_a_look_that_failed_on_the_way_ends_nothing(error: Exception) -> None:
    with pytest.raises(CouldNotFindOut):
        await failing(error).look("abc")


# --- cancels -------------------------------------------------------------------------------------------------------


async def test_a_cancel_is_an_empty_post_that_is_heard_or_refused() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b'{"request_id":"r"}'))

    assert await upstream(answer).cancel_task("a-1") == answers.CancelHeard()
    assert (seen[0].method, seen[0].url.path, seen[0].content) == ("POST", "/api/v1/tasks/a-1/cancel", b"")
    refused = answering(400, {"code": "UnsupportedOperation", "message": "not PENDING"})
    assert await refused.cancel_task("a-1") == answers.CancelRefused("UnsupportedOperation")


@pytest.mark.parametrize(
    "answer",
    [
        *((200, b""), (200, b"<html>"), (204, b""), (301, b""), (400, b"<html>"), (404, b"no such page")),
        *((400, {"code": "Arrearage"}), (401, {"code": "InvalidApiKey"}), (429, {"code": "Throttling.RateQuota"})),
        *((400, {"code": "ClientDisconnect"}), (500, {"code": "InternalError"}), (503, b"")),
    ],
)
async def test_what_is_no_verdict_on_a_cancel_leaves_it_open(answer: tuple[int, Any]) -> None:
    with pytest.raises(CouldNotFindOut) as trouble:
        await answering(*answer).cancel_task("a")
    assert trouble.value.throttled is (answer[0] == 429)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("x"), httpx.ReadError("x"), httpx.ReadTimeout("x"), TimeoutError()]
)
async def test_a_cancel_that_failed_on_the_way_leaves_it_open(error: Exception) -> None:
    with pytest.raises(CouldNotFindOut):
        await failing(error).cancel_task("a")


# --- whose fault ---------------------------------------------------------------------------------------------------


def test_a_code_about_our_account_is_never_the_callers_whatever_its_status() -> None:
    for code in ACCOUNT_CODES:
        for status in (400, 401, 403, 404, 429):
            assert fault_of(status, code, "") is Fault.ACCOUNT, (status, code)


def test_the_usual_refusals_are_the_callers() -> None:
    for status, code in (
        (400, "InvalidParameter"),
        (400, "DataInspectionFailed"),
        (400, "InvalidParameter.DataInspection"),
        (400, "BadRequest.TooLarge"),
        (404, "ModelNotFound"),
        (413, "RequestTooLarge"),
    ):
        assert fault_of(status, code, "") is Fault.CALLER, code


def test_throttling_is_load_in_all_its_words() -> None:
    for code in ("Throttling", "Throttling.RateQuota", "Throttling.BurstRate", "Throttling.AllocationQuota", "limit"):
        assert fault_of(429, code, "") is Fault.LOAD


def test_a_403_is_ours_unless_it_is_about_the_form_of_the_call() -> None:
    assert fault_of(403, "AccessDenied", "denied") is Fault.ACCOUNT
    assert fault_of(403, "AccessDenied", "current user api does not support asynchronous calls") is Fault.CALLER
