"""Upstream keys of an account: adding, listing, retiring, and whose fault a refusal is. Shows no more than a beginning.

An account has several keys while one replaces another. More keys give no more room: limits are the main account's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import RowMapping

from app.errors import CommandRefused
from app.lib.db import reading, transaction
from app.resources import Resources
from app.routing import store
from app.routing.accounts import AccountInfo, UpstreamKey, check_key, get_account_by_name, insert_key, key_place
from app.upstream.faults import AtFault, judge

# How long submit leaves a refused key alone while another one works: each new trial costs a call its first attempt.
KEY_BAD_SECONDS = 600.0
SHOWN_CHARS = 6
# What remains at fault where an account has no other key to try.
WITHOUT_ANOTHER_KEY = {AtFault.KEY: AtFault.ACCOUNT, AtFault.KEY_MODEL: AtFault.ACCOUNT_MODEL}


@dataclass(frozen=True, slots=True)
class Bar:
    """Until when a key may not call a model, and why."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A key as operators see it. `barred`: models it may not call now; `bad_until` only while it is so."""

    id: UUID
    begins: str
    created_at: datetime
    bad_until: datetime | None
    bad_reason: str | None
    barred: dict[str, Bar]
    upstream_key_id: str | None
    retired_at: datetime | None

    @property
    def is_usable(self) -> bool:
        """Whether calls may use it, for some model at least."""
        return self.retired_at is None and self.bad_until is None


def what_is_at_fault(code: str, status: int, *, keys_left: bool) -> AtFault:
    """Return what to leave alone for a while after the upstream said that our side is at fault (`Fault.ACCOUNT`).

    `keys_left`: the account has another key to try for this model. Without one the account itself is at fault, and the
    key is not marked: it is tried again as soon as the account is.

    >>> str(what_is_at_fault("InvalidApiKey", 401, keys_left=True))
    'key'
    >>> str(what_is_at_fault("NOT AUTHORIZED", 401, keys_left=False))
    'account'
    >>> [str(what_is_at_fault("Model.AccessDenied", 403, keys_left=left)) for left in (True, False)]
    ['key_model', 'account_model']
    >>> [str(what_is_at_fault(code, 403, keys_left=True)) for code in ("AllocationQuota.FreeTierOnly", "AccessDenied")]
    ['account_model', 'account_model']
    >>> str(what_is_at_fault("Arrearage", 400, keys_left=True))  # money is the account's, whatever the key
    'account'
    """
    at_fault = judge(code, status=status).at_fault or AtFault.ACCOUNT
    return at_fault if keys_left else WITHOUT_ANOTHER_KEY.get(at_fault, at_fault)


async def leave_refused_key(res: Resources, account: AccountInfo, key: UpstreamKey, *, reason: str) -> bool:
    """After a question about a task was refused for its key (401): ask with another for a while, if there is one.

    Return whether there is; without another the key stays as it is, and is asked with again.
    """
    now = res.clock.now()
    if not any(other.id != key.id and not other.is_bad(now) for other in account.keys):
        return False
    async with transaction(res) as session:
        await store.mark_key_bad(session, key.id, until=now + timedelta(seconds=KEY_BAD_SECONDS), reason=reason)
    res.accounts.clear()
    return True


async def add_key(res: Resources, name: str, api_key: str) -> UUID:
    """Add a key to an account; being the newest, it is the first to be used. Return its id.

    Raises:
        CommandRefused: no such account, a subscription key, or a key that it has already.
    """
    check_key(api_key)
    account = await get_account_by_name(res, name)
    if api_key in (key.secret for key in account.keys):
        raise CommandRefused(f"The account {name} has this key already.")
    async with transaction(res) as session:
        key_id = await insert_key(session, res, account.id, api_key)
    res.accounts.clear()
    return key_id


async def list_keys(res: Resources, name: str) -> Sequence[ShownKey]:
    """Return an account's keys as far as they may be shown, the newest first, retired ones too.

    Raises:
        CommandRefused: no such account.
    """
    account = await get_account_by_name(res, name)
    async with reading(res) as session:
        rows = await store.read_keys(session, account.id)
        barred = await store.read_barred_models(session)
    return [_shown(res, row, barred) for row in rows]


async def retire_key(res: Resources, name: str, key_id: UUID, *, force: bool = False) -> None:
    """Use a key never again. Every process obeys within two seconds; a call under way ends as it began.

    Raises:
        CommandRefused: no such account or key, or no usable key would be left and `force` was not said.
    """
    account = await get_account_by_name(res, name)
    now = res.clock.now()
    async with transaction(res) as session:
        rows = await store.read_keys(session, account.id, for_update=True)
        if key_id not in [row["id"] for row in rows]:
            raise CommandRefused(f"The account {name} has no key {key_id}.")
        if not force and not any(row["id"] != key_id and _is_usable(row, now) for row in rows):
            raise CommandRefused(f"The account {name} would have no usable key left: add one first, or say --force.")
        await store.retire_key(session, key_id)
    res.accounts.clear()


def masked(secret: str) -> str:
    """Return a key's beginning: enough to tell keys apart, never more than a quarter.

    >>> masked("sk-" + 8 * "0123"), masked("sk-short")
    ('sk-012…', 'sk…')
    """
    return f"{secret[: min(SHOWN_CHARS, len(secret) // 4)]}…"


def _is_usable(row: RowMapping, now: datetime) -> bool:
    return row["retired_at"] is None and (row["bad_until"] is None or row["bad_until"] <= now)


def _shown(res: Resources, row: RowMapping, barred: Sequence[RowMapping]) -> ShownKey:
    now = res.clock.now()
    is_bad = row["bad_until"] is not None and row["bad_until"] > now
    secret = res.keyring.open(row["secret"], place=key_place(row["id"])).decode()
    return ShownKey(
        id=row["id"],
        begins=masked(secret),
        created_at=row["created_at"],
        bad_until=row["bad_until"] if is_bad else None,
        bad_reason=row["bad_reason"] if is_bad else None,
        barred={
            bar["model"]: Bar(bar["bad_until"], bar["reason"])
            for bar in barred
            if bar["account_key_id"] == row["id"] and bar["bad_until"] > now
        },
        upstream_key_id=row["upstream_key_id"],
        retired_at=row["retired_at"],
    )
