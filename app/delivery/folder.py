"""A folder as a store, on this machine or on a shared file system.

Owns how bytes are made to survive a power cut under a name that was free. Must not know whose folder it is.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from app.delivery.places import (
    ObjectMissing,
    PlaceSpec,
    Reading,
    Receipt,
    Store,
    StoreFault,
    StoreRefused,
    Tally,
    checked_key,
)

_CHUNK_BYTES = 1024 * 1024


class FolderStore(Store):
    """A folder on this machine or on a shared file system; it has no links."""

    def __init__(self, spec: PlaceSpec) -> None:
        if not spec.root:
            raise ValueError("a folder place needs a root")
        self._root, self._prefix = Path(spec.root), spec.prefix

    async def _put_new(self, key: str, tally: Tally, *, content_type: str) -> bool:
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
        yield Reading(last - first + 1, _read(path, first=first, last=last))

    async def delete(self, key: str) -> None:
        with _disk_words():
            await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    def presign_get(self, key: str, *, seconds: int) -> None:
        return None

    def _path(self, key: str) -> Path:
        return self._root / checked_key(self._prefix, key)


async def _write(part: Path, tally: Tally) -> None:
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


async def _read(path: Path, *, first: int, last: int) -> AsyncIterator[bytes]:
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
