"""The wire: HTTP/1.1 as it arrives, within the bounds that uvicorn does not have (failure-model.md 4.6).

Owns what is refused before there is a request: framing that two readers could take for two things, heads without end,
clients that do not go on. Knows no route and no team.
"""

import asyncio
import re
from http import HTTPStatus
from typing import Any, NoReturn

import httptools
import structlog
from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.rendering import error_response
from app.errors import CallerError, HeadTooLarge, MalformedRequest, SlowRequest
from app.lib.ids import new_id
from app.lib.metrics import route_meters

log = structlog.get_logger()

URL_MAX_BYTES = 8 * 1024
HEAD_MAX_BYTES = 16 * 1024
HEAD_MAX_LINES = 64
# Of a chunked body: what is no content. Chunks of a single byte cost six; extensions and trailers are nobody's.
OVERHEAD_MAX_BYTES = 16 * 1024
OVERHEAD_PER_BYTE = 8
LEAST_BODY_BYTES = 16 * 1024  # in `body_seconds`: whoever sends less is not sending
PIECE_BYTES = 16 * 1024  # parsed at once
HELD_MAX_BYTES = 1024 * 1024  # that came behind a request which is not answered yet
FRAMING = (b"content-length", b"transfer-encoding")
LINGER_SECONDS = 2.0  # a refused client may read its answer before it is cut off
LOOK_SECONDS = 2.5
HOST_FORM = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")


class Wire(HttpToolsProtocol):
    """One connection. What is refused here is answered, and the connection ends; nothing after it is read."""

    head_seconds = 10.0
    body_seconds = 30.0
    look_seconds = LOOK_SECONDS

    _reads_body = False
    _since: float | None = None  # when the client began what it sends now: a head, or this part of a body
    _steps = 0  # heads and bodies that came to their end
    _head_bytes = 0
    _unread_bytes = 0  # of a head that has not ended, or of a body's overhead
    _body_bytes = 0
    _window_bytes = 0  # of a body since `_since`
    _previous: Any = None  # the request before the present one, on this connection
    _verdict: CallerError | None = None
    _is_refused = False
    _held = b""  # what was not parsed yet

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to watch the clock: a client that connects and says nothing is not waited for."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch = self.loop.call_later(self.look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived. Requests behind one that is not answered yet are not even parsed: each would cost a
        hundred times its bytes.
        """
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        if self._since is None:
            self._since = self.loop.time()
        is_idle = not self._held
        self._held += data
        if is_idle:
            self._parse_held()
        if len(self._held) > HELD_MAX_BYTES:
            self._refuse(MalformedRequest())
        elif self._held:
            self.flow.pause_reading()

    def _parse_held(self) -> None:
        held, at = self._held, 0
        while at < len(held) and not self.pipeline and not self._is_refused:
            self._parse(held[at : at + PIECE_BYTES])
            at += PIECE_BYTES
        self._held = b"" if self._is_refused else held[at:]

    def _parse(self, data: bytes) -> None:
        """Parse, and count what the parser does not show."""
        steps, body_bytes = self._steps, self._body_bytes
        try:
            self.parser.feed_data(data)
            if steps == self._steps:
                self._count(len(data) - (self._body_bytes - body_bytes))
        except httptools.HttpParserUpgrade as offered:
            self._decline(data[offered.args[0] :])
        except (httptools.HttpParserError, CallerError):
            self._refuse(self._verdict or MalformedRequest())

    def on_message_begin(self) -> None:
        """Forget the last head."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        super().on_url(url)
        if len(self.url) > URL_MAX_BYTES:
            self._say(HeadTooLarge())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. One behind the body is dropped: the request has been judged without it."""
        if self._reads_body:
            return
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_MAX_BYTES or len(self.headers) >= HEAD_MAX_LINES:
            self._say(HeadTooLarge())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request whose head leaves no doubt about where it ends and whom it is for."""
        if not _is_plain(self.parser.get_http_version(), self.headers) or self.parser.get_method() == b"CONNECT":
            self._say(MalformedRequest())
        before = self.cycle
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        self._previous = before
        self._reads_body = True
        self._step()
        self._since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._body_bytes += len(body)
        self._window_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        if self.parser.should_upgrade():
            return  # not yet: the parser leaves here what is the body for us
        super().on_message_complete()
        self._reads_body = False
        self._step()
        self._since = None
        if self.cycle.response_complete:  # it was answered before its body had been sent
            self._keep_alive()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one's body, which nobody reads any more."""
        super().on_response_complete()
        if self._held:
            self.flow.pause_reading()
            self.loop.call_soon(self._go_on)
        if self._reads_body:
            self._unset_keepalive_if_required()
            self._since = self.loop.time()

    def _decline(self, rest: bytes) -> None:
        """Go on with HTTP/1.1 although the client offers another protocol, as Java's own client does with every request
        that it does not encrypt; this request is the last of its connection.
        """
        self.cycle.keep_alive = False
        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in FRAMING]
        self.parser = httptools.HttpRequestParser(_RestOfRequest(self))
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        if rest:
            self._parse(rest)

    def _go_on(self) -> None:
        if self.parser is None or self.transport.is_closing():
            return  # the connection was lost meanwhile
        self._parse_held()
        if not self._held:
            self.flow.resume_reading()

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _step(self) -> None:
        self._steps += 1
        self._unread_bytes = self._body_bytes = self._window_bytes = 0

    def _count(self, unread_bytes: int) -> None:
        """Count bytes that led to nothing yet: of a head without end, or around the pieces of a body."""
        self._unread_bytes += unread_bytes
        if not self._reads_body and self._unread_bytes > URL_MAX_BYTES + HEAD_MAX_BYTES:
            self._say(HeadTooLarge())
        if self._reads_body and self._unread_bytes > OVERHEAD_MAX_BYTES + OVERHEAD_PER_BYTE * self._body_bytes:
            self._say(MalformedRequest())

    def _say(self, verdict: CallerError) -> NoReturn:
        self._verdict = verdict  # the parser wraps what its callbacks raise
        raise verdict

    def _look(self) -> None:
        """Look whether the client goes on with what it began."""
        if self.transport.is_closing():
            return
        self._watch = self.loop.call_later(self.look_seconds, self._look)
        now = self.loop.time()
        if self._since is None:
            return  # the keep-alive time runs, or an answer is being made
        if self.flow.read_paused:
            self._since = now  # it is we who do not read
        elif self._reads_body:
            self._look_at_body(now, self._since)
        elif now - self._since >= self.head_seconds and not self._is_answering():
            if self._unread_bytes or self._steps:
                self._refuse(SlowRequest())
            else:
                self.transport.close()  # it never said a word

    def _look_at_body(self, now: float, since: float) -> None:
        if now - since < self.body_seconds:
            return
        if self.cycle.response_complete:
            self.transport.close()
        elif self._window_bytes < LEAST_BODY_BYTES:
            self._refuse(SlowRequest())
        else:
            self._since, self._window_bytes = now, 0

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, verdict: CallerError) -> None:
        """Answer what was sent with a refusal and hang up; whoever asked before on this connection has its answer."""
        if self._is_refused:
            return
        self._is_refused = True
        log.info("request.malformed", status=verdict.status, code=verdict.code)
        route_meters("none", verdict.status)[0].inc()
        asked = self.cycle if self._reads_body else None
        earlier = self._previous if self._reads_body else self.cycle
        if asked is not None:
            self._give_up(asked)
        if earlier is not None and not earlier.response_complete:
            earlier.keep_alive = False  # its answer is the last
        elif asked is not None and asked.response_started:
            self.transport.close()
        else:
            self.transport.write(_answer(verdict))
            self._hang_up()

    def _give_up(self, cycle: Any) -> None:
        """Let a request whose body broke off end as if its client had left."""
        self.pipeline = type(self.pipeline)(queued for queued in self.pipeline if queued[0] is not cycle)
        cycle.disconnected = True
        cycle.message_event.set()

    def _hang_up(self) -> None:
        """Say that nothing more comes, and close soon: closed at once, the client might lose the answer."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)


class _RestOfRequest:
    """What a parser that begins behind a request's head tells of it."""

    def __init__(self, wire: Wire) -> None:
        self.on_body = wire.on_body
        self.on_message_complete = wire.on_message_complete


def _is_plain(version: str, headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a head is one that every reader understands alike.

    >>> _is_plain("1.1", [(b"host", b"gateway:8080")]), _is_plain("1.1", []), _is_plain("1.0", [])
    (True, False, True)
    >>> _is_plain("1.1", [(b"host", b"a"), (b"host", b"a")]), _is_plain("1.1", [(b"host", b"a/?b=")])
    (False, False)
    >>> _is_plain("1.1", [(b"host", b"a"), (b"transfer-encoding", b"gzip, chunked")])
    False
    """
    hosts = [value for name, value in headers if name == b"host"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or len(hosts) > 1 or (version == "1.1" and not hosts):
        return False
    if codings and (version == "1.0" or [coding.strip().lower() for coding in codings] != [b"chunked"]):
        return False
    return all(HOST_FORM.fullmatch(host.strip()) for host in hosts)


def _answer(verdict: CallerError) -> bytes:
    """Write a refusal as a whole answer."""
    request_id = str(new_id())
    scope = {"type": "http", "path": "/api/v1", "headers": [], "dashgate.request_id": request_id}
    response = error_response(Request(scope), verdict)
    lines = [f"HTTP/1.1 {verdict.status} {HTTPStatus(verdict.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    lines += [b"x-request-id: " + request_id.encode(), b"connection: close", b"", bytes(response.body)]
    return b"\r\n".join(lines)
