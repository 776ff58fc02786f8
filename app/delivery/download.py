"""Fetching one finished file from the upstream's storage, while its link lives: an image, mostly.

Owns which hosts a file may come from, which kinds we store, and every bound on reading it. Must not know where the
file goes, nor what happens to its task.
"""

import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass

import httpx

from app.lib.clock import Clock
from app.lib.guard import AddressRefused, UrlRefused, port_of
from app.lib.http import Outside
from app.upstream.results import link_extension

# Result storage changes without notice (dashscope-api.md 8.1), so a pattern and the account's own hosts, no fixed list.
RESULT_HOST = re.compile(r"dashscope-[a-z0-9-]+\.oss-[a-z0-9-]+\.aliyuncs\.com")
IMAGE_MAX_BYTES = 50 * 1024 * 1024
FILM_MAX_BYTES = 2 * 1024 * 1024 * 1024
TOTAL_SECONDS = 15 * 60.0
FLOOR_BYTES_PER_SECOND = 10 * 1024
FLOOR_SECONDS = 60.0
_HEAD_BYTES = 16


class NoImage(Exception):
    """The image was not fetched. The text is for operators and shows no query.

    NoImage
    ├── HostNotAllowed   hold it: the list can be extended while the link lives
    ├── LinkExpired      the storage says no: try again until the link's own end
    ├── SourceGone       final
    ├── SourceRefused    final: what came is not an image we store; `why` is one word for the row
    └── SourceFault      try again
    """


class HostNotAllowed(NoImage):
    """The link points to a host that is not allowed, or that is at an address we do not connect to."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} is not an allowed file host")
        self.host = host


class LinkExpired(NoImage):
    """The storage refused the link (403)."""


class SourceGone(NoImage):
    """The storage no longer has the image (404)."""


class SourceRefused(NoImage):
    """What came is not an image we store."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


class SourceFault(NoImage):
    """The image could not be read to its end this time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what may be read from where; `file_hosts` are the account's own, as HOST or HOST:PORT."""

    file_hosts: Collection[str] = ()
    max_bytes: int = IMAGE_MAX_BYTES
    max_film_bytes: int = FILM_MAX_BYTES
    total_seconds: float = TOTAL_SECONDS
    floor_bytes_per_second: int = FLOOR_BYTES_PER_SECOND
    floor_seconds: float = FLOOR_SECONDS


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file, told by its first bytes and never by what the server calls it."""

    content_type: str
    extension: str


FILM = Kind("video/mp4", "mp4")
_BLANK = b"\xef\xbb\xbf \t\r\n"
_BY_NAME: dict[str, tuple[tuple[bytes, ...], Kind]] = {
    "svg": ((b"<svg", b"<?xml"), Kind("image/svg+xml", "svg")),
    "json": ((b"{", b"["), Kind("application/json", "json")),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an image once all of it has passed; `sha256` and `md5` in hex."""

    content_type: str
    extension: str
    size_bytes: int
    sha256: str
    md5: str


class Source:
    """One image on its way: what it is and how long, then its bytes, then its facts."""

    def __init__(self, kind: Kind, size_bytes: int, *, chunks: AsyncIterator[bytes]) -> None:
        self.kind, self.size_bytes = kind, size_bytes
        self._chunks = chunks
        self._passed_bytes = 0
        self._sha256, self._md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the image, once.

        Raises: SourceFault when it breaks off or gets too slow.
        """
        async for chunk in self._chunks:
            self._passed_bytes += len(chunk)
            self._sha256.update(chunk)
            self._md5.update(chunk)
            yield chunk
        if self._passed_bytes != self.size_bytes:
            raise SourceFault(f"{self._passed_bytes} bytes came instead of {self.size_bytes}")

    def facts(self) -> Facts:
        """Return what was learned; call it after the last chunk."""
        if self._passed_bytes != self.size_bytes:
            raise RuntimeError("the image has not been read to its end")
        return Facts(
            self.kind.content_type,
            self.kind.extension,
            self.size_bytes,
            self._sha256.hexdigest(),
            self._md5.hexdigest(),
        )


@contextlib.asynccontextmanager
async def open_source(
    outside: Outside, url: str, *, limits: Limits | None = None, clock: Clock | None = None
) -> AsyncIterator[Source]:
    """Open the image behind a result link; its bytes are read by the caller, inside the `with`.

    The link is used byte for byte, by GET alone: its signature covers both.

    Raises: NoImage, in one of its five kinds.
    """
    limits, clock = limits or Limits(), clock or Clock()
    link = allowed_link(outside, url, file_hosts=limits.file_hosts)
    async with contextlib.AsyncExitStack() as stack:
        # The `yield` stays outside: what the caller's own calls raise in there is not the source's fault.
        with _our_words(link):
            answer = await stack.enter_async_context(outside.exchange("GET", link, total_seconds=limits.total_seconds))
        promised = link_extension(link)
        size_bytes = _checked_size(answer, limits.max_film_bytes if promised == FILM.extension else limits.max_bytes)
        chunks = _paced(_in_our_words(answer.aiter_raw(), link), limits, clock=clock)
        head, kind = await _recognised(chunks, promised)
        yield Source(kind, size_bytes, chunks=_with_head(head, chunks))


def allowed_link(outside: Outside, url: str, *, file_hosts: Collection[str]) -> str:
    """Return the link to fetch: as it is for the account's own hosts, over https for the upstream's.

    The signature does not cover the scheme, so the upgrade keeps the link valid (dashscope-api.md 8.2).
    """
    for link in (url, re.sub("^http:", "https:", url)):
        try:
            parsed = httpx.URL(link)
            host, port = parsed.raw_host.decode(), port_of(parsed)
        except (httpx.InvalidURL, UnicodeError, KeyError):
            raise SourceRefused("url", "the link is not a URL we can read") from None
        if (host, port) in map(host_and_port, file_hosts):
            # The operator named it; a process that has not met this account yet learns it here.
            outside.allow(host, port)
            return link
        if parsed.scheme == "https" and RESULT_HOST.fullmatch(host):
            return link
    raise HostNotAllowed(host)


def host_and_port(file_host: str) -> tuple[str, int]:
    """Split what an operator wrote; without a port it is that of https.

    >>> host_and_port("files.example"), host_and_port("Localhost:8080"), host_and_port("[::1]:8080")
    (('files.example', 443), ('localhost', 8080), ('::1', 8080))
    """
    url = httpx.URL(f"https://{file_host}")
    return url.raw_host.decode(), port_of(url)


@contextlib.contextmanager
def _our_words(link: str) -> Iterator[None]:
    try:
        yield
    except UrlRefused as refusal:
        raise SourceRefused("url", str(refusal)) from None
    except AddressRefused:
        raise HostNotAllowed(httpx.URL(link).host) from None
    except httpx.TransportError as fault:
        raise SourceFault(str(fault)) from None


async def _in_our_words(chunks: AsyncIterator[bytes], link: str) -> AsyncIterator[bytes]:
    with _our_words(link):
        async for chunk in chunks:
            yield chunk


def _checked_size(answer: httpx.Response, max_bytes: int) -> int:
    """Judge an answer by its head alone and return the length it states."""
    status, length = answer.status_code, answer.headers.get("content-length", "")
    if status == 403:
        raise LinkExpired("the storage refused the link")
    if status in (404, 410):
        raise SourceGone("the storage no longer has the image")
    if status in (408, 429) or status >= 500:
        raise SourceFault(f"the storage answered {status}")
    if 300 <= status < 400:
        raise SourceRefused("redirect", f"the storage answered {status}, which is not followed")
    if status != 200:
        raise SourceRefused("status", f"the storage answered {status}")
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        # A few kilobytes of gzip can hold a gigabyte, and the link promises the image itself.
        raise SourceRefused("encoding", "the image came encoded")
    if not length.isascii() or not length.isdigit():
        raise SourceRefused("length", "the answer does not say how long the image is")
    if int(length) > max_bytes:
        raise SourceRefused("too_large", f"{length} bytes are more than {max_bytes}")
    return int(length)


async def _paced(chunks: AsyncIterator[bytes], limits: Limits, *, clock: Clock) -> AsyncIterator[bytes]:
    """Give up on a source that drips; only waiting for it counts, not what the reader does in between."""
    waited_seconds, seen_bytes = 0.0, 0
    while True:
        asked_at = clock.monotonic()
        chunk = await anext(chunks, None)
        waited_seconds += clock.monotonic() - asked_at
        if chunk is None:
            return
        seen_bytes += len(chunk)
        if waited_seconds >= limits.floor_seconds:
            if seen_bytes < limits.floor_bytes_per_second * waited_seconds:
                raise SourceFault(f"only {seen_bytes} bytes in {waited_seconds:.0f} s")
            waited_seconds, seen_bytes = 0.0, 0
        yield chunk


async def _recognised(chunks: AsyncIterator[bytes], promised: str) -> tuple[bytes, Kind]:
    """Read enough to know the kind; return what was read and the kind. `promised` is the ending in the link."""
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD_BYTES:
            break
    if kind := kind_of(head) or _other_kind_of(head, promised):
        return head, kind
    if not head or head.lstrip(_BLANK).startswith((b"<", b"{")):
        # An error page with status 200: the image is probably there and some box on the way is in trouble.
        raise SourceFault("a page came instead of an image")
    raise SourceRefused("kind", "not a PNG, JPEG or WebP, nor what its name promises")


def kind_of(head: bytes) -> Kind | None:
    """Tell the kind of an image by its first 16 bytes; None when it is none that we store.

    >>> kind_of(bytes.fromhex("89504e470d0a1a0a")), kind_of(b"<!DOCTYPE html>")
    (Kind(content_type='image/png', extension='png'), None)
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Kind("image/png", "png")
    if head.startswith(b"\xff\xd8\xff"):
        return Kind("image/jpeg", "jpg")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Kind("image/webp", "webp")
    return None


def _other_kind_of(head: bytes, promised: str) -> Kind | None:
    r"""Tell the kind of a film, a drawing or a text; the last two begin as error pages do, so their name must promise
    them.

    >>> _other_kind_of(b"\x00\x00\x00\x1cftypisom", "mp4").content_type, _other_kind_of(b'{"code":', "png") is None
    ('video/mp4', True)
    """
    if head[4:8] == b"ftyp":
        return FILM
    if promised not in _BY_NAME:
        return None
    begins, kind = _BY_NAME[promised]
    return kind if head.lstrip(_BLANK).startswith(begins) else None


async def _with_head(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for chunk in rest:
        yield chunk
