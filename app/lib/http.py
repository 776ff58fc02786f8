"""The one door for all outgoing HTTP; HTTP clients are made only here.

Owns which URLs and addresses may be reached, the clients, and the words for what went wrong on the wire. Two ways
lead through the door: httpx for calls, and `Outside.exchange` for signed URLs, whose query httpx's transport rewrites.
Must not know whom we call or what for.
"""

import contextlib
import ipaddress
import re
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from socket import AF_UNSPEC, AddressFamily, socket
from typing import Literal

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from app.lib.db import in_transaction

CONNECT_SECONDS = 5.0
POOL_SECONDS = 10.0  # aiohttp counts waiting for a free connection, DNS and connecting together under this one
URL_MAX_CHARS = 2_048  # a URL given by people
SIGNED_URL_MAX_CHARS = 8_190  # a signed one carries more: about 2,500 with a security token of OSS
_HEADERS = {"User-Agent": "dashgate", "Accept-Encoding": "identity"}
_system_tls = cache(ssl.create_default_context)  # reading the system's authorities takes 20 ms
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Scheme = Literal["http", "https"]
_target: ContextVar["_Target"] = ContextVar("outside_target")


class Refused(Exception):
    """Our own policy said no and nothing was sent; no text here shows a query, which may hold a signature.

    Refused ─────────────── UrlRefused, AddressRefused
    RuntimeError ────────── OutsideCallInTransaction
    httpx.TransportError ┬─ ConnectError, ConnectTimeout: no byte of the request was sent
      (on both ways)     └─ ReadTimeout, ReadError, RemoteProtocolError: what the other side did is unknown
    """


class UrlRefused(Refused):
    """The URL is not of a form we call."""


class AddressRefused(Refused):
    """The host is at an address we do not connect to."""


class OutsideCallInTransaction(RuntimeError):
    """A step called out while its transaction was open, which would hold a connection for as long as the call."""


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, text.split()))


# Our own table: `ipaddress` calls 100.100.100.200 (Alibaba's metadata) not private, NAT64, 6to4 and fec0::/10 global.
# The last of the v4 row are Azure's host services, on an address that looks public. In v6 only 2000::/3 is handed out;
# of that Teredo, documentation and 6to4 are refused whatever they wrap: no host we call answers there.
_NOT_PUBLIC = _networks(
    """0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 168.63.129.16/32
    2001::/23 2001:db8::/32 2002::/16 3fff::/20"""
)
# Where an operator's own services live; 100.64/10 is here because Alibaba's internal OSS endpoints are there.
_INSIDE = _networks("127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 ::1/128 fc00::/7")
_METADATA = _networks("100.100.100.200/32 fd00:ec2::254/128 fd20:ce::254/128")
_PUBLIC_V6, _NAT64 = _networks("2000::/3 64:ff9b::/96")


def is_public(address: str) -> bool:
    """Tell whether an address is plain global unicast, also when it is wrapped as v4-mapped or NAT64.

    >>> [is_public(a) for a in ("47.95.1.1", "64:ff9b::2f5f:101", "100.100.100.200", "64:ff9b::a9fe:a9fe")]
    [True, True, False, False]
    """
    ip = _unwrapped(address)
    return (ip.version == 4 or ip in _PUBLIC_V6) and not any(ip in network for network in _NOT_PUBLIC)


def is_inside(address: str) -> bool:
    """Tell whether an operator may name a service at this address: loopback or private, but never metadata.

    >>> [is_inside(a) for a in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.100.100.200")]
    [True, True, False, False]
    """
    ip = _unwrapped(address)
    return any(ip in network for network in _INSIDE) and not any(ip in network for network in _METADATA)


def _unwrapped(address: str) -> Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else ip.ipv4_mapped or ip


# Stricter than any parser, so that all parsers behind it agree: no userinfo, fragment, backslash, blank, zone or NUL.
_URL_FORM = re.compile(
    r"https?://(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?"
    r"(?:[/?](?:[\w\-.~:/?@!$&'()*+,;=|\[\]]|%(?!00)[0-9a-f]{2})*)?",
    re.ASCII | re.IGNORECASE,
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# A name does not end in a number: the resolver takes 2130706433, 0x7f.1 and 127.1 for loopback.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)$){_LABEL}")


class AllowList:
    """Hosts an operator named; they may be inside and keep their scheme. Grows while running."""

    def __init__(self) -> None:
        self._schemes: dict[tuple[str, int], set[str]] = {}

    def add(self, host: str, port: int, scheme: Scheme | None = None) -> None:
        """Allow `host`:`port`, by `scheme` or by both."""
        self._schemes.setdefault((_plain(host), port), set()).update((scheme,) if scheme else ("http", "https"))

    def schemes(self, host: str, port: int) -> set[str]:
        """Return the schemes this host and port may be spoken to by; none when nobody named it."""
        return self._schemes.get((_plain(host), port), set())


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides what may be reached; has no off switch.

    One per purpose: what an operator opened for storage is not open to a team's webhook, so their allow-lists differ.
    """

    allow_list: AllowList

    def check_url(self, url: str | httpx.URL, *, max_chars: int = URL_MAX_CHARS) -> httpx.URL:
        """Parse a URL once, for the check and for the request: https on 443 to a public name, or on the allow-list.

        Raises: UrlRefused.
        """
        form = _URL_FORM.fullmatch(text := str(url))
        if form is None or len(text) > max_chars:
            raise UrlRefused("the URL is too long or not of a form we call")
        try:
            parsed = httpx.URL(text)
            host, port = parsed.host and parsed.raw_host.decode(), port_of(parsed)  # reading `host` checks xn-- labels
        except (httpx.InvalidURL, UnicodeError):
            raise UrlRefused("the host is not a name") from None
        if host != form["host"].strip("[]").lower() or not (_literal(host) or _NAME.fullmatch(host)) or port > 65_535:
            raise UrlRefused("the host is not a name")
        if parsed.scheme in self.allow_list.schemes(host, port):
            return parsed
        # A name without a dot is somebody's own machine; the others are judged when they are looked up.
        if parsed.scheme != "https" or port != 443 or not (is_public(host) if _literal(host) else "." in host):
            raise UrlRefused(f"{parsed.scheme} to {host} at port {port} is not allowed")
        return parsed

    def check_address(self, address: str, *, host: str, port: int) -> None:
        """Refuse to connect to `address` for `host`:`port` unless it is public, or inside and on the allow-list.

        Raises: AddressRefused; the text does not show the address, which is not for a team to learn.
        """
        if not is_public(address) and not (self.allow_list.schemes(host, port) and is_inside(address)):
            raise AddressRefused(f"{host}:{port} is at an address we do not connect to")


def port_of(url: httpx.URL) -> int:
    """Return the port a URL means, also when it does not say it."""
    return url.port or {"http": 80, "https": 443}[url.scheme]


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(host: str) -> str:
    """Bring a host to the one form it is compared in: [0:0::1] is ::1."""
    host = host.strip("[]").lower()
    return str(_literal(host) or host)


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

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self.connections,
                ssl=self.tls or _system_tls(),
                resolver=_GuardedResolver(guard, self.resolver or aiohttp.ThreadedResolver()),
                socket_factory=guarded_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            trust_env=False,
            auto_decompress=False,
        )


_USUAL = Wires()


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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _honest(self.method, self.url):
            async for chunk in self.chunks:
                yield chunk

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
    return httpx.AsyncClient(
        transport=_Transport(guard, wires),
        timeout=httpx.Timeout(wires.read_seconds, connect=CONNECT_SECONDS, pool=POOL_SECONDS),
        headers=_HEADERS,
        follow_redirects=False,
        trust_env=False,
    )


class Outside:
    """Both ways out: `client` (httpx) for calls, `exchange` for signed URLs. Open it with `async with`."""

    def __init__(self, allow_list: AllowList | None = None, wires: Wires = _USUAL) -> None:
        self.guard = Guard(allow_list or AllowList())
        self._wires = wires

    async def __aenter__(self) -> "Outside":
        self.client = open_client(self.guard, self._wires)
        self._session = self._wires.open_session(self.guard)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        await self.client.aclose()

    def allow(self, host: str, port: int, scheme: Scheme | None = None) -> None:
        """Allow a host an operator named: an account's base URL, a file host, a storage endpoint."""
        self.guard.allow_list.add(host, port, scheme)

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
