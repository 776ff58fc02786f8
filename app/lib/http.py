"""The one door for all outgoing HTTP; HTTP clients are made only here.

Owns the clients and the words for what went wrong on the wire; lib/guard.py owns what may be reached. Two ways
lead through the door: httpx for calls, and `Outside.exchange` for signed URLs, whose query httpx's transport rewrites.
Must not know whom we call or what for.
"""

import contextlib
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from socket import AF_UNSPEC, AddressFamily, socket
from typing import Literal

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from app.lib.db import in_transaction
from app.lib.guard import AddressRefused, AllowList, Guard, Scheme, port_of

CONNECT_SECONDS = 5.0
POOL_SECONDS = 10.0  # aiohttp counts waiting for a free connection, DNS and connecting together under this one
LONG_CONNECTIONS = 1_000
# A server that ends an idle connection while a call leaves on it makes a call whose outcome nobody knows: be first.
# Servers wait 5 s (uvicorn, Node), 15 s (Alibaba's load balancers, and aiohttp by itself) or longer.
IDLE_SECONDS = 4.0
SIGNED_URL_MAX_CHARS = 8_190  # a signed one carries more: about 2,500 with a security token of OSS
_HEADERS = {"User-Agent": "dashgate", "Accept-Encoding": "identity"}
_system_tls = cache(ssl.create_default_context)  # reading the system's authorities takes 20 ms
_target: ContextVar["_Target"] = ContextVar("outside_target")


class OutsideCallInTransaction(RuntimeError):
    """A step called out while its transaction was open, which would hold a connection for as long as the call."""


@dataclass(slots=True)
class _Target:
    """Whom the present request means, as the socket sees only an address; and why it failed, if aiohttp hides it."""

    host: str
    port: int
    reason: Exception | None = None


class _GuardedResolver(AbstractResolver):
    """Refuses a name when any of its addresses is refused, so that a mixed answer helps nobody."""

    def __init__(self, guard: Guard, inner: AbstractResolver) -> None:
        self._guard, self._inner = guard, inner

    async def resolve(self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for answer in found:
            self._guard.check_address(answer["host"], host=host, port=port)
        return found

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class Wires:
    """How connections are made; the defaults are right everywhere but in tests."""

    connections: int = 100
    read_seconds: float = 30.0  # the longest silence
    tls: ssl.SSLContext | None = None  # the system's authorities
    resolver: AbstractResolver | None = None  # the system's

    def open_session(self, guard: Guard) -> aiohttp.ClientSession:
        """Open a session that connects only where `guard` allows; needs a running loop."""

        def guarded_socket(addr_info: aiohttp.AddrInfoType) -> socket:
            """Be the last wall, with the actual address: a DNS answer that has changed meanwhile changes nothing."""
            target = _target.get()  # LookupError: a request that did not come through our door gets no socket
            try:
                guard.check_address(str(addr_info[4][0]), host=target.host, port=target.port)
            except AddressRefused as refusal:
                target.reason = refusal
                raise OSError("refused") from None  # aiohttp handles nothing else here
            return socket(*addr_info[:3])

        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.connections,
                keepalive_timeout=IDLE_SECONDS,
                ssl=self.tls or _system_tls(),
                resolver=_GuardedResolver(guard, self.resolver or aiohttp.ThreadedResolver()),
                socket_factory=guarded_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            trust_env=False,
            auto_decompress=False,
        )
        # By itself it would repeat a GET or PUT whose kept connection broke: past the pace, or with a spent body.
        session._retry_connection = False
        return session


_USUAL = Wires()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a call may be silent, and whether it may last minutes: those have connections of their own."""

    silence_seconds: float = 30.0
    is_long: bool = False


@lru_cache(maxsize=256)
def _encoded(url: str) -> URL:
    """Parse an address once: calls go to few."""
    return URL(url, encoded=True)


@contextlib.contextmanager
def _door(method: str, url: httpx.URL) -> Iterator[_Target]:
    """Let one request out, and say why it failed."""
    if in_transaction():
        raise OutsideCallInTransaction(f"{method} to {url.host} while a transaction is open")
    target = _Target(url.raw_host.decode(), port_of(url))
    mark = _target.set(target)
    try:
        with _honest(method, url):
            yield target
    except httpx.TransportError:
        if target.reason:
            raise target.reason from None
        raise
    finally:
        _target.reset(mark)


@contextlib.contextmanager
def _honest(method: str, url: httpx.URL) -> Iterator[None]:
    """Name faults by what they prove, not by httpx-aiohttp's map: there every lost connection is a ConnectTimeout."""
    try:
        yield
    except (aiohttp.ClientError, httpx.TransportError, OSError) as fault:
        cause = fault.__cause__ if isinstance(fault, httpx.TransportError) and fault.__cause__ else fault
        what = f"{method} {url.scheme}://{url.netloc.decode()}{url.path}: "  # aiohttp's own text shows the query
        match cause:
            case aiohttp.ConnectionTimeoutError():
                raise httpx.ConnectTimeout(what + "no connection in time") from None
            case aiohttp.ClientConnectorError():
                raise httpx.ConnectError(what + str(cause)) from None
            case TimeoutError():
                raise httpx.ReadTimeout(what + "no answer in time") from None
            case aiohttp.ClientResponseError() | aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
                raise httpx.RemoteProtocolError(what + type(cause).__name__) from None
        raise httpx.ReadError(what + type(cause).__name__) from None


@dataclass(frozen=True, slots=True)
class _Body(httpx.AsyncByteStream):
    """An answer's bytes, with faults in our words."""

    chunks: AsyncIterable[bytes]
    method: str
    url: httpx.URL
    content: aiohttp.StreamReader | None = None  # what has arrived before a break: aiohttp raises, and keeps it

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _honest(self.method, self.url):
            try:
                async for chunk in self.chunks:
                    yield chunk
            except (aiohttp.ClientError, OSError):
                if self.content is not None:
                    yield self.content._read_nowait(-1)
                raise

    async def aclose(self) -> None:
        if isinstance(self.chunks, httpx.AsyncByteStream):
            await self.chunks.aclose()


class _Transport(AiohttpTransport):
    """httpx's seam: every request of every client passes here."""

    def __init__(self, guard: Guard, wires: Wires) -> None:
        super().__init__(verify=wires.tls or _system_tls(), client=lambda: wires.open_session(guard))
        self._guard = guard

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = self._guard.check_url(request.url, max_chars=SIGNED_URL_MAX_CHARS)
        with _door(request.method, url):
            response = await super().handle_async_request(request)
        response.headers.pop("set-cookie", None)  # httpx would send one caller's cookies with everybody's next call
        if isinstance(response.stream, httpx.AsyncByteStream):
            response.stream = _Body(response.stream, request.method, url)
        return response


def open_client(guard: Guard, wires: Wires = _USUAL) -> httpx.AsyncClient:
    """Make an httpx client that reaches only what `guard` allows: no redirects, proxies or cookies, TLS verified.

    Bound a whole call with `asyncio.timeout`; read bytes that are passed on with `aiter_raw`, as httpx decodes others.
    """
    client = httpx.AsyncClient(
        transport=_Transport(guard, wires),
        timeout=httpx.Timeout(wires.read_seconds, connect=CONNECT_SECONDS, pool=POOL_SECONDS),
        headers=_HEADERS,
        follow_redirects=False,
        trust_env=False,
    )
    client._cookies = _NoCookies()
    return client


class _NoCookies(httpx.Cookies):
    """Keeps none: httpx would send one caller's cookies with everybody's next call, and takes its time to look."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Take nothing from an answer."""


class Outside:
    """Both ways out: `client` (httpx) for calls, `exchange` for signed URLs. Open it with `async with`.

    `long_client` is as `client`, with connections of its own for calls that last minutes.
    """

    def __init__(self, allow_list: AllowList | None = None, wires: Wires = _USUAL) -> None:
        self.guard = Guard(allow_list or AllowList())
        self._wires = wires

    async def __aenter__(self) -> "Outside":
        self.client = open_client(self.guard, self._wires)
        self.long_client = open_client(self.guard, replace(self._wires, connections=LONG_CONNECTIONS))
        self._session = self._wires.open_session(self.guard)
        self._long_session = replace(self._wires, connections=LONG_CONNECTIONS).open_session(self.guard)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self._long_session.close()
        await self.long_client.aclose()
        await self.client.aclose()

    def allow(self, host: str, port: int, scheme: Scheme | None = None) -> None:
        """Allow a host an operator named: an account's base URL, a file host, a storage endpoint."""
        self.guard.allow_list.add(host, port, scheme)

    @contextlib.asynccontextmanager
    async def call(
        self,
        method: Literal["GET", "POST"],
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        limits: Limits,
    ) -> AsyncIterator[httpx.Response]:
        """Make one call to an address without a query of its own; read the answer with `aiter_raw`.

        As `client`, at half its cost: it is for the calls that make up nearly all traffic. The caller bounds it as a
        whole; `limits` says how long a silence may last, and whether it is a call of minutes.

        Raises: UrlRefused, AddressRefused, OutsideCallInTransaction, httpx.TransportError.
        """
        checked = self.guard.check_url(url, max_chars=SIGNED_URL_MAX_CHARS)
        timeout = aiohttp.ClientTimeout(None, POOL_SECONDS, limits.silence_seconds, CONNECT_SECONDS)
        session = self._long_session if limits.is_long else self._session
        with _door(method, checked):
            response = await session.request(
                method, _encoded(url), headers=headers, data=body, allow_redirects=False, timeout=timeout
            )
        async with response:
            stream = _Body(response.content.iter_any(), method, checked, response.content)
            yield httpx.Response(response.status, headers=response.raw_headers, stream=stream)

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: Literal["GET", "HEAD", "PUT", "DELETE"],
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterable[bytes] | None = None,
        total_seconds: float = 60.0,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request to a signed URL, byte for byte as it was signed; read the answer with `aiter_raw`.

        A `body` needs its Content-Length in `headers`, as stores take no chunked ones; what it raises is raised here.
        A redirect is an answer like any other. `total_seconds` lasts until the answer is read.

        Raises: UrlRefused, AddressRefused, OutsideCallInTransaction, httpx.TransportError.
        """
        checked = self.guard.check_url(url, max_chars=SIGNED_URL_MAX_CHARS)
        timeout = aiohttp.ClientTimeout(total_seconds, POOL_SECONDS, self._wires.read_seconds, CONNECT_SECONDS)
        with _door(method, checked) as target:
            response = await self._session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=None if body is None else _remembering(body, target),
                allow_redirects=False,
                timeout=timeout,
            )
        async with response:
            stream = _Body(response.content.iter_any(), method, checked)
            yield httpx.Response(response.status, headers=response.raw_headers, stream=stream)


async def _remembering(body: AsyncIterable[bytes], target: _Target) -> AsyncIterator[bytes]:
    """Pass a body on and keep what it raises: aiohttp would show a lost connection instead."""
    try:
        async for chunk in body:
            yield chunk
    except Exception as fault:
        target.reason = fault
        raise
