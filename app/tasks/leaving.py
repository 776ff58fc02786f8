"""Leaving: callers that hang up before their answer was handed to their connection. Each marks its task, once.

Owns when the mark is made, which is at the moment of leaving: some clients send again within a millisecond. What the
mark means is resend's to know.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import structlog

from app.lib.db import DatabaseAway
from app.resources import Resources
from app.tasks.resend import Resent, mark_left

log = structlog.get_logger()

SETTLE_TURNS = 3  # of the loop, from the end of a connection to the beginning of its mark


class Leaving(asyncio.Event):
    """Set when a caller hangs up. `is_marked` keeps a task from being marked again after another has adopted it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_marked = False
        self.then: Callable[[], object] | None = None  # what is done at that moment

    def set(self) -> None:
        """Say that the caller has left."""
        super().set()
        if self.then is not None:
            self.then()


@contextlib.asynccontextmanager
async def marked_when_left(res: Resources, task_id: UUID, *, request: Resent, left: Leaving) -> AsyncIterator[None]:
    """Mark a task as soon as its caller leaves, while the block goes on without it."""
    marking: list[asyncio.Future[None]] = []

    def mark() -> None:
        if not left.is_marked:
            marking.append(_begin_mark(res, task_id, request=request, left=left))

    left.then = mark
    if left.is_set():
        mark()
    try:
        yield
    finally:
        left.then = None
        if marking:
            await asyncio.wait(marking)


async def mark_once(res: Resources, task_id: UUID, *, request: Resent, left: Leaving) -> None:
    """Mark a task whose caller gets no answer, unless that was done; the same request gets this task."""
    if not left.is_marked:
        await asyncio.wait({_begin_mark(res, task_id, request=request, left=left)})


async def settle_marks(res: Resources, request: Resent) -> None:
    """Wait for the mark that is being written for an equal request, or is about to be.

    Of a client that hangs up and comes again at once both may reach this process in one moment.
    """
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)
    marking = res.leaving.get(request.hash)
    if marking is not None:
        await asyncio.wait({marking})


def _begin_mark(res: Resources, task_id: UUID, *, request: Resent, left: Leaving) -> asyncio.Future[None]:
    """Begin to write a mark; until it is written, equal requests wait for it."""
    left.is_marked = True
    marking = res.leaving[request.hash] = asyncio.ensure_future(_mark(res, task_id))

    def forget(_: object) -> None:
        if res.leaving.get(request.hash) is marking:
            del res.leaving[request.hash]

    marking.add_done_callback(forget)
    return marking


async def _mark(res: Resources, task_id: UUID) -> None:
    """Write the mark. Database away: it is lost, and the same request makes another task."""
    try:
        await mark_left(res, task_id)
    except DatabaseAway:
        log.warning("task.left_unmarked", task=str(task_id))
