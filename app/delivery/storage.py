"""Where files are put: an S3 bucket or a folder, behind one `Store`.

Owns the choice between them and the proof that a place works. Must not know whose place it is or what a key means.
"""

import secrets
from collections.abc import AsyncIterator

from app.delivery.bucket import BucketStore
from app.delivery.folder import FolderStore
from app.delivery.places import (
    ObjectConflict,
    ObjectMissing,
    PlaceSpec,
    Reading,
    Receipt,
    S3Credentials,
    Store,
    StoreFault,
    StoreRefused,
    StoreTrouble,
)
from app.lib.http import Outside

__all__ = [
    "ObjectConflict",
    "ObjectMissing",
    "PlaceSpec",
    "Reading",
    "Receipt",
    "S3Credentials",
    "Store",
    "StoreFault",
    "StoreRefused",
    "StoreTrouble",
    "open_store",
    "probe",
]


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
