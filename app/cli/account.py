"""`dashgate account …`: upstream accounts, what they serve and how fast. No command shows an upstream key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import account_key
from app.cli.console import AsJson, Report, run, table
from app.cli.secret_files import read_secret
from app.cli.switch import Switch
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.resources import Resources
    from app.routing.accounts import AccountInfo, NewAccount
    from app.routing.changes import AccountChange

app = typer.Typer(no_args_is_help=True, help="Upstream accounts: where calls may go, and how fast.")
app.add_typer(account_key.app, name="key")

FACTS = ("name", "region", "main_account", "base_url", "workspace", "file_hosts", "weight", "exclusive", "serving")
COLUMNS = (
    *("name", "region", "main_account", "base_url", "workspace", "weight", "exclusive", "serving", "keys"),
    "paused_until",
)

Name = Annotated[str, typer.Argument(help="The account.")]
Reason = Annotated[str | None, typer.Option(help="Why, for those who come after you.")]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Your name for it.")],
    region: Annotated[str, typer.Option(help="Where it calls, e.g. cn-beijing.")],
    base_url: Annotated[
        str | None, typer.Option(help="The native base URL; ends in /api/v1. [the region's own]")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="The upstream key; other users of this machine see it.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file that holds the upstream key; - is stdin.")] = None,
    main_account: Annotated[
        str | None, typer.Option(help="What the upstream counts limits by; several accounts may share one. [NAME]")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Workspace id, where the upstream wants one.")] = None,
    file_host: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT that results may be fetched from, beside Alibaba's own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an account. `doctor` tells whether its key works."""
    with clean_errors(as_json=as_json):
        from app.routing.accounts import NewAccount

        key = read_secret(api_key, api_key_file, option="--api-key")
        hosts = tuple(file_host or ())
        url = base_url or _usual_base_url(region, workspace)
        new = NewAccount(name, region, url, key, main_account=main_account, workspace=workspace, file_hosts=hosts)
    run(lambda res: _add(res, new), as_json=as_json)


@app.command("list")
def list_accounts(as_json: AsJson = False) -> None:
    """List all accounts."""
    run(_list, as_json=as_json)


@app.command("set")
def set_(
    name: Name,
    weight: Annotated[
        int | None,
        typer.Option(help="Its share of its region's calls among its accounts; 0: only if no other can."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="The native base URL; ends in /api/v1.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Workspace id; an empty text takes it away.")] = None,
    main_account: Annotated[
        str | None, typer.Option(help="What the upstream counts limits by; not while tasks are open.")
    ] = None,
    file_host: Annotated[list[str] | None, typer.Option(help="One more HOST:PORT that results may come from.")] = None,
    drop_file_host: Annotated[list[str] | None, typer.Option(help="A HOST:PORT to allow no more.")] = None,
    exclusive: Annotated[
        Switch | None,
        typer.Option(help="on: nobody else calls with its main account, so that what is listed there is ours."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change an account; every process obeys within two seconds."""
    with clean_errors(as_json=as_json):
        from app.routing.changes import AccountChange

        change = AccountChange(
            weight=weight,
            exclusive=exclusive is Switch.ON if exclusive else None,
            base_url=base_url,
            workspace=workspace,
            main_account=main_account,
            add_hosts=tuple(file_host or ()),
            drop_hosts=tuple(drop_file_host or ()),
        )
    run(lambda res: _set(res, name, change), as_json=as_json)


@app.command()
def pause(name: Name, reason: Reason = None, as_json: AsJson = False) -> None:
    """Send nothing more to an account until `resume`; its queue waits."""
    run(lambda res: _pause(res, name, reason), as_json=as_json)


@app.command()
def drain(name: Name, reason: Reason = None, as_json: AsJson = False) -> None:
    """Send nothing more to an account until `resume`; its queue moves to other accounts that can take it."""
    run(lambda res: _drain(res, name, reason), as_json=as_json)


@app.command()
def resume(name: Name, as_json: AsJson = False) -> None:
    """Let an account serve again, now: what the upstream refused to it and to its keys is forgotten."""
    run(lambda res: _resume(res, name), as_json=as_json)


@app.command()
def limit(
    name: Annotated[str, typer.Argument(help="The account; the limits are its main account's.")],
    model: Annotated[str, typer.Argument(help="The model, e.g. wan2.6-image.")],
    rps: Annotated[float, typer.Option(help="Creates a second.")],
    running: Annotated[int, typer.Option(help="Tasks the upstream works on at once.")],
    as_json: AsJson = False,
) -> None:
    """Set what a model may use, when the upstream has granted more (or less) than usual."""
    run(lambda res: _limit(res, name, model, rps=rps, running=running), as_json=as_json)


def _usual_base_url(region: str, workspace: str | None) -> str:
    """Return the base URL that Alibaba documents for a region.

    Raises:
        CommandRefused: it documents none, or one that needs a workspace.
    """
    from app.errors import CommandRefused
    from app.routing.regions import default_base_url, load_regions

    url = default_base_url(region, workspace)
    if url is None:
        known = load_regions().get(region)
        needed = "--base-url" if known is None or workspace else "--workspace (it has no shared host), or --base-url"
        raise CommandRefused(f"No base URL is known for {region} as it stands: give {needed}.")
    return url


async def _add(res: Resources, new: NewAccount) -> Report:
    from app.routing.accounts import add_account
    from app.routing.regions import load_regions

    account_id = await add_account(res, new)
    strange = new.region not in load_regions()
    warnings = (
        [f"{new.region} is no region of Alibaba's that we know: is it spelled as teams say it?"] if strange else []
    )
    facts = {"id": account_id, "name": new.name, "region": new.region, "base_url": new.base_url}
    told = f"Added account {new.name} in {new.region}. `dashgate doctor` tells whether it works."
    return Report({**facts, "warnings": warnings}, [told], asides=[f"Warning: {warning}" for warning in warnings])


async def _list(res: Resources) -> Report:
    from app.routing.accounts import all_accounts

    accounts = [_shown(res, account) for account in await all_accounts(res)]
    if not accounts:
        return Report({"accounts": []}, ["There is no account yet: add one with `dashgate account add`."])
    rows = [[account[name] for name in COLUMNS] for account in accounts]
    for row, account in zip(rows, accounts, strict=True):
        row[COLUMNS.index("keys")] = f"{account['keys_usable']} of {account['keys']}"
        row.append(account["paused_reason"])
    heads = [name.replace("_", " ") for name in (*COLUMNS, "reason")]
    return Report({"accounts": accounts}, [table(heads, rows)])


def _shown(res: Resources, account: AccountInfo) -> dict[str, Any]:
    """Return what operators see of an account; a pause that is over is not shown."""
    now = res.clock.now()
    is_over = account.paused_until is not None and account.paused_until <= now
    return {
        **{name: getattr(account, name) for name in FACTS},
        "keys": len(account.keys),
        "keys_usable": sum(not key.is_bad(now) for key in account.keys),
        "paused_until": None if is_over else account.paused_until,
        "paused_reason": None if is_over else account.paused_reason,
    }


async def _set(res: Resources, name: str, change: AccountChange) -> Report:
    from app.routing.changes import change_account

    changed = await change_account(res, name, change)
    document = {fact: changed[fact] for fact in FACTS}
    facts = [[fact.replace("_", " "), value] for fact, value in document.items()]
    return Report(document, [table(["account", ""], facts)])


async def _pause(res: Resources, name: str, reason: str | None) -> Report:
    from app.routing.changes import pause

    await pause(res, name, reason=reason)
    told = f"{name} is paused: nothing more is sent to it, what is queued for it waits."
    return Report({"name": name, "serving": "paused", "reason": reason}, [told])


async def _drain(res: Resources, name: str, reason: str | None) -> Report:
    from app.routing.changes import drain

    await drain(res, name, reason=reason)
    told = f"{name} is draining: nothing more is sent to it, what is queued for it moves on."
    return Report({"name": name, "serving": "draining", "reason": reason}, [told])


async def _resume(res: Resources, name: str) -> Report:
    from app.routing.changes import resume

    await resume(res, name)
    return Report({"name": name, "serving": "active"}, [f"{name} serves again."])


async def _limit(res: Resources, name: str, model: str, *, rps: float, running: int) -> Report:
    from app.routing.accounts import get_account_by_name, limit_model

    account = await get_account_by_name(res, name)
    await limit_model(res, name, model, rps=rps, running=running)
    limits = {"main_account": account.main_account, "region": account.region, "model": model}
    told = f"{model} on {account.main_account} in {account.region}: {rps:g} creates a second, {running} running."
    return Report({**limits, "rps": rps, "running": running}, [told])
