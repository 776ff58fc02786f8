"""Accounts: base URLs with their keys, one row each. Opens sealed keys; hands them to `Upstream` and nobody else."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from app.errors import CommandRefused, UpstreamAccountAtFault
from app.lib import leases
from app.lib.db import Session, reading, transaction
from app.lib.ids import new_id
from app.resources import Resources, allow_base_url
from app.routing import store
from app.routing.catalogue import DEFAULT_BUFFER, load_catalogue
from app.upstream.client import Upstream

_ALL = "all"
SUBSCRIPTION_PREFIX = "sk-sp-"  # plan keys: their terms exclude back ends (dashscope-api.md 1.3)


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """An account as this process knows it, at most two seconds old."""

    id: UUID
    name: str
    region: str
    main_account: str
    base_url: str
    workspace: str | None
    file_hosts: tuple[str, ...]
    paused_until: datetime | None
    paused_reason: str | None
    key_id: UUID
    key: str = field(repr=False)

    @property
    def work_key(self) -> str:
        """The key of the `account` work that polls it: shared by all accounts of one main account and region."""
        return f"{self.main_account}/{self.region}"


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What `account add` was told."""

    name: str
    region: str
    base_url: str
    api_key: str = field(repr=False)
    main_account: str | None = None
    workspace: str | None = None
    file_hosts: tuple[str, ...] = ()


async def add_account(res: Resources, new: NewAccount) -> UUID:
    """Store an account with its key sealed, and give its main account an owner to be.

    Raises:
        CommandRefused: the name is taken, the base URL is not a native base, or the key is a subscription key.
    """
    _check_new(new)
    account_id = new_id()
    main_account = new.main_account or new.name
    values = {
        "id": account_id,
        "name": new.name,
        "region": new.region,
        "main_account": main_account,
        "base_url": new.base_url.rstrip("/"),
        "workspace": new.workspace,
        "file_hosts": list(new.file_hosts),
    }
    async with transaction(res) as session:
        await leases.enqueue(session, "account", key=f"{main_account}/{new.region}", now=res.clock.for_sql())
        if not await store.insert_account(session, values):
            raise CommandRefused(f"There is already an account named {new.name}.")
        await _insert_key(session, res, account_id, new.api_key)
    res.accounts.clear()
    return account_id


async def renew_account(res: Resources, new: NewAccount) -> UUID:
    """Add an account, or bring the one of that name to another base URL, file hosts and key; return its id.

    Raises:
        CommandRefused: as `add_account`; or it has another region or main account: its tasks are bound to them.
    """
    known = next((account for account in await all_accounts(res) if account.name == new.name), None)
    if known is None:
        return await add_account(res, new)
    _check_new(new)
    if (known.region, known.main_account) != (new.region, new.main_account or new.name):
        raise CommandRefused(f"The account {new.name} is another one: in {known.region}, of {known.main_account}.")
    values = {"base_url": new.base_url.rstrip("/"), "workspace": new.workspace, "file_hosts": list(new.file_hosts)}
    async with transaction(res) as session:
        await store.update_account(session, known.id, values)
        if new.api_key != known.key:
            await _insert_key(session, res, known.id, new.api_key)
    res.accounts.clear()
    return known.id


async def all_accounts(res: Resources) -> Sequence[AccountInfo]:
    """Return every account, from a cache of two seconds; the ways out to them are opened with it."""
    known: Sequence[AccountInfo] = await res.accounts.get(_ALL, lambda: _load(res))
    return known


async def get_account(res: Resources, account_id: UUID) -> AccountInfo:
    """Return one account.

    Raises:
        UpstreamAccountAtFault: it was removed.
    """
    for account in await all_accounts(res):
        if account.id == account_id:
            return account
    raise UpstreamAccountAtFault()


def upstream_of(res: Resources, account: AccountInfo) -> Upstream:
    """Return the account's upstream, on our one way out."""
    return Upstream(res.outside.client, account.base_url, account.workspace, account.key)


async def limit_model(res: Resources, name: str, model: str, *, rps: float, running: int) -> None:
    """Set what a model may use on an account's main account.

    Raises:
        CommandRefused: no such account, or limits that are not positive.
    """
    account = await get_account_by_name(res, name)
    if rps <= 0 or running <= 0:
        raise CommandRefused("Both limits must be above zero.")
    offer = load_catalogue(res.settings.catalogue_file).find(model)
    known = offer.regions.get(account.region) if offer else None
    buffer = known.buffer if known else DEFAULT_BUFFER
    key = {"main_account": account.main_account, "region": account.region, "model": model}
    async with transaction(res) as session:
        await store.set_limits(session, key, {"rps": rps, "running": running, "buffer": buffer})


async def get_account_by_name(res: Resources, name: str) -> AccountInfo:
    """Return one account by its name.

    Raises:
        CommandRefused: there is none.
    """
    for account in await all_accounts(res):
        if account.name == name:
            return account
    raise CommandRefused(f"There is no account named {name}.")


def _check_new(new: NewAccount) -> None:
    if not new.base_url.startswith(("http://", "https://")) or not new.base_url.rstrip("/").endswith("/api/v1"):
        raise CommandRefused("The base URL must begin with http(s):// and end in /api/v1.")
    if new.api_key.startswith(SUBSCRIPTION_PREFIX):
        raise CommandRefused("A subscription key (sk-sp-…) must not be used by a gateway; use a pay-as-you-go key.")


async def _insert_key(session: Session, res: Resources, account_id: UUID, key: str) -> None:
    key_id = new_id()
    secret = res.keyring.seal(key.encode(), place=f"account_keys.secret:{key_id}")
    await store.insert_account_key(session, {"id": key_id, "account_id": account_id, "secret": secret})


async def _load(res: Resources) -> Sequence[AccountInfo]:
    async with reading(res) as session:
        rows = await store.read_accounts(session)
    accounts = [
        AccountInfo(
            id=row["id"],
            name=row["name"],
            region=row["region"],
            main_account=row["main_account"],
            base_url=row["base_url"],
            workspace=row["workspace"],
            file_hosts=tuple(row["file_hosts"]),
            paused_until=row["paused_until"],
            paused_reason=row["paused_reason"],
            key_id=row["key_id"],
            key=res.keyring.open(row["key_secret"], place=f"account_keys.secret:{row['key_id']}").decode(),
        )
        for row in rows
    ]
    for account in accounts:
        allow_base_url(res, account.base_url)
    return accounts
