"""Request bodies: read under a cap, parsed strictly. What passes here is an object that Postgres and JSON can hold."""

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import Request

from app.errors import InvalidParameter, TooLarge, UnsupportedMediaType

LARGE_BYTES = 256 * 1024  # parsed in a thread from here on: base64 images must not stop everybody else
_SUSPICIOUS = re.compile(rb"\\u(0000|[dD][89a-fA-F])")  # an escaped NUL, or half of a surrogate pair
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


async def read_json(request: Request, *, limit_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """Read a JSON object; return its bytes as they came, and what they say.

    Raises:
        UnsupportedMediaType: not application/json, or encoded.
        TooLarge: over the limit, counted while reading.
        InvalidParameter: not one strict JSON object.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType()
    body = await _read(request, limit_bytes)
    parsed = await asyncio.to_thread(parse_object, body) if len(body) > LARGE_BYTES else parse_object(body)
    return body, parsed


async def _read(request: Request, limit_bytes: int) -> bytes:
    stated = request.headers.get("content-length", "0")
    if stated.isascii() and stated.isdigit() and int(stated) > limit_bytes:
        raise TooLarge()
    read = bytearray()
    async for chunk in request.stream():
        read += chunk
        if len(read) > limit_bytes:
            raise TooLarge()
    return bytes(read)


def parse_object(body: bytes) -> dict[str, Any]:
    r"""Parse one strict JSON object.

    >>> parse_object(b'{"model": "wan2.6-image"}')
    {'model': 'wan2.6-image'}
    >>> surrogate = b'{"a":"\\ud800"}'
    >>> for bad in (b"[]", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":"\\u0000"}', surrogate, b'{"a":1e999}', b"\xff"):
    ...     try:
    ...         print(parse_object(bad))
    ...     except InvalidParameter as error:
    ...         print(error)
    The body must be a JSON object.
    The body has the same key twice.
    The body has a number that is not finite.
    The body has a NUL or half of a surrogate pair.
    The body has a NUL or half of a surrogate pair.
    The body has a number that is not finite.
    The body is not valid JSON.
    """
    try:
        text = body.decode("utf-8")
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except InvalidParameter:
        raise
    except (ValueError, RecursionError):
        raise InvalidParameter("The body is not valid JSON.") from None
    if not isinstance(parsed, dict):
        raise InvalidParameter("The body must be a JSON object.")
    if b"\x00" in body or (_SUSPICIOUS.search(body) and _has_unstorable(parsed)):
        raise InvalidParameter("The body has a NUL or half of a surrogate pair.")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidParameter("The body has the same key twice.")
    return fields


def _refuse_constant(_: str) -> float:
    raise InvalidParameter("The body has a number that is not finite.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidParameter("The body has a number that is not finite.")
    return value


def _has_unstorable(value: Any) -> bool:
    """Walk a parsed value for text that UTF-8 or Postgres cannot hold; only called when the bytes look like it.

    Without recursion, because the parser goes deeper than Python's own calls may.
    """
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            if _UNSTORABLE.search(part):
                return True
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part
    return False
