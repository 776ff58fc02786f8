"""Keeping what was asked and answered: packed, sealed, bound to its row. Knows the form at rest, and nothing else."""

import asyncio
from uuid import UUID

from app.lib.crypto import pack, unpack
from app.lib.db import AnySession
from app.resources import Resources
from app.tasks import store

LARGE_BYTES = 256 * 1024  # packing more than this would keep everybody waiting
MOST_BYTES = 512 * 1024 * 1024  # the largest body any setting lets in


async def seal_request(res: Resources, task_id: UUID, body: bytes) -> bytes:
    """Pack and encrypt what a team asked, before any row is locked; a large one in a thread."""
    place = _request_place(task_id)
    if len(body) <= LARGE_BYTES:
        return res.keyring.seal(pack(body), place=place)
    return await asyncio.to_thread(lambda: res.keyring.seal(pack(body), place=place))


async def open_request(res: Resources, task_id: UUID, sealed: bytes) -> bytes:
    """Return what a team asked, byte for byte.

    Raises:
        CryptoError: sealed with another key, or damaged.
    """
    place = _request_place(task_id)
    return await asyncio.to_thread(lambda: unpack(res.keyring.open(sealed, place=place), max_bytes=MOST_BYTES))


async def keep_answer(session: AnySession, res: Resources, task_id: UUID, *, body: bytes) -> None:
    """Keep the upstream's final answer, as it came."""
    await store.write_answer(session, task_id, res.keyring.seal(pack(body), place=f"task_bodies.answer:{task_id}"))


def _request_place(task_id: UUID) -> str:
    return f"task_bodies.request:{task_id}"
