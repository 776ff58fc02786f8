"""Resends: the same request once more, from a caller that knows (Idempotency-Key) or one that never got its answer.

Owns what counts as the same request and for how long. Nothing else is ever taken for a resend: two equal requests
without a key are two tasks.
"""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.errors import IdempotencyMismatch
from app.lib.db import AnySession, direct_transaction, transaction
from app.models.tasks import Mode
from app.resources import Resources
from app.routing.ways import Asked
from app.tasks import store_resends as store
from app.teams.authenticate import Caller

UNANSWERED_LIFE_SECONDS = 600.0  # SDKs send again within seconds; people press the button again within minutes
FORGET_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Twin:
    """The task that a request stands for already."""

    task_id: UUID
    mode: Mode


@dataclass(frozen=True, slots=True)
class Resent:
    """What a request is recognised by."""

    hash: bytes
    key: str | None = None


def hash_of(asked: Asked, body: bytes) -> bytes:
    """Return what makes two requests the same: path, form of the call, and the body byte for byte.

    >>> create, stream = Asked("aigc/a", is_async=True), Asked("aigc/a", streams=True)
    >>> hash_of(create, b"{}") == hash_of(Asked("aigc/a/", is_async=True), b"{}"), hash_of(create, b"{}").hex()[:8]
    (True, '9fb689b2')
    >>> len({hash_of(create, b"{}"), hash_of(stream, b"{}"), hash_of(create, b"{ }")})
    3
    """
    form = "async" if asked.is_async else "stream" if asked.streams else "sync"
    return hashlib.sha256(f"{form} {asked.path.strip('/')}\n".encode() + body).digest()


async def take_twin(
    session: AnySession, res: Resources, caller: Caller, *, request: Resent, task_id: UUID | None
) -> Twin | None:
    """Return the task that this request stands for, in the transaction that would make another; None: it is new.

    With a key: a new one is written down for `task_id`, in the commit that makes the task. Two at once: the second
    waits for the first's commit. Without: a task whose caller left without an answer is adopted, once.

    Raises:
        IdempotencyMismatch: the key was used with another request.
    """
    now = res.clock.for_sql()
    if request.key is None:
        return _twin(await store.adopt_unanswered(session, _adopting(caller, request, now=now)))
    values = {
        "team_id": caller.team_id,
        "key": request.key,
        "request_hash": request.hash,
        "task_id": task_id,
        "life_seconds": float(timedelta(days=res.settings.idempotency_days).total_seconds()),
        "now": now,
    }
    if task_id is not None and await store.insert_key(session, values):
        return None
    found = await store.find_key(session, caller.team_id, key=request.key, now=now)
    if found is not None and found["request_hash"] != request.hash:
        raise IdempotencyMismatch()
    return _twin(found)


async def find_twin(res: Resources, caller: Caller, request: Resent) -> Twin | None:
    """Return the task that a request stands for already, when no other could be made now anyhow.

    Raises:
        IdempotencyMismatch: as `take_twin`.
    """
    async with direct_transaction(res) as session:
        return await take_twin(session, res, caller, request=request, task_id=None)


async def mark_left(res: Resources, task_id: UUID) -> None:
    """The caller left before its answer was handed to its connection: the same request gets this task."""
    async with transaction(res) as session:
        await store.mark_left(session, task_id, now=res.clock.for_sql())


async def forget_keys(res: Resources) -> int:
    """Delete idempotency keys that have expired; return how many."""
    forgotten, batch = 0, FORGET_BATCH
    while batch == FORGET_BATCH:
        async with transaction(res) as session:
            batch = await store.forget_keys_all_teams(session, now=res.clock.for_sql(), limit=FORGET_BATCH)
        forgotten += batch
    return forgotten


def _adopting(caller: Caller, request: Resent, *, now: Any) -> dict[str, Any]:
    return {
        "api_key_id": caller.api_key_id,
        "request_hash": request.hash,
        "life_seconds": UNANSWERED_LIFE_SECONDS,
        "now": now,
    }


def _twin(row: Any) -> Twin | None:
    return Twin(row["task_id"], Mode(row["mode"])) if row is not None else None
