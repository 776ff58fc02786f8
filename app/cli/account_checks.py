"""What `doctor` asks of accounts: does each key answer, where else would it, and whose is it really.

Every key makes one real call. A key is sent only to base URLs that the operator gave to an account here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from app.cli.findings import Check, Finding, Level
from app.cli.troubles import explain

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from app.resources import Resources
    from app.routing.accounts import AccountInfo, UpstreamKey
    from app.upstream.answers import TaskPage

LISTED = 10  # rows of a task list: enough to see whose it is


@dataclass(frozen=True, slots=True)
class Traces:
    """What tells main accounts apart: whose the tasks in a list are, and which."""

    owners: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()

    def __or__(self, other: Traces) -> Traces:
        """Return both together."""
        return Traces(self.owners | other.owners, self.tasks | other.tasks, self.secrets | other.secrets)

    def same_as(self, other: Traces) -> bool | None:
        """Tell whether two keys see one main account; None: nothing tells.

        >>> a, b = Traces(owners=frozenset("a")), Traces(owners=frozenset("b"))
        >>> a.same_as(a), a.same_as(b), a.same_as(Traces())
        (True, False, None)
        """
        if self.secrets & other.secrets or self.tasks & other.tasks:
            return True
        return bool(self.owners & other.owners) if self.owners and other.owners else None


Seen = dict["UUID", Traces]  # by key: what its call brought


async def account_checks(res: Resources) -> list[Check]:
    """Return the checks of all accounts; the last compares what the others brought."""
    from app.routing.accounts import all_accounts

    try:
        accounts = await all_accounts(res)
    except Exception as error:  # noqa: BLE001 -- one sealed key that does not open: a finding, not an end
        return [("accounts", partial(_said, finding=Finding(Level.FAILED, explain(error).message)))]
    if not accounts:
        none_yet = Finding(Level.WARNING, "W01 no account yet: add one with `dashgate account add`")
        return [("accounts", partial(_said, finding=none_yet))]
    seen: Seen = {}
    checks = [check for account in accounts for check in _checks_of(account, accounts, seen=seen)]
    if any(_neighbours(accounts)) or any(len(account.keys) > 1 for account in accounts):
        checks.append(("main accounts", partial(_main_accounts, accounts=accounts, seen=seen)))
    return checks


def _checks_of(account: AccountInfo, others: Sequence[AccountInfo], *, seen: Seen) -> list[Check]:
    name = f"account {account.name}"
    if not account.keys:
        keyless = Finding(Level.FAILED, f"it has no key: `dashgate account key add {account.name}`")
        return [(name, partial(_said, finding=keyless))]
    several = len(account.keys) > 1
    return [
        (
            f"{name}, key {key.id}" if several else name,
            partial(_key, account=account, key=key, others=others, seen=seen),
        )
        for key in account.keys
    ]


async def _said(_: Resources, *, finding: Finding) -> Finding:
    return finding


async def _key(
    res: Resources, *, account: AccountInfo, key: UpstreamKey, others: Sequence[AccountInfo], seen: Seen
) -> Finding:
    """List a few tasks: the cheapest call that proves base URL, key and region together."""
    from app.errors import CouldNotFindOut
    from app.routing.accounts import upstream_of
    from app.upstream.lists import ListQuery

    try:
        listed = await upstream_of(res, account, key=key).list_tasks(ListQuery(page_size=LISTED))
    except CouldNotFindOut as error:
        hint = await _hint(res, account, key=key, others=others) if error.reason.startswith("401") else ""
        level = Level.WARNING if error.throttled else Level.FAILED
        return Finding(level, f"{account.region} {account.base_url} answered {error.reason}{hint}")
    seen[key.id] = _traces(key, listed)
    held_back = _held_back(account, key, now=res.clock.now())
    if held_back:
        return Finding(Level.WARNING, f"answers, but {'; '.join(held_back)}")
    return Finding(Level.OK, f"{account.region}: its task list can be read")


async def _hint(res: Resources, account: AccountInfo, *, key: UpstreamKey, others: Sequence[AccountInfo]) -> str:
    """Try a refused key where accounts of other regions call; never over http what was given for https."""
    from app.errors import CouldNotFindOut
    from app.routing.accounts import upstream_of
    from app.upstream.lists import ListQuery

    secure = account.base_url.startswith("https:")
    places = {other.base_url: other.region for other in others if other.region != account.region}
    for base_url, region in places.items():
        if secure and not base_url.startswith("https:"):
            continue
        moved = replace(account, base_url=base_url, workspace=None)
        try:
            await upstream_of(res, moved, key=key).list_tasks(ListQuery(page_size=1))
        except CouldNotFindOut:
            continue  # refused there too, or nobody there: this place tells nothing
        return f": this key answers in {region}: wrong region"
    return ": the key is wrong, or belongs to a region that no account here calls"


def _held_back(account: AccountInfo, key: UpstreamKey, *, now: datetime) -> list[str]:
    """Say why an account or a key that answers is used less than it could be."""
    from app.models.accounts import Serving

    told = []
    why = f" ({account.paused_reason})" if account.paused_reason else ""
    if account.serving is Serving.PAUSED:
        told.append(f"an operator paused it{why}")
    if account.serving is Serving.DRAINING:
        told.append(f"it is draining{why}")
    if account.paused_until is not None and account.paused_until > now:
        told.append(f"it is paused until {account.paused_until:%H:%M:%S} UTC{why}")
    if key.bad_until is not None and key.is_bad(now):
        told.append(f"this key was refused and is left alone until {key.bad_until:%H:%M:%S} UTC")
    if barred := sorted(model for model, until in key.barred.items() if until > now):
        told.append(f"this key may not call {', '.join(barred)}")
    return told


def _traces(key: UpstreamKey, listed: TaskPage) -> Traces:
    owners = {row.caller_id for row in listed.rows}
    return Traces(frozenset(owners - {""}), frozenset(row.task_id for row in listed.rows), frozenset({key.secret}))


async def _main_accounts(_: Resources, *, accounts: Sequence[AccountInfo], seen: Seen) -> Finding:
    """Compare keys of one account, and accounts of one region, with what the operator said of them."""
    foreign = [account.name for account in accounts if _belong_together(account, seen) is False]
    if foreign:
        text = f"the keys of {', '.join(foreign)} belong to different main accounts: retire the one that does not fit"
        return Finding(Level.FAILED, text)
    wrong, unknown = [], [account.name for account in accounts if _belong_together(account, seen) is None]
    for first, second in _neighbours(accounts):
        said = first.main_account == second.main_account
        same = _all_of(first, seen).same_as(_all_of(second, seen))
        names = f"{first.name} and {second.name}"
        if same is None:
            unknown.append(names)
        elif same and not said:
            wrong.append(f"accounts {names} are one main account: set --main-account (`dashgate account set`)")
        elif said and not same:
            wrong.append(f"accounts {names} are not one main account, though both are said to be {first.main_account}")
    if wrong:
        return Finding(Level.WARNING, "; ".join(wrong))
    if unknown:
        text = f"cannot be told yet for {', '.join(unknown)}: a task list is empty, or was not read"
        return Finding(Level.WARNING, text)
    return Finding(Level.OK, "as their task lists say")


def _neighbours(accounts: Sequence[AccountInfo]) -> list[tuple[AccountInfo, AccountInfo]]:
    """Return the pairs of accounts that share a region, where limits could be counted twice."""
    return [(one, other) for one, other in combinations(accounts, 2) if one.region == other.region]


def _belong_together(account: AccountInfo, seen: Seen) -> bool | None:
    """Tell whether all keys of an account are of one main account; None: nothing tells."""
    told = [
        seen.get(one.id, Traces()).same_as(seen.get(other.id, Traces())) for one, other in combinations(account.keys, 2)
    ]
    return False if False in told else None if None in told else True


def _all_of(account: AccountInfo, seen: Seen) -> Traces:
    together = Traces()
    for key in account.keys:
        together |= seen.get(key.id, Traces())
    return together
