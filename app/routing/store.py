"""SQL of accounts, their keys and their limits. Accounts belong to no team, so nothing here takes a team id."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import AnySession, Session, Statement, fetch, run
from app.models import Account, AccountKey, AccountKeyModel, AccountModel, Task
from app.models.tasks import OPEN

_NOW = "coalesce(cast(:now AS timestamptz), now())"

_READ_MODEL = Statement(f"""
    SELECT rps, running, buffer, next_submit_at, paused_until, backoff, slowed_to, slowed_at, turn, learned_seconds,
           {_NOW} AS now, coalesce(paused_until > {_NOW}, false) AS paused
    FROM account_models WHERE main_account = :main_account AND region = :region AND model = :model
""")  # noqa: S608 -- the only thing put in is our own constant

_LOCK_MODEL = Statement(f"""
    SELECT rps, running, buffer, next_submit_at, paused_until, backoff, slowed_to, slowed_at, learned_seconds,
           {_NOW} AS now, coalesce(paused_until > {_NOW}, false) AS paused
    FROM account_models WHERE main_account = :main_account AND region = :region AND model = :model
    FOR UPDATE
""")  # noqa: S608

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


async def lock_account(session: Session, name: str) -> RowMapping | None:
    """Read an account by its name, and keep others from changing it until the transaction ends."""
    rows = await session.execute(
        select(*Account.__table__.c).where(Account.name == name).with_for_update(key_share=True)
    )
    return rows.mappings().one_or_none()


async def update_account(session: Session, account_id: UUID, values: dict[str, Any]) -> None:
    """Change an account: where its calls go, its share, what it serves."""
    await session.execute(update(Account).where(Account.id == account_id).values(values))


async def has_open_tasks_all_teams(session: Session, account_id: UUID) -> bool:
    """Tell whether any task of an account has not reached the upstream's last word."""
    rows = await session.execute(
        select(Task.id).where(Task.account_id == account_id, text(f"tasks.state IN ({OPEN})")).limit(1)
    )
    return rows.first() is not None


async def read_accounts(session: Session) -> Sequence[RowMapping]:
    """Read all accounts."""
    rows = await session.execute(select(*Account.__table__.c).order_by(Account.name))
    return rows.mappings().all()


async def insert_account_key(session: Session, values: dict[str, Any]) -> None:
    """Add a sealed upstream key to an account."""
    await session.execute(insert(AccountKey).values(values))


async def read_usable_keys(session: Session) -> Sequence[RowMapping]:
    """Read the keys of all accounts that were not retired, the newest of each account first."""
    rows = await session.execute(
        select(*AccountKey.__table__.c)
        .where(AccountKey.retired_at.is_(None))
        .order_by(AccountKey.created_at.desc(), AccountKey.id.desc())
    )
    return rows.mappings().all()


async def read_keys(session: Session, account_id: UUID, *, for_update: bool = False) -> Sequence[RowMapping]:
    """Read all keys of an account, retired ones too, the newest first; `for_update` keeps others from changing them."""
    statement = (
        select(*AccountKey.__table__.c)
        .where(AccountKey.account_id == account_id)
        .order_by(AccountKey.created_at.desc(), AccountKey.id.desc())
    )
    rows = await session.execute(statement.with_for_update(key_share=True) if for_update else statement)
    return rows.mappings().all()


async def read_barred_models(session: Session) -> Sequence[RowMapping]:
    """Read which keys may not call which models, until when and why."""
    rows = await session.execute(select(*AccountKeyModel.__table__.c).order_by(AccountKeyModel.model))
    return rows.mappings().all()


async def retire_key(session: Session, key_id: UUID) -> None:
    """Retire a key, once and for ever."""
    retired_at = func.coalesce(AccountKey.retired_at, func.now())
    await session.execute(update(AccountKey).where(AccountKey.id == key_id).values(retired_at=retired_at))


async def mark_key_bad(session: Session, key_id: UUID, *, until: datetime, reason: str) -> None:
    """Use a key no more until an instant, if there is another; the longest mark wins."""
    await session.execute(
        update(AccountKey)
        .where(AccountKey.id == key_id, or_(AccountKey.bad_until.is_(None), AccountKey.bad_until < until))
        .values(bad_until=until, bad_reason=reason)
    )


async def bar_key_from_model(session: Session, key_id: UUID, model: str, *, until: datetime, reason: str) -> None:
    """Call one model no more with a key until an instant; the longest bar wins."""
    bar = {"bad_until": until, "reason": reason}
    await session.execute(
        insert(AccountKeyModel)
        .values(account_key_id=key_id, model=model, **bar)
        .on_conflict_do_update(
            index_elements=["account_key_id", "model"], set_=bar, where=AccountKeyModel.bad_until < until
        )
    )


async def clear_marks(session: Session, account_id: UUID) -> None:
    """Forget what submit held against an account's keys."""
    keys = select(AccountKey.id).where(AccountKey.account_id == account_id)
    await session.execute(
        update(AccountKey).where(AccountKey.account_id == account_id).values(bad_until=None, bad_reason=None)
    )
    await session.execute(delete(AccountKeyModel).where(AccountKeyModel.account_key_id.in_(keys)))


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


async def find_model(
    session: AnySession, model_key: dict[str, str], *, now: datetime | None
) -> Mapping[str, Any] | None:
    """Read a model's limits on a main account without locking them; None: nothing was ever sent there."""
    rows = await fetch(session, _READ_MODEL, {**model_key, "now": now})
    return rows[0] if rows else None


async def count_room(
    session: AnySession, model_key: dict[str, str], *, doubtful_seconds: float, now: datetime | None
) -> Mapping[str, Any]:
    """Count what is occupied upstream, and tell whether anything is queued."""
    params = {**model_key, "doubtful_seconds": doubtful_seconds, "now": now}
    return (await fetch(session, _ROOM, params))[0]


async def set_next_submit(session: AnySession, model_key: dict[str, str], *, next_submit_at: datetime) -> None:
    """Take the pace: the next create of this model leaves no earlier. Under the model's lock."""
    await run(session, _NEXT_SUBMIT, {**model_key, "next_submit_at": next_submit_at})


async def set_pace(session: AnySession, model_key: dict[str, str], **values: Any) -> None:
    """Write what else was decided under the model's lock: `backoff`, `paused_until`, `learned_seconds`, the pace."""
    await run(session, _set_columns(tuple(sorted(values))), {**model_key, **values})


@lru_cache(maxsize=16)
def _set_columns(columns: tuple[str, ...]) -> Statement:
    """Return the statement that sets these columns of a model; their names are this house's own."""
    sets = ", ".join(f"{column} = :{column}" for column in columns)
    where = "main_account = :main_account AND region = :region AND model = :model"
    return Statement(f"UPDATE account_models SET {sets} WHERE {where}")  # noqa: S608
