"""Synchronous calls of the upstream: answered on the connection, whole or event by event (dashscope-api.md 2.5, 2.6).

Owns what such an answer proves: made, refused, or nobody knows. Decides nothing about a task.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import httpx

from app.errors import AnswerLost, NotSent
from app.lib import guard
from app.lib.http import Limits
from app.upstream import answers
from app.upstream.client import ANSWER_MAX_BYTES, Reply, Upstream, refusal, reply_from, text_of
from app.upstream.streams import BadStream, SseEvent, SseParser, fields_of

EVENT_STREAM = "text/event-stream"
SILENCE_SECONDS = 300.0  # between two events of a stream; a picture takes minutes
# A 5xx of the upstream itself is a verdict; these say that its own wait ended, not the work.
NO_VERDICT = frozenset({"RequestTimeOut", "ResponseTimeout"})

Called = answers.Succeeded | answers.Refused


@dataclass(frozen=True, slots=True)
class Stream:
    """An open stream of events: each as it comes, then the end. Raises AnswerLost where it breaks off.

    `may_be_cut`: its end is that of the connection, which looks the same whether or not something is missing.
    """

    events: AsyncIterator[SseEvent]
    may_be_cut: bool = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A call as it leaves: the service path, the body byte for byte, the team's headers, and when it is given up."""

    path: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str]
    timeout_seconds: float


async def call(upstream: Upstream, outgoing: Outgoing, *, began: Callable[[], Awaitable[None]] | None = None) -> Called:
    """Make one synchronous call and read its answer to the end; `began` is told of an answer that comes in parts.

    Raises:
        NotSent: no byte left the house.
        AnswerLost: bytes left, and no verdict came back: it may have been made and billed.
    """
    try:
        async with (
            asyncio.timeout(outgoing.timeout_seconds),
            _open(upstream, outgoing, silence_seconds=outgoing.timeout_seconds) as response,
        ):
            return verdict(await _read(upstream, response, began=began))
    except _LOST as error:
        raise AnswerLost(type(error).__name__) from error


@contextlib.asynccontextmanager
async def open_stream(upstream: Upstream, outgoing: Outgoing) -> AsyncIterator[Stream | Called]:
    """Make one streamed call: an open stream, or the whole answer where the upstream does not stream.

    Raises:
        NotSent, AnswerLost: as `call`; the latter also while events are read.
    """
    streamed = replace(outgoing, headers={**outgoing.headers, "X-DashScope-SSE": "enable", "Accept": EVENT_STREAM})
    try:
        async with (
            asyncio.timeout(outgoing.timeout_seconds),
            _open(upstream, streamed, silence_seconds=SILENCE_SECONDS) as response,
        ):
            if _is_stream(response):
                is_framed = not {"transfer-encoding", "content-length"}.isdisjoint(response.headers)
                yield Stream(_events(upstream, response), may_be_cut=not is_framed)
            else:
                yield verdict(_unframed(await _read(upstream, response), response))
    except _LOST as error:
        raise AnswerLost(type(error).__name__) from error


def verdict(reply: Reply) -> Called:
    """Say what a whole answer proves.

    Raises:
        AnswerLost: nothing: it is not the upstream's own, or says that its wait ended.
    """
    request_id, code = text_of(reply.fields, "request_id"), text_of(reply.fields, "code")
    has_output = isinstance(reply.fields.get("output"), dict)
    if reply.status == 200 and has_output and not code:
        return answers.Succeeded(request_id, reply.fields, reply.body)
    if reply.status >= 500 and (not code or code in NO_VERDICT):
        raise AnswerLost(f"{reply.status} {code or 'without a code'}", request_id=request_id or None)
    if reply.status >= 400 or (reply.status == 200 and code and not has_output):
        return refusal(reply, request_id)
    raise AnswerLost(f"{reply.status} without an output", request_id=request_id or None)


_LOST: tuple[type[Exception], ...] = (httpx.TransportError, TimeoutError)
_NOT_SENT: tuple[type[Exception], ...] = (guard.Refused, httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@contextlib.asynccontextmanager
async def _open(upstream: Upstream, outgoing: Outgoing, *, silence_seconds: float) -> AsyncIterator[httpx.Response]:
    sent = {"Content-Type": "application/json", **outgoing.headers, **upstream.own_headers()}
    url = f"{upstream.base_url}/services/{outgoing.path}"
    limits = Limits(silence_seconds, is_long=True)
    async with contextlib.AsyncExitStack() as stack:
        call = upstream.outside.call("POST", url, headers=sent, body=outgoing.body, limits=limits)
        try:
            response = await stack.enter_async_context(call)
        except _NOT_SENT as error:
            raise NotSent() from error
        yield response


async def _read(
    upstream: Upstream, response: httpx.Response, *, began: Callable[[], Awaitable[None]] | None = None
) -> Reply:
    read = bytearray()
    async for chunk in response.aiter_raw():
        if not read and began is not None and len(chunk) != int(response.headers.get("content-length", "0") or 0):
            await began()
        read += chunk
        if len(read) > ANSWER_MAX_BYTES:
            raise httpx.RemoteProtocolError("the answer is too long")
    return reply_from(response, upstream.without_key(bytes(read)))


def _is_stream(response: httpx.Response) -> bool:
    """Tell a stream that we can read: one in an encoding that we did not ask for is none."""
    is_plain = response.headers.get("content-encoding", "identity").strip().lower() == "identity"
    return response.status_code == 200 and _media_type(response) == EVENT_STREAM and is_plain


def _unframed(reply: Reply, response: httpx.Response) -> Reply:
    """Return a refusal that came as a single event as the same refusal without its frame."""
    if _media_type(response) != EVENT_STREAM:
        return reply
    parser = SseParser()
    events = [*parser.feed(reply.body), *parser.close()]
    if len(events) != 1:
        return reply
    return replace(reply, body=events[0].data.encode(), fields=fields_of(events[0]))


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


async def _events(upstream: Upstream, response: httpx.Response) -> AsyncIterator[SseEvent]:
    """Yield events as they arrive."""

    key = upstream.key.encode()

    def masked(event: SseEvent) -> SseEvent:
        if key not in event.raw:
            return event
        return replace(event, data=event.data.replace(upstream.key, "***"), raw=upstream.without_key(event.raw))

    parser = SseParser()
    try:
        async for chunk in cast(httpx.AsyncByteStream, response.stream):  # httpx's own way through it costs more
            for event in parser.feed(chunk):
                yield masked(event)
        for event in parser.close():  # some streams end without the last empty line
            yield masked(event)
        if parser.is_broken:
            raise AnswerLost("an event without end")
    except BadStream as error:
        raise AnswerLost("not a stream of events") from error
