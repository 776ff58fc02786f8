"""Where files are put: an S3 bucket or a folder, behind one `Store`.

Owns the promise that an object under our key is exactly the bytes we were given, and never replaces other bytes.
Must not know whose place it is or what a key means. obstore only signs here; the bytes go through `lib/http.py`.
"""

import abc
import asyncio
import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import httpx
import obstore
from obstore.store import S3Store

from app.lib.http import Outside, Refused, port_of

if TYPE_CHECKING:
    from obstore.store import S3Credential

SIGNED_SECONDS = 15 * 60  # a link for our own use; the store judges it when the request begins
PRESIGN_MAX_SECONDS = 7 * 24 * 3600  # no signature of version 4 lives longer
TRANSFER_SECONDS = 15 * 60.0
KEY_MAX_BYTES = 1_024
_CHUNK_BYTES = 1024 * 1024
_ERROR_BODY_BYTES = 4_096
_ERROR_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_HINTS = {
    "InvalidAccessKeyId": "the access key id is not known there",
    "SignatureDoesNotMatch": "the secret does not belong to the access key id, or the region is wrong",
    "AccessDenied": "the key needs permission to put, get and delete objects under this prefix",
    "NoSuchBucket": "the bucket does not exist at this endpoint",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "SecondLevelDomainForbidden": "the endpoint wants the bucket in its name: addressing virtual",
}

Method = Literal["GET", "HEAD", "PUT", "DELETE"]


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
        tally = _Tally(chunks, size_bytes=size_bytes)
        was_there = await self._is_taken(key) or not await self._put_new(key, tally, content_type)
        found = await self.head(key)
        if found is None:
            raise StoreFault("the store took the object and does not have it")
        if found.size_bytes != size_bytes or not await self._holds(key, found, tally, was_there=was_there):
            raise ObjectConflict(f"{key} holds other bytes")
        return found

    async def _holds(self, key: str, found: Receipt, tally: "_Tally", *, was_there: bool) -> bool:
        md5 = await tally.digest()
        if found.etag == md5:
            return True
        if not was_there and not re.fullmatch("[0-9a-f]{32}", found.etag or ""):
            return True
        # The ETag is no MD5 of the whole where a KMS key encrypts it or parts were copied: then only the bytes tell.
        async with self.open_read(key) as reading:
            return await _Tally(reading.chunks, size_bytes=found.size_bytes).digest() == md5

    async def _is_taken(self, key: str) -> bool:
        return await self.head(key) is not None

    @abc.abstractmethod
    async def _put_new(self, key: str, tally: "_Tally", content_type: str) -> bool:
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


def open_store(spec: PlaceSpec, credentials: S3Credentials | None, *, outside: Outside) -> Store:
    """Make the store for a place; nothing is called yet.

    Raises: ValueError when the place is not fully described.
    """
    if spec.kind == "file":
        return FolderStore(spec)
    if credentials is None or not spec.bucket:
        raise ValueError("an S3 place needs a bucket and credentials")
    return BucketStore(spec, credentials, outside=outside)


async def probe(store: Store) -> None:
    """Prove that a place works by putting, reading and removing a small object; a listing would prove nothing.

    Raises: StoreTrouble, with the step that failed and what to do.
    """
    key, body, found = f"dashgate-probe/{secrets.token_hex(8)}", secrets.token_bytes(64), b""
    step = "PUT"
    try:
        await store.put(key, _once(body), size_bytes=len(body), content_type="application/octet-stream")
        step = "GET"
        async with store.open_read(key) as reading:
            async for chunk in reading.chunks:
                found += chunk
        step = "DELETE"
        await store.delete(key)
    except StoreTrouble as trouble:
        raise type(trouble)(f"{step} failed: {trouble}") from None
    if found != body:
        raise StoreRefused("GET failed: other bytes came back than were put")


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


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


class _Tally:
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


# --- a bucket --------------------------------------------------------------------------------------------------------


class BucketStore(Store):
    """An S3 bucket, spoken to by presigned requests only.

    No `x-amz-` headers are sent, so objects carry no metadata: a store refuses those that the link did not sign, and
    obstore signs the host alone.
    """

    def __init__(self, spec: PlaceSpec, credentials: S3Credentials, *, outside: Outside) -> None:
        self._prefix, self._outside, self._signer = spec.prefix, outside, _signer(spec, credentials)
        self._knows_conditions = True
        # The operator named this endpoint, so it may be inside.
        url = httpx.URL(self.presign_get("x", seconds=1))
        outside.allow(url.raw_host.decode(), port_of(url), "http" if url.scheme == "http" else "https")

    async def _is_taken(self, key: str) -> bool:
        async with self._call("HEAD", key) as answer:
            # 403: without the right to list, S3 does not say that nothing is there; the PUT will say what is wrong.
            if answer.status_code not in (403, 404):
                await _expect(answer, 200)
            return answer.status_code == 200

    async def _put_new(self, key: str, tally: _Tally, content_type: str) -> bool:
        headers = {"Content-Length": str(tally.size_bytes), "Content-Type": content_type}
        if self._knows_conditions:
            headers["If-None-Match"] = "*"
        async with self._call("PUT", key, headers=headers, body=tally) as answer:
            if answer.status_code in (409, 412):
                return False
            if answer.status_code == 501 and self._knows_conditions:
                self._knows_conditions = False
                raise StoreFault("the store does not know If-None-Match; the next attempt goes without")
            await _expect(answer, 200, 201, 204)
            return True

    async def head(self, key: str) -> Receipt | None:
        async with self._call("HEAD", key) as answer:
            if answer.status_code == 404:
                return None
            await _expect(answer, 200)
            etag = answer.headers.get("etag", "").strip('"').lower()
            return Receipt(_length(answer), etag or None, answer.headers.get("content-type"))

    @contextlib.asynccontextmanager
    async def open_read(self, key: str, byte_range: tuple[int, int] | None = None) -> AsyncIterator[Reading]:
        headers = {"Range": f"bytes={byte_range[0]}-{byte_range[1]}"} if byte_range else {}
        async with self._call("GET", key, headers=headers) as answer:
            if answer.status_code == 404:
                raise ObjectMissing(f"nothing is at {key}")
            await _expect(answer, 200, 206)
            size_bytes = _length(answer)
            # Judged by length: rclone sends the part with status 200.
            if byte_range and size_bytes != byte_range[1] - byte_range[0] + 1:
                raise StoreRefused("the store does not send parts of objects")
            yield Reading(size_bytes, _in_our_words(answer.aiter_raw()))

    async def delete(self, key: str) -> None:
        async with self._call("DELETE", key) as answer:
            await _expect(answer, 200, 202, 204, 404)

    def presign_get(self, key: str, *, seconds: int) -> str:
        return self._sign("GET", key, seconds=min(seconds, PRESIGN_MAX_SECONDS))

    def _sign(self, method: Method, key: str, *, seconds: int) -> str:
        return obstore.sign(self._signer, method, checked_key(self._prefix, key), timedelta(seconds=seconds))

    @contextlib.asynccontextmanager
    async def _call(
        self, method: Method, key: str, *, headers: dict[str, str] | None = None, body: _Tally | None = None
    ) -> AsyncIterator[httpx.Response]:
        url = self._sign(method, key, seconds=SIGNED_SECONDS)
        async with contextlib.AsyncExitStack() as stack:
            # The `yield` stays outside: what is raised in there is not this call's fault.
            with _our_words():
                answer = await stack.enter_async_context(
                    self._outside.exchange(method, url, headers=headers, body=body, total_seconds=TRANSFER_SECONDS)
                )
            yield answer


def _signer(spec: PlaceSpec, credentials: S3Credentials) -> S3Store:
    """Make what signs for a bucket.

    obstore takes every option that is not given from the environment; those that change a signed URL are all given,
    so that an AWS_SESSION_TOKEN or AWS_ENDPOINT_URL of the machine has no say.
    """
    endpoint, has_bucket = bucket_endpoint(spec)
    pair: S3Credential = {
        "access_key_id": credentials.access_key_id,
        "secret_access_key": credentials.secret_access_key,
        "token": None,
        "expires_at": None,
    }
    return S3Store(
        spec.bucket,
        config={
            "aws_endpoint_url_s3": endpoint,
            "region": spec.region,
            "virtual_hosted_style_request": has_bucket,
            "skip_signature": False,
            "s3_express": False,
            "request_payer": False,
        },
        client_options={"allow_http": True},
        credential_provider=lambda: pair,
    )


def bucket_endpoint(spec: PlaceSpec) -> tuple[str, bool]:
    """Return the URL to sign for, and whether it stands for the bucket already.

    >>> bucket_endpoint(PlaceSpec("s3", "http://minio:9000/", bucket="b"))
    ('http://minio:9000', False)
    >>> bucket_endpoint(PlaceSpec("s3", "https://oss-cn-beijing.aliyuncs.com", bucket="b"))
    ('https://b.oss-cn-beijing.aliyuncs.com', True)
    >>> bucket_endpoint(PlaceSpec("s3", region="eu-west-1", bucket="b"))
    ('https://b.s3.eu-west-1.amazonaws.com', True)
    """
    url = httpx.URL(spec.endpoint or f"https://s3.{spec.region}.amazonaws.com")
    addressing = spec.addressing
    if addressing == "auto":
        addressing = "virtual" if url.host.endswith((".aliyuncs.com", ".amazonaws.com")) else "path"
    if addressing == "virtual" and not url.host.startswith(f"{spec.bucket}."):
        url = url.copy_with(host=f"{spec.bucket}.{url.host}")
    return str(url).rstrip("/"), addressing != "path"


@contextlib.contextmanager
def _our_words() -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        raise StoreRefused(str(refusal)) from None
    except httpx.TransportError as fault:
        raise StoreFault(str(fault)) from None


async def _in_our_words(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    with _our_words():
        async for chunk in chunks:
            yield chunk


def _length(answer: httpx.Response) -> int:
    try:
        return int(answer.headers["content-length"])
    except (KeyError, ValueError):
        raise StoreFault("the store does not say how long the object is") from None


async def _expect(answer: httpx.Response, *wanted: int) -> None:
    """Turn an answer that is not wanted into words to act on; of its body only the error's code, never read as XML."""
    status, body = answer.status_code, b""
    if status in wanted:
        return
    async for chunk in _in_our_words(answer.aiter_raw()):
        body += chunk
        if len(body) >= _ERROR_BODY_BYTES:
            break
    found = _ERROR_CODE.search(body[:_ERROR_BODY_BYTES])
    code = found[1].decode() if found else ""
    said = f"the store answered {status} {code}".rstrip()
    if status in (408, 429) or status >= 500:
        raise StoreFault(said)
    if 300 <= status < 400:
        raise StoreRefused(f"{said}, which is not followed: endpoint or region are not the bucket's")
    raise StoreRefused(f"{said}: {_HINTS[code]}" if code in _HINTS else said)


# --- a folder --------------------------------------------------------------------------------------------------------


class FolderStore(Store):
    """A folder on this machine or on a shared file system; it has no links."""

    def __init__(self, spec: PlaceSpec) -> None:
        if not spec.root:
            raise ValueError("a folder place needs a root")
        self._root, self._prefix = Path(spec.root), spec.prefix

    async def _put_new(self, key: str, tally: _Tally, content_type: str) -> bool:
        """Write beside the target and link it there, which fails rather than replace; a crash leaves a part file."""
        path = self._path(key)
        part = path.with_name(f".{secrets.token_hex(8)}.part")
        with _disk_words():
            try:
                await asyncio.to_thread(_make_folders, path.parent)
                await _write(part, tally)
                return await asyncio.to_thread(_link, part, path)
            finally:
                await asyncio.to_thread(part.unlink, missing_ok=True)

    async def head(self, key: str) -> Receipt | None:
        with _disk_words():
            try:
                return Receipt((await asyncio.to_thread(self._path(key).stat)).st_size)
            except FileNotFoundError:
                return None

    @contextlib.asynccontextmanager
    async def open_read(self, key: str, byte_range: tuple[int, int] | None = None) -> AsyncIterator[Reading]:
        path = self._path(key)
        found = await self.head(key)
        if found is None:
            raise ObjectMissing(f"nothing is at {key}")
        first, last = byte_range or (0, found.size_bytes - 1)
        yield Reading(last - first + 1, _read(path, first, last))

    async def delete(self, key: str) -> None:
        with _disk_words():
            await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    def presign_get(self, key: str, *, seconds: int) -> None:
        return None

    def _path(self, key: str) -> Path:
        return self._root / checked_key(self._prefix, key)


async def _write(part: Path, tally: _Tally) -> None:
    """Write everything and sync it, in threads; small chunks are gathered, as each hop to a thread costs."""
    file = await asyncio.to_thread(part.open, "xb")
    try:
        gathered = bytearray()
        async for chunk in tally:
            gathered += chunk
            if len(gathered) >= _CHUNK_BYTES:
                await asyncio.to_thread(file.write, bytes(gathered))
                gathered.clear()
        await asyncio.to_thread(file.write, bytes(gathered))
        await asyncio.to_thread(_flush, file)
    finally:
        await asyncio.to_thread(file.close)


async def _read(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    with _disk_words():
        file = await asyncio.to_thread(path.open, "rb")
        try:
            await asyncio.to_thread(file.seek, first)
            while chunk := await asyncio.to_thread(file.read, min(_CHUNK_BYTES, last + 1 - file.tell())):
                yield chunk
        finally:
            await asyncio.to_thread(file.close)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _make_folders(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync(each.parent)


def _link(part: Path, path: Path) -> bool:
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    _sync(path.parent)
    return True


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk_words() -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        if fault.errno is None:  # a time-out of the source, not of the disk
            raise
        if fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE):
            raise StoreFault(f"the folder: {fault.strerror}") from None
        raise StoreRefused(f"the folder {fault.filename}: {fault.strerror}") from None
