"""SQL of accounts, their keys and their limits. Accounts belong to no team, so nothing here takes a team id."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping, select, text, update
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import Session
from app.models import Account, AccountKey, AccountModel


async def insert_account(session: Session, values: dict[str, Any]) -> bool:
    """Add an account; False: the name is taken."""
    done = await session.execute(insert(Account).values(values).on_conflict_do_nothing(index_elements=["name"]))
    return done.rowcount == 1


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
