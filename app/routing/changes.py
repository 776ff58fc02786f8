"""What operators change about an account that exists: where it calls, its share, and whether it sends anything."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import RowMapping

from app.errors import CommandRefused
from app.lib import leases
from app.lib.db import Session, transaction
from app.models.accounts import Serving
from app.resources import Resources
from app.routing import store
from app.routing.accounts import check_base_url, get_account_by_name

MOST_WEIGHT = 1_000_000


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What `account set` was told; None is no change, an empty `workspace` takes it away."""

    weight: int | None = None
    exclusive: bool | None = None
    base_url: str | None = None
    workspace: str | None = None
    main_account: str | None = None
    add_hosts: tuple[str, ...] = ()
    drop_hosts: tuple[str, ...] = ()


async def change_account(res: Resources, name: str, change: AccountChange) -> dict[str, Any]:
    """Change an account and return its columns; every process obeys within two seconds.

    Raises:
        CommandRefused: no such account, nothing to change, a value out of bounds, or another main account while tasks
            that belong to the present one are open.
    """
    _check(change)
    known = await get_account_by_name(res, name)  # a region is for ever; all else is read again under the lock
    async with transaction(res) as session:
        if change.main_account is not None:
            owned = f"{change.main_account}/{known.region}"
            await leases.enqueue(session, "account", key=owned, now=res.clock.for_sql())
        account = await _lock(session, name)
        if change.main_account not in (None, account["main_account"]):
            await _refuse_while_open(session, account["id"])
        values = _values(change, account)
        await store.update_account(session, account["id"], values)
    res.accounts.clear()
    return {**account, **values}


async def pause(res: Resources, name: str, *, reason: str | None = None) -> None:
    """Send nothing more to an account; its queue waits, what is upstream is polled to its end.

    Raises:
        CommandRefused: no such account.
    """
    await _serve(res, name, Serving.PAUSED, reason=reason)


async def drain(res: Resources, name: str, *, reason: str | None = None) -> None:
    """Send nothing more to an account; its queue moves to others, what is upstream is polled to its end.

    Raises:
        CommandRefused: no such account.
    """
    await _serve(res, name, Serving.DRAINING, reason=reason)


async def resume(res: Resources, name: str) -> None:
    """Let an account serve again, now: also forget what the upstream refused to it and to its keys.

    Raises:
        CommandRefused: no such account.
    """
    await _serve(res, name, Serving.ACTIVE, reason=None)


async def _serve(res: Resources, name: str, serving: Serving, *, reason: str | None) -> None:
    """Write the operator's word over whatever submit wrote there."""
    async with transaction(res) as session:
        account = await _lock(session, name)
        if serving is Serving.ACTIVE:
            await store.clear_marks(session, account["id"])
        values = {"serving": str(serving), "paused_until": None, "paused_reason": reason}
        await store.update_account(session, account["id"], values)
    res.accounts.clear()


async def _lock(session: Session, name: str) -> RowMapping:
    account = await store.lock_account(session, name)
    if account is None:
        raise CommandRefused(f"There is no account named {name}.")
    return account


async def _refuse_while_open(session: Session, account_id: UUID) -> None:
    """Open tasks are counted and polled under the main account they were accepted for."""
    if await store.has_open_tasks_all_teams(session, account_id):
        raise CommandRefused("The account has open tasks: drain it, and change its main account when they have ended.")


def _check(change: AccountChange) -> None:
    if change == AccountChange():
        raise CommandRefused("Say what to change.")
    if change.weight is not None and not 0 <= change.weight <= MOST_WEIGHT:
        raise CommandRefused(f"A weight is a whole number from 0 to {MOST_WEIGHT}.")
    if change.base_url is not None:
        check_base_url(change.base_url)
    if change.main_account == "":
        raise CommandRefused("A main account has a name.")


def _values(change: AccountChange, account: RowMapping) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if change.weight is not None:
        values["weight"] = change.weight
    if change.exclusive is not None:
        values["exclusive"] = change.exclusive
    if change.base_url is not None:
        values["base_url"] = change.base_url.rstrip("/")
    if change.workspace is not None:
        values["workspace"] = change.workspace or None
    if change.main_account is not None:
        values["main_account"] = change.main_account
    if change.add_hosts or change.drop_hosts:
        hosts = dict.fromkeys((*account["file_hosts"], *change.add_hosts))
        values["file_hosts"] = [host for host in hosts if host not in change.drop_hosts]
    return values
