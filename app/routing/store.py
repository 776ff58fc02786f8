"""SQL of accounts, their keys and their limits. Accounts belong to no team, so nothing here takes a team id."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import AnySession, Session, Statement, fetch, run
from app.models import Account, AccountKey, AccountModel

_NOW = "coalesce(cast(:now AS timestamptz), now())"

_LOCK_MODEL = Statement(f"""
    SELECT rps, running, buffer, next_submit_at, paused_until, backoff, learned_seconds, {_NOW} AS now,
           coalesce(paused_until > {_NOW}, false) AS paused
    FROM account_models WHERE main_account = :main_account AND region = :region AND model = :model
    FOR UPDATE
""")  # noqa: S608 -- the only thing put in is our own constant

_MAKE_MODEL = Statement("""
    INSERT INTO account_models (main_account, region, model, rps, running, buffer)
    VALUES (:main_account, :region, :model, :rps, :running, :buffer)
    ON CONFLICT DO NOTHING
""")

_ROOM = Statement(f"""
    SELECT
        coalesce(cast(:now AS timestamptz), clock_timestamp()) AS now,
        (SELECT count(*) FROM tasks
         WHERE main_account = :main_account AND region = :region AND model = :model
           AND (state IN ('submitting', 'pending', 'running')
                OR state = 'doubtful' AND call_deadline_at + make_interval(secs => :doubtful_seconds) > {_NOW})
        ) AS occupied,
        EXISTS (SELECT 1 FROM tasks
                WHERE main_account = :main_account AND region = :region AND model = :model AND state = 'queued'
        ) AS has_queue
""")  # noqa: S608


_NEXT_SUBMIT = Statement("""
    UPDATE account_models SET next_submit_at = :next_submit_at
    WHERE main_account = :main_account AND region = :region AND model = :model
""")


async def insert_account(session: Session, values: dict[str, Any]) -> bool:
    """Add an account; False: the name is taken."""
    done = await session.execute(insert(Account).values(values).on_conflict_do_nothing(index_elements=["name"]))
    return done.rowcount == 1


async def update_account(session: Session, account_id: UUID, values: dict[str, Any]) -> None:
    """Change where an account's calls go."""
    await session.execute(update(Account).where(Account.id == account_id).values(values))


async def insert_account_key(session: Session, values: dict[str, Any]) -> None:
    """Add a sealed upstream key to an account."""
    await session.execute(insert(AccountKey).values(values))


async def read_accounts(session: Session) -> Sequence[RowMapping]:
    """Read all accounts, each with its newest usable key."""
    newest_key = (
        select(AccountKey.id, AccountKey.secret)
        .where(AccountKey.account_id == Account.id)
        .order_by(AccountKey.bad_until.nulls_first(), AccountKey.created_at.desc())
        .limit(1)
        .lateral()
    )
    columns = (*Account.__table__.c, newest_key.c.id.label("key_id"), newest_key.c.secret.label("key_secret"))
    rows = await session.execute(select(*columns).join(newest_key, text("true")).order_by(Account.name))
    return rows.mappings().all()


async def pause_account(session: Session, account_id: UUID, *, until: datetime, reason: str) -> None:
    """Send nothing more to an account until an instant; the longest pause wins."""
    await session.execute(
        update(Account)
        .where(Account.id == account_id, (Account.paused_until.is_(None)) | (Account.paused_until < until))
        .values(paused_until=until, paused_reason=reason)
    )


async def set_limits(session: Session, key: dict[str, str], limits: dict[str, Any]) -> None:
    """Set a model's limits on a main account in a region, whether it was ever called or not."""
    statement = insert(AccountModel).values(**key, **limits)
    await session.execute(
        statement.on_conflict_do_update(index_elements=["main_account", "region", "model"], set_=limits)
    )


async def lock_model(
    session: AnySession, model_key: dict[str, str], *, limits: dict[str, Any], now: datetime | None
) -> Mapping[str, Any]:
    """Lock a model's limits on a main account: room is counted, and the pace taken, while this lock is held."""
    for _ in range(2):
        rows = await fetch(session, _LOCK_MODEL, {**model_key, "now": now})
        if rows:
            return rows[0]
        await run(session, _MAKE_MODEL, {**model_key, **limits})
    raise LookupError(f"account_models has no row for {model_key}")


async def count_room(
    session: AnySession, model_key: dict[str, str], *, doubtful_seconds: float, now: datetime | None
) -> Mapping[str, Any]:
    """Count what is occupied upstream, and tell whether anything is queued."""
    params = {**model_key, "doubtful_seconds": doubtful_seconds, "now": now}
    return (await fetch(session, _ROOM, params))[0]


async def set_next_submit(session: AnySession, model_key: dict[str, str], *, next_submit_at: datetime) -> None:
    """Take the pace: the next create of this model leaves no earlier. Under the model's lock."""
    await run(session, _NEXT_SUBMIT, {**model_key, "next_submit_at": next_submit_at})


async def set_pace(session: Session, model_key: dict[str, str], **values: Any) -> None:
    """Write what else was decided under the model's lock: `backoff`, `paused_until`, `learned_seconds`, the pace."""
    where = [getattr(AccountModel, name) == value for name, value in model_key.items()]
    await session.execute(update(AccountModel).where(*where).values(**values))
