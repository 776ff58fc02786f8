"""Accounts: base URLs with their keys, one row each. Opens sealed keys; hands them to `Upstream` and nobody else."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import RowMapping

from app.errors import CommandRefused, UpstreamAccountAtFault
from app.lib import leases
from app.lib.db import Session, reading, transaction
from app.lib.ids import new_id
from app.models.accounts import Serving
from app.resources import Resources, allow_base_url
from app.routing import store
from app.routing.catalogue import DEFAULT_BUFFER, load_catalogue
from app.upstream.client import Upstream

_ALL = "all"
SUBSCRIPTION_PREFIX = "sk-sp-"  # plan keys: their terms exclude back ends (dashscope-api.md 1.3)


@dataclass(frozen=True, slots=True)
class UpstreamKey:
    """One of an account's keys, not retired. `barred`: models it may not call, each until when."""

    id: UUID
    secret: str = field(repr=False)
    bad_until: datetime | None = None
    barred: Mapping[str, datetime] = field(default_factory=dict, hash=False)

    def is_bad(self, now: datetime) -> bool:
        """Tell whether the upstream refused this key a short while ago."""
        return self.bad_until is not None and self.bad_until > now

    def may_call(self, model: str, now: datetime) -> bool:
        """Tell whether this key is worth trying for a model.

        >>> from datetime import UTC
        >>> early, late = datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC)
        >>> key = UpstreamKey(UUID(int=1), "sk-1", barred={"wan2.6-image": late})
        >>> key.may_call("wan2.6-image", early), key.may_call("wan2.6-image", late), key.may_call("wan-v1", early)
        (False, True, True)
        """
        return not self.is_bad(now) and not (model in self.barred and self.barred[model] > now)


@dataclass(frozen=True, slots=True)
class AccountInfo:
    """An account as this process knows it, at most two seconds old. `keys`: those not retired, the newest first."""

    id: UUID
    name: str
    region: str
    main_account: str
    base_url: str
    workspace: str | None
    file_hosts: tuple[str, ...]
    weight: int
    exclusive: bool  # the operator's word: nobody else calls with its main account
    serving: Serving
    paused_until: datetime | None
    paused_reason: str | None
    keys: tuple[UpstreamKey, ...]

    @property
    def work_key(self) -> str:
        """The key of the `account` work that polls it: shared by all accounts of one main account and region."""
        return f"{self.main_account}/{self.region}"

    def takes_calls(self, now: datetime) -> bool:
        """Tell whether creates may go there now: no operator holds it back, it is not at fault, and it has a key."""
        is_paused = self.paused_until is not None and self.paused_until > now
        return self.serving is Serving.ACTIVE and not is_paused and bool(self.keys)

    def key_for(self, model: str, now: datetime, *, but: UUID | None = None) -> UpstreamKey | None:
        """Return the key to call a model with, `but` for the one that was just refused; None: the account is at fault.

        The newest that is neither bad now nor barred from the model.
        """
        return next((key for key in self.keys if key.id != but and key.may_call(model, now)), None)

    def any_key(self, now: datetime) -> UpstreamKey | None:
        """Return the key to ask about tasks with, which each of them may: a bad one rather than none."""
        return min(self.keys, key=lambda key: key.bad_until if key.bad_until and key.is_bad(now) else now, default=None)


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
        await insert_key(session, res, account_id, new.api_key)
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
        if not known.keys or new.api_key != known.keys[0].secret:
            await insert_key(session, res, known.id, new.api_key)
    res.accounts.clear()
    return known.id


async def all_accounts(res: Resources) -> Sequence[AccountInfo]:
    """Return every account, paused ones too, from a cache of two seconds; the ways out to them are opened with it."""
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


def upstream_of(res: Resources, account: AccountInfo, *, key: UpstreamKey | None = None) -> Upstream:
    """Return the account's upstream, on our one way out; without a key, with one that may ask about tasks.

    Raises:
        UpstreamAccountAtFault: every key was retired.
    """
    key = key or account.any_key(res.clock.now())
    if key is None:
        raise UpstreamAccountAtFault()
    return Upstream(res.outside, account.base_url, account.workspace, key.secret)


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


def check_base_url(base_url: str) -> None:
    """Refuse what cannot be a native base URL.

    Raises:
        CommandRefused: it does not begin with http(s):// and end in /api/v1.
    """
    if not base_url.startswith(("http://", "https://")) or not base_url.rstrip("/").endswith("/api/v1"):
        raise CommandRefused("The base URL must begin with http(s):// and end in /api/v1.")


def check_key(key: str) -> None:
    """Refuse a key that no gateway may use.

    Raises:
        CommandRefused: it is a subscription key.
    """
    if key.startswith(SUBSCRIPTION_PREFIX):
        raise CommandRefused("A subscription key (sk-sp-…) must not be used by a gateway; use a pay-as-you-go key.")


async def insert_key(session: Session, res: Resources, account_id: UUID, key: str) -> UUID:
    """Seal a key and add it to an account; return its id."""
    key_id = new_id()
    secret = res.keyring.seal(key.encode(), place=key_place(key_id))
    await store.insert_account_key(session, {"id": key_id, "account_id": account_id, "secret": secret})
    return key_id


def key_place(key_id: UUID) -> str:
    """Return where a sealed key stands, which is part of its seal."""
    return f"account_keys.secret:{key_id}"


def _check_new(new: NewAccount) -> None:
    check_base_url(new.base_url)
    check_key(new.api_key)


async def _load(res: Resources) -> Sequence[AccountInfo]:
    async with reading(res) as session:
        rows = await store.read_accounts(session)
        key_rows = await store.read_usable_keys(session)
        barred_rows = await store.read_barred_models(session)
    keys: dict[UUID, list[UpstreamKey]] = defaultdict(list)
    barred: dict[UUID, dict[str, datetime]] = defaultdict(dict)
    for row in barred_rows:
        barred[row["account_key_id"]][row["model"]] = row["bad_until"]
    for row in key_rows:
        secret = res.keyring.open(row["secret"], place=key_place(row["id"])).decode()
        keys[row["account_id"]].append(UpstreamKey(row["id"], secret, row["bad_until"], barred[row["id"]]))
    accounts = [_account(row, keys[row["id"]]) for row in rows]
    for account in accounts:
        allow_base_url(res, account.base_url)
    return accounts


def _account(row: RowMapping, keys: Sequence[UpstreamKey]) -> AccountInfo:
    return AccountInfo(
        id=row["id"],
        name=row["name"],
        region=row["region"],
        main_account=row["main_account"],
        base_url=row["base_url"],
        workspace=row["workspace"],
        file_hosts=tuple(row["file_hosts"]),
        weight=row["weight"],
        exclusive=row["exclusive"],
        serving=Serving(row["serving"]),
        paused_until=row["paused_until"],
        paused_reason=row["paused_reason"],
        keys=tuple(keys),
    )
