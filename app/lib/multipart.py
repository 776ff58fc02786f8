"""Forms with a file in them (multipart/form-data), as streams: read as they arrive, written as they are sent.

Owns the caps, counted while reading, and what is refused; the grammar is the library's. A file is never held: its
bytes are handed on as they come, and its last ones only when the form was seen to end as it must, so that what was
passed on whole was a whole form. Knows no field by name.
"""

import re
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple, Self

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")  # RFC 2046 5.1.1
_KIND = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")
_LINE_END = b"\r\n"


class FormRefused(Exception):
    """A form was not taken; the texts are fixed and echo nothing.

    FormRefused ── NotMultipart, TooLarge, Malformed
    """


class NotMultipart(FormRefused):
    """The content type is not multipart/form-data with a boundary."""


class TooLarge(FormRefused):
    """A cap is exceeded."""


class Malformed(FormRefused):
    """The form breaks its grammar, has a part that no form of ours has, or its end is missing."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How much of a form is taken."""

    file_bytes: int
    files: int = 1
    fields: int = 64
    field_bytes: int = 8_192


class Field(NamedTuple):
    """A small value by name; names may come again."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file on its way, to be read once. `size_bytes` is what it should have, if that is known."""

    name: str
    file_name: str
    content_type: str
    size_bytes: int | None
    chunks: AsyncIterable[bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A form to be sent. `length_bytes` is None when nobody knows the file's size."""

    content_type: str
    length_bytes: int | None
    body: AsyncIterator[bytes]


class Form:
    """A form as it arrives: iterate over its parts in order.

    A file must be read before the next part is asked for; what is left of it then is read past. `length_bytes` is the
    length that the body states: it tells a file's size beforehand, if the file comes last.

    Raises, at every step:
        NotMultipart, TooLarge, Malformed: nothing more is read; what the body itself raises passes through.
    """

    def __init__(
        self, content_type: str, body: AsyncIterable[bytes], *, caps: Caps, length_bytes: int | None = None
    ) -> None:
        boundary = boundary_of(content_type)
        self._caps = caps
        self._length_bytes = length_bytes
        self._begin = f"--{boundary}".encode()
        self._end = f"\r\n--{boundary}--".encode()
        self._body = _up_to_the_end(body, self._end)
        self._parser = PushMultipartParser(
            boundary, max_segment_count=caps.fields + caps.files, header_charset="utf-8", strict=True
        )
        self._fed_bytes = 0
        self._events: deque[Any] = deque()  # a part's beginning, then its pieces, then None
        self._is_over = False
        self._file: _Chunks | None = None
        self._fields = self._files = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Field | File:
        """Return the next part."""
        if self._file is not None:
            async for _ in self._file:
                pass
            self._file = None
        segment = await self._next()
        if self._is_over:
            raise StopAsyncIteration
        _check(segment)
        return await self._field(segment) if segment.filename is None else self._begin_file(segment)

    async def _field(self, segment: MultipartSegment) -> Field:
        self._fields += 1
        if self._fields > self._caps.fields:
            raise TooLarge("too many fields")
        value = bytearray()
        while (chunk := await self._next()) is not None:
            value += chunk
            if len(value) > self._caps.field_bytes:
                raise TooLarge("a field is too long")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise Malformed("a field is not UTF-8") from None
        if "\0" in text:
            raise Malformed("a field has a NUL")
        return Field(segment.name, text)

    def _begin_file(self, segment: MultipartSegment) -> File:
        self._files += 1
        if self._files > self._caps.files:
            raise Malformed("too many files")
        size = self._size_ahead()
        self._file = _Chunks(self._next, self._caps.file_bytes)
        kind = segment.content_type or ""
        return File(
            name=segment.name,
            file_name=base_name(segment.filename),
            content_type=kind if _KIND.fullmatch(kind) else "application/octet-stream",
            size_bytes=size,
            chunks=self._file,
        )

    def _size_ahead(self) -> int | None:
        """Tell the size of the file that begins, were it the last part and the form ended as all clients end one."""
        here = sum(len(piece) for piece in takewhile(lambda event: event is not None, self._events))
        if None in self._events:
            return here
        if self._length_bytes is None:
            return None
        begins_at = self._fed_bytes - here - len(self._parser._buffer)
        return max(0, self._length_bytes - begins_at - len(self._end) - len(_LINE_END))

    async def _next(self) -> Any:
        """Return the next event: a part's beginning, a piece of it, or None for its end; None at the end of all."""
        while not self._events:
            await self._feed()
            if self._is_over:
                return None
        return self._events.popleft()

    async def _feed(self) -> None:
        chunk = await anext(self._body, b"")
        if not chunk.startswith(self._begin[self._fed_bytes :][: len(chunk)]):
            raise Malformed("something precedes the first boundary")
        self._fed_bytes += len(chunk)
        try:
            self._events.extend(self._parser.parse(chunk))
        except ParserLimitReached:
            raise TooLarge("a header is too long, or there are too many parts") from None
        except MultipartError:
            raise Malformed("the body is not a well-formed form") from None
        self._is_over = not chunk


class _Chunks:
    """The bytes of a file, as its form arrives."""

    def __init__(self, read: Callable[[], Awaitable[Any]], most_bytes: int) -> None:
        self._read = read
        self._left_bytes = most_bytes
        self._is_read = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece: bytes | None = None if self._is_read else await self._read()
        if piece is None:
            self._is_read = True
            raise StopAsyncIteration
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise TooLarge("a file is too large")
        return piece


async def until_file(form: Form) -> tuple[list[Field], File]:
    """Read a form up to its first file; return the fields before it, and the file.

    Raises:
        NotMultipart, TooLarge, Malformed: as the form; also where there is no file.
    """
    fields: list[Field] = []
    async for part in form:
        if isinstance(part, File):
            return fields, part
        fields.append(part)
    raise Malformed("there is no file")


def encode_form(fields: Sequence[tuple[str, str]], file: File) -> Encoded:
    """Write a form as a stream: the fields in order, then the file, which is sent as it is read.

    A file that turns out longer or shorter than `size_bytes` ends the stream with `Malformed`, never with its last
    boundary, so that nobody takes the form for whole.
    """
    boundary = secrets.token_hex(16)
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted(name)}"\r\n\r\n{value}\r\n'
        for name, value in fields
    )
    head += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="{quoted(file.name)}"; '
        f'filename="{quoted(file.file_name)}"\r\nContent-Type: {_CONTROLS.sub("", file.content_type)}\r\n\r\n'
    )
    first, last = head.encode(), f"\r\n--{boundary}--\r\n".encode()
    length = None if file.size_bytes is None else len(first) + file.size_bytes + len(last)
    return Encoded(f"multipart/form-data; boundary={boundary}", length, _written(first, file, last=last))


def boundary_of(content_type: str) -> str:
    """Return the boundary that a content type names.

    Raises:
        NotMultipart: it is of another type, or names none that the standard allows.

    >>> boundary_of('multipart/form-data; boundary="a b"')
    'a b'
    """
    kind, options = parse_options_header(content_type)
    boundary = str(options.get("boundary", ""))
    if kind != "multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
        raise NotMultipart("the content type must be multipart/form-data with a boundary")
    return boundary


def base_name(file_name: str) -> str:
    r"""Return a file's name without the folders that a client put in front of it.

    >>> [base_name(name) for name in ("cup.png", "../../etc/passwd", "C:\\pictures\\cup.png", "a/..", "")]
    ['cup.png', 'passwd', 'cup.png', 'file', 'file']
    """
    base = re.split(r"[/\\]", file_name)[-1]
    return "file" if base in ("", ".", "..") else base


def quoted(name: str) -> str:
    r"""Write a name as browsers do between the quotes of a part's header.

    >>> quoted('a "cup"\r\n.png')
    'a %22cup%22%0D%0A.png'
    """
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


async def _written(first: bytes, file: File, *, last: bytes) -> AsyncIterator[bytes]:
    yield first
    sent_bytes = 0
    async for chunk in file.chunks:
        sent_bytes += len(chunk)
        if file.size_bytes is not None and sent_bytes > file.size_bytes:
            break
        yield chunk
    if file.size_bytes is not None and sent_bytes != file.size_bytes:
        raise Malformed("the file has not the size it should have")
    yield last


async def _up_to_the_end(body: AsyncIterable[bytes], end: bytes) -> AsyncIterator[bytes]:
    """Pass a body on up to its last boundary; keep back the piece with the boundary until nothing came after it."""
    before = b""
    chunks = aiter(body)
    async for chunk in chunks:
        seen = before + chunk
        found_at = seen.find(end)
        if found_at >= 0:
            ends_at = found_at + len(end)
            await _check_nothing_follows(seen[ends_at:], chunks)
            yield seen[len(before) : ends_at]
            return
        if chunk:
            yield chunk
        before = seen[1 - len(end) :]


async def _check_nothing_follows(rest: bytes, chunks: AsyncIterator[bytes]) -> None:
    while len(rest) <= len(_LINE_END):
        try:
            rest += await anext(chunks)
        except StopAsyncIteration:
            break
    if rest not in (b"", _LINE_END):
        raise Malformed("something follows the last boundary")


def _check(segment: MultipartSegment) -> None:
    """Refuse a part that no form of ours has."""
    names = [name for name, _ in segment.headerlist]
    if len(set(names)) < len(names):
        raise Malformed("a part has the same header twice")
    if any(_CONTROLS.search(value) for _, value in segment.headerlist):
        raise Malformed("a part's header has a control character")
    if _CONTROLS.search(segment.name + (segment.filename or "")):
        raise Malformed("a part's name has a control character")
    if (segment.content_type or "").startswith("multipart/"):
        raise Malformed("a part is a form itself")
    if segment.header("Content-Transfer-Encoding", "").strip().lower() not in _PLAIN_ENCODINGS:
        raise Malformed("a part is encoded")
    if segment.filename is None and "filename*" in segment.header("Content-Disposition", ""):
        raise Malformed("a file's name is written in a way that forms do not know")
