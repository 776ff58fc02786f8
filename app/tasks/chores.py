"""Chores: what is done every few seconds by whichever worker is free. Each is one row of `work`, so once at a time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from app.lib import leases
from app.lib.db import transaction
from app.lib.loop import side_by_side
from app.resources import Resources
from app.tasks.rescue import close_doubts, end_grace, end_overdue, forget_requests, mark_unanswered
from app.tasks.resend import forget_keys
from app.tasks.standing import note_positions

log = structlog.get_logger()

LEASE_SECONDS = 15.0  # a chore may be repeated: better twice than late


@dataclass(frozen=True, slots=True)
class Chore:
    """A function that returns how many rows it changed, and how often it is due."""

    run: Callable[[Resources], Awaitable[int]]
    every_seconds: float


CHORES: dict[str, Chore] = {
    "grace": Chore(end_grace, 2),
    "overdue": Chore(end_overdue, 10),
    "unanswered": Chore(mark_unanswered, 10),
    "doubts": Chore(close_doubts, 60),
    "positions": Chore(note_positions, 5),
    "forget_keys": Chore(forget_keys, 300),
    "forget_requests": Chore(forget_requests, 300),
}


async def ensure_chores(res: Resources) -> None:
    """Give each chore its row of work; those that have one keep it."""
    async with transaction(res) as session:
        for name in CHORES:
            await leases.enqueue(session, "chore", key=name, now=res.clock.for_sql())


async def chore_due(res: Resources) -> int:
    """Run the chores that are due; return how many rows they changed (0 means idle).

    1. One transaction: claim `chore` work. 2. Each chore, in its own transactions. 3. One transaction: due again
    later. A crash before 3 leaves the lease to lapse; every chore may be repeated.
    """
    async with transaction(res) as session:
        claimed = await leases.claim(
            session,
            "chore",
            limit=len(CHORES),
            lease_seconds=LEASE_SECONDS,
            monotonic=res.clock.monotonic(),
            now=res.clock.for_sql(),
        )
    return sum(await side_by_side(_run(res, lease) for lease in claimed))


async def _run(res: Resources, lease: leases.Lease) -> int:
    chore = CHORES.get(lease.key)
    if chore is None:  # of another version: not ours to judge
        return 0
    try:
        return await chore.run(res)
    finally:
        async with transaction(res) as session:
            await leases.snooze(session, lease, seconds=chore.every_seconds, failed=False, now=res.clock.for_sql())
