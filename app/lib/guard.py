"""Which URLs and addresses may be reached: the forms, the address table, what operators allowed beside it.

Pure judgement, no sockets: lib/http.py asks it before every request and again at every connection. It has no off
switch, and must not know whom we call or what for.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import httpx

URL_MAX_CHARS = 2_048  # a URL given by people
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Scheme = Literal["http", "https"]


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
        text = str(url)
        if len(text) > max_chars:
            raise UrlRefused("the URL is too long")
        # A query may be a signature: only what has none is remembered.
        parsed, host, port = _parse(text) if "?" in text else _parse_remembered(text)
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


def _parse(text: str) -> tuple[httpx.URL, str, int]:
    """Parse a URL of the form we call, with its host and port; whether it may be reached is not judged here."""
    form = _URL_FORM.fullmatch(text)
    if form is None:
        raise UrlRefused("the URL is not of a form we call")
    try:
        parsed = httpx.URL(text)
        host, port = parsed.host and parsed.raw_host.decode(), port_of(parsed)  # reading `host` checks xn-- labels
    except (httpx.InvalidURL, UnicodeError):
        raise UrlRefused("the host is not a name") from None
    if host != form["host"].strip("[]").lower() or not (_literal(host) or _NAME.fullmatch(host)) or port > 65_535:
        raise UrlRefused("the host is not a name")
    return parsed, host, port


_parse_remembered = lru_cache(maxsize=256)(_parse)  # creates go to few addresses, and parsing one costs 100 us


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
