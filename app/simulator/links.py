"""Signed links to result files, in the form of OSS signature version 1 (pure).

A link is good for GET only, until it expires, and only byte for byte: see `check`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import datetime
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from app.simulator.wire import UPSTREAM_ZONE

ACCESS_KEY_ID = "LTAI5tDashgateSimulator1"
_SECRET = b"the simulator's signatures protect nothing"
_QUERY = re.compile(rb"Expires=(\d{1,12})&OSSAccessKeyId=\w+&Signature=[^&]+")


class LinkRefusedError(Exception):
    """A link that opens nothing; carries OSS's error code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


def make_link(region: str, task_id: str, *, file: str, made_at: float, expires: int) -> tuple[str, str]:
    """Return path and query of the link to one file of a task; `file` is its number and ending, as in `0.png`.

    Among the names a file could have, the first whose signature contains a slash is taken. Then every link has `%2F`
    and `%3D` in it, and a client that decodes and re-encodes links fails at once, not one time in three.
    """
    day = datetime.fromtimestamp(made_at, UPSTREAM_ZONE).strftime("%Y%m%d")
    folder = hashlib.sha256(task_id.encode()).hexdigest()[:8]
    index, _, ending = file.partition(".")
    salt = 0
    while True:
        path = f"/files/{region}/1d/ab/{day}/{folder}/{uuid5(NAMESPACE_URL, f'{task_id}/{index}/{salt}')}.{ending}"
        query = sign(path, expires)
        if "%2F" in query:
            return path, query
        salt += 1


def sign(path: str, expires: int, *, method: str = "GET") -> str:
    """Return the query string that opens `path` for `method` until `expires` (epoch seconds)."""
    text = f"{method}\n\n\n{expires}\n{path}"
    signature = base64.b64encode(hmac.digest(_SECRET, text.encode(), "sha1")).decode()
    return f"Expires={expires}&OSSAccessKeyId={ACCESS_KEY_ID}&Signature={quote(signature, safe='')}"


def check(path: str, raw_query: bytes, *, method: str, now: float) -> None:
    """Accept a link or raise.

    The raw bytes of the query are compared: `%2F` sent back as `/` is another link. The real service is more lenient
    in places, but nobody knows where, so a client must not depend on it.

    Raises: `LinkRefusedError` (HTTP 403).
    """
    found = _QUERY.fullmatch(raw_query)
    expires = int(found[1]) if found else 0
    if found is None or not hmac.compare_digest(raw_query, sign(path, expires, method=method).encode()):
        raise LinkRefusedError(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method.",
        )
    if now >= expires:
        raise LinkRefusedError("AccessDenied", "Request has expired.")
