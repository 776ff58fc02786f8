"""What a place for files is: its description, its errors, and the promise every kind of store keeps.

An object under our key is exactly the bytes we were given, and never replaces other bytes. Must not know how a bucket
or a folder is spoken to, whose it is, or what a key means.
"""

import abc
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal

KEY_MAX_BYTES = 1_024


class StoreTrouble(Exception):
    """The object was not stored or not read. The text is for the operator and shows no signature.

    StoreTrouble
    ├── ObjectConflict   the key holds other bytes; they stay
    ├── ObjectMissing    nothing is there
    ├── StoreRefused     a person must act: wrong bucket, credentials, permission, address
    └── StoreFault       try again; whether an object was written is unknown, and the next attempt finds out
    """


class ObjectConflict(StoreTrouble):
    """The key already holds other bytes, which were left alone."""


class ObjectMissing(StoreTrouble):
    """The key holds nothing."""


class StoreRefused(StoreTrouble):
    """The store will go on saying no until a person changes something."""


class StoreFault(StoreTrouble):
    """The store could not do it this time."""


@dataclass(frozen=True, slots=True)
class PlaceSpec:
    """A location: a folder `root`, or a bucket at an endpoint (None is AWS itself); `prefix` goes before every key.

    `addressing` is how the bucket is named: "path" (endpoint/bucket), "virtual" (bucket.endpoint) or "domain" (the
    endpoint is the bucket, as with a CNAME). "auto" is virtual for AWS and Alibaba OSS, which refuses path, else path.
    """

    kind: Literal["file", "s3"]
    endpoint: str | None = None
    region: str = "us-east-1"
    bucket: str = ""
    prefix: str = ""
    root: str = ""
    addressing: Literal["auto", "path", "virtual", "domain"] = "auto"


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """A key pair for a bucket; the secret half is never shown."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a store says of an object; a folder knows only the size."""

    size_bytes: int
    etag: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """An open object, or the part of it that was asked for."""

    size_bytes: int
    chunks: AsyncIterator[bytes]


class Store(abc.ABC):
    """One place for files. Every method may raise StoreTrouble, and ValueError for a key that is none."""

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, size_bytes: int, content_type: str) -> Receipt:
        """Store exactly these bytes, once. What `chunks` raises is raised here.

        1. Look: an attempt whose answer was lost may have put the object; then its bytes are compared with ours.
        2. Put, only if nothing is there. A crash or a broken source leaves no object.
        3. Look again: length and, where the ETag is one, MD5 must be ours.

        Raises: ObjectConflict when the key holds other bytes, which stay.
        """
        tally = Tally(chunks, size_bytes=size_bytes)
        was_there = await self._is_taken(key) or not await self._put_new(key, tally, content_type=content_type)
        found = await self.head(key)
        if found is None:
            raise StoreFault("the store took the object and does not have it")
        if found.size_bytes != size_bytes or not await self._holds(key, found, tally=tally, was_there=was_there):
            raise ObjectConflict(f"{key} holds other bytes")
        return found

    async def _holds(self, key: str, found: Receipt, *, tally: "Tally", was_there: bool) -> bool:
        md5 = await tally.digest()
        if found.etag == md5:
            return True
        if not was_there and not re.fullmatch("[0-9a-f]{32}", found.etag or ""):
            return True
        # The ETag is no MD5 of the whole where a KMS key encrypts it or parts were copied: then only the bytes tell.
        async with self.open_read(key) as reading:
            return await Tally(reading.chunks, size_bytes=found.size_bytes).digest() == md5

    async def _is_taken(self, key: str) -> bool:
        return await self.head(key) is not None

    @abc.abstractmethod
    async def _put_new(self, key: str, tally: "Tally", *, content_type: str) -> bool:
        """Put the bytes; False when something was there, which is left alone."""

    @abc.abstractmethod
    async def head(self, key: str) -> Receipt | None:
        """Return what is there, or None."""

    @abc.abstractmethod
    def open_read(self, key: str, byte_range: tuple[int, int] | None = None) -> AbstractAsyncContextManager[Reading]:
        """Open an object, or its bytes from the first to the last of `byte_range`. Raises: ObjectMissing."""

    @abc.abstractmethod
    async def delete(self, key: str) -> None:
        """Remove an object; nothing there is a success."""

    @abc.abstractmethod
    def presign_get(self, key: str, *, seconds: int) -> str | None:
        """Return a link that reads the object for `seconds`, at most seven days; None where there are no links."""


def checked_key(prefix: str, key: str) -> str:
    """Join prefix and key, and refuse what could leave the place.

    >>> checked_key("team-a/", "2026/01/x.png")
    'team-a/2026/01/x.png'

    Raises: ValueError.
    """
    full = f"{prefix.strip('/')}/{key}" if prefix.strip("/") else key
    if any(part in ("", ".", "..") for part in full.split("/")) or re.search(r"[\x00-\x1f\x7f\\]", full):
        raise ValueError("not an object key")
    if len(full.encode()) > KEY_MAX_BYTES:
        raise ValueError("the object key is too long")
    return full


class Tally:
    """Hashes bytes on their way, and raises when they are not as many as were announced."""

    def __init__(self, chunks: AsyncIterator[bytes], *, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._chunks, self._seen_bytes = chunks, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self._seen_bytes += len(chunk)
            if self._seen_bytes > self.size_bytes:
                break
            self._md5.update(chunk)
            yield chunk
        if self._seen_bytes != self.size_bytes:
            raise StoreFault(f"{self._seen_bytes} bytes came instead of {self.size_bytes}")

    async def digest(self) -> str:
        """Read what is left, and return the MD5 of everything in hex."""
        async for _ in self:
            pass
        return self._md5.hexdigest()
