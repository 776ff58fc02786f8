"""Due work in Postgres: enqueue, claim, write back, finish. The narrow table `work` and nothing else.

A row is work that is due at some time. Claiming it grants a lease: an id, an end, and the next epoch. While a lease
runs, `due_at` stands at its end, so a dead holder's work becomes due again by itself: that is the whole rescue.
Every write-back names (kind, key, epoch); when it changes no row, somebody else holds the work now, and the caller
may still record facts but must not reschedule. Knows no kind of work and none of our nouns.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import RowMapping, text

from app.lib.db import AnySession, Session, Statement, fetch, run
from app.lib.ids import new_id


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim on one row of work. `ends_monotonic` is when we must stop acting, by this process's own clock.

    `was_lost`: whoever held it before let its lease lapse, and may have died of this work.
    """

    kind: str
    key: str
    epoch: int
    attempts: int
    account_id: UUID | None
    team_id: UUID | None
    deadline_at: datetime | None
    ends_monotonic: float
    was_lost: bool = False


_ENQUEUE = Statement("""
    INSERT INTO work (kind, key, account_id, team_id, due_at, deadline_at, priority, epoch)
    VALUES (:kind, :key, :account_id, :team_id,
            coalesce(cast(:due_at AS timestamptz), cast(:now AS timestamptz), now()), :deadline_at, :priority, :epoch)
    ON CONFLICT (kind, key) DO NOTHING
""")

_CLAIM = text("""
    WITH due AS (
        SELECT kind, key, lease_id IS NOT NULL AS was_lost FROM work
        WHERE kind = :kind AND due_at <= coalesce(cast(:now AS timestamptz), now())
        ORDER BY priority DESC, due_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    )
    UPDATE work SET
        lease_id = :lease_id,
        lease_until = coalesce(cast(:now AS timestamptz), now()) + make_interval(secs => :seconds),
        due_at = coalesce(cast(:now AS timestamptz), now()) + make_interval(secs => :seconds),
        epoch = work.epoch + 1,
        attempts = work.attempts + 1
    FROM due WHERE work.kind = due.kind AND work.key = due.key
    RETURNING work.kind, work.key, work.epoch, work.attempts, work.account_id, work.team_id, work.deadline_at,
              due.was_lost
""")

_RENEW = text("""
    UPDATE work SET
        lease_until = coalesce(cast(:now AS timestamptz), now()) + make_interval(secs => :seconds),
        due_at = coalesce(cast(:now AS timestamptz), now()) + make_interval(secs => :seconds)
    WHERE kind = :kind AND key = :key AND epoch = :epoch
""")

_SNOOZE = text("""
    UPDATE work SET lease_id = NULL, lease_until = NULL, attempts = :attempts,
        due_at = coalesce(cast(:now AS timestamptz), now()) + make_interval(secs => :seconds)
    WHERE kind = :kind AND key = :key AND epoch = :epoch
""")

_FINISH = Statement("DELETE FROM work WHERE kind = :kind AND key = :key AND epoch = :epoch RETURNING 1")

_COUNT = text("""
    SELECT count(*) AS rows, count(*) FILTER (WHERE due_at > coalesce(cast(:now AS timestamptz), now())) AS held
    FROM work WHERE kind = :kind
""")


async def enqueue(
    session: AnySession,
    kind: str,
    *,
    key: str,
    due_at: datetime | None = None,
    deadline_at: datetime | None = None,
    account_id: UUID | None = None,
    team_id: UUID | None = None,
    priority: int = 0,
    epoch: int = 0,
    now: datetime | None = None,
) -> None:
    """Add a row of work, due now unless told; a row that is there already stays as it is.

    `epoch` is given where the key had work before: epochs must go on growing, or an old lease would fit again.
    """
    await run(
        session,
        _ENQUEUE,
        {
            "kind": kind,
            "key": key,
            "due_at": due_at,
            "deadline_at": deadline_at,
            "account_id": account_id,
            "team_id": team_id,
            "priority": priority,
            "epoch": epoch,
            "now": now,
        },
    )


async def claim(
    session: Session, kind: str, *, limit: int, lease_seconds: float, monotonic: float, now: datetime | None = None
) -> list[Lease]:
    """Lease up to `limit` due rows of one kind, most urgent first. Commit at once: the lease is the lock.

    `monotonic` is read before the call, so our own idea of the end is never later than the database's.
    """
    rows = await session.execute(
        _CLAIM, {"kind": kind, "limit": limit, "lease_id": new_id(), "seconds": float(lease_seconds), "now": now}
    )
    return [lease_from(row, ends_monotonic=monotonic + lease_seconds) for row in rows.mappings()]


async def renew(session: Session, lease: Lease, *, lease_seconds: float, now: datetime | None = None) -> bool:
    """Lengthen a lease; False: it is not ours any more."""
    done = await session.execute(_RENEW, {**_named(lease), "seconds": float(lease_seconds), "now": now})
    return done.rowcount == 1


async def count(session: Session, kind: str, *, now: datetime | None = None) -> tuple[int, int]:
    """Count the rows of a kind, and those of them that are not due: held, where work of that kind is due at once."""
    found = (await session.execute(_COUNT, {"kind": kind, "now": now})).one()
    return found.rows, found.held


def lengthened(lease: Lease, *, ends_monotonic: float) -> Lease:
    """Return a renewed lease as its holder knows it."""
    return replace(lease, ends_monotonic=ends_monotonic)


async def snooze(
    session: Session, lease: Lease, *, seconds: float, failed: bool = True, now: datetime | None = None
) -> bool:
    """Hand work back, due again in so many seconds; False: it is not ours any more.

    `failed=False` is "not yet": a normal outcome, which starts the count of attempts anew.
    """
    attempts = lease.attempts if failed else 0
    done = await session.execute(
        _SNOOZE, {**_named(lease), "seconds": float(seconds), "attempts": attempts, "now": now}
    )
    return done.rowcount == 1


async def finish(session: AnySession, lease: Lease) -> bool:
    """Delete finished work; False: it is not ours any more."""
    return bool(await fetch(session, _FINISH, _named(lease)))


def lease_from(row: RowMapping, *, ends_monotonic: float) -> Lease:
    """Build a lease from a claim's row, for claims that are part of a larger statement."""
    return Lease(
        kind=row["kind"],
        key=row["key"],
        epoch=row["epoch"],
        attempts=row["attempts"],
        account_id=row["account_id"],
        team_id=row["team_id"],
        deadline_at=row["deadline_at"],
        ends_monotonic=ends_monotonic,
        was_lost=bool(row.get("was_lost", False)),
    )


def _named(lease: Lease) -> dict[str, object]:
    return {"kind": lease.kind, "key": lease.key, "epoch": lease.epoch}
