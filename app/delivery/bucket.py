"""An S3 bucket as a store. obstore only signs; the bytes go through `lib/http.py`.

Owns the S3 requests, and the words for what a bucket answers. Must not know whose bucket it is.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Literal

import httpx
import obstore
from obstore.store import S3Store

from app.delivery.places import (
    ObjectMissing,
    PlaceSpec,
    Reading,
    Receipt,
    S3Credentials,
    Store,
    StoreFault,
    StoreRefused,
    Tally,
    checked_key,
)
from app.lib.guard import Refused, port_of
from app.lib.http import Outside

if TYPE_CHECKING:
    from obstore.store import S3Credential

SIGNED_SECONDS = 15 * 60  # a link for our own use; the store judges it when the request begins
PRESIGN_MAX_SECONDS = 7 * 24 * 3600  # no signature of version 4 lives longer
TRANSFER_SECONDS = 15 * 60.0
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


class BucketStore(Store):
    """An S3 bucket, spoken to by presigned requests only.

    No `x-amz-` headers are sent, so objects carry no metadata: a store refuses those that the link did not sign, and
    obstore signs the host alone.
    """

    # Hosts that answered 501 to If-None-Match, learned by this process; stores are made anew for every delivery.
    _hosts_without_conditions: ClassVar[set[str]] = set()

    def __init__(self, spec: PlaceSpec, credentials: S3Credentials, *, outside: Outside) -> None:
        self._prefix, self._outside, self._signer = spec.prefix, outside, _signer(spec, credentials)
        url = httpx.URL(self.presign_get("x", seconds=1))
        self._host = url.netloc.decode()
        # The operator named this endpoint, so it may be inside.
        outside.allow(url.raw_host.decode(), port_of(url), "http" if url.scheme == "http" else "https")

    async def _is_taken(self, key: str) -> bool:
        async with self._call("HEAD", key) as answer:
            # 403: without the right to list, S3 does not say that nothing is there; the PUT will say what is wrong.
            if answer.status_code not in (403, 404):
                await _expect(answer, 200)
            return answer.status_code == 200

    async def _put_new(self, key: str, tally: Tally, *, content_type: str) -> bool:
        headers = {"Content-Length": str(tally.size_bytes), "Content-Type": content_type}
        if self._host not in self._hosts_without_conditions:
            headers["If-None-Match"] = "*"
        async with self._call("PUT", key, headers=headers, body=tally) as answer:
            if answer.status_code in (409, 412):
                return False
            if answer.status_code == 501:
                self._hosts_without_conditions.add(self._host)
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
        self, method: Method, key: str, *, headers: dict[str, str] | None = None, body: Tally | None = None
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
