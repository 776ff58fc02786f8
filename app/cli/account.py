"""`dashgate account …`: upstream accounts and their limits. No command shows an upstream key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, run, table
from app.cli.secret_files import read_secret
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.resources import Resources
    from app.routing.accounts import NewAccount

app = typer.Typer(no_args_is_help=True, help="Upstream accounts: where calls may go, and how fast.")

SHOWN = ("name", "region", "main_account", "base_url", "workspace", "file_hosts", "paused_until", "paused_reason")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Your name for it.")],
    region: Annotated[str, typer.Option(help="Where it calls, e.g. cn-beijing.")],
    base_url: Annotated[str, typer.Option(help="The native base URL; ends in /api/v1.")],
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
        new = NewAccount(name, region, base_url, key, main_account=main_account, workspace=workspace, file_hosts=hosts)
    run(lambda res: _add(res, new), as_json=as_json)


@app.command("list")
def list_accounts(as_json: AsJson = False) -> None:
    """List all accounts."""
    run(_list, as_json=as_json)


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


async def _add(res: Resources, new: NewAccount) -> Report:
    from app.routing.accounts import add_account

    account_id = await add_account(res, new)
    document = {"id": account_id, "name": new.name, "region": new.region, "base_url": new.base_url}
    return Report(document, [f"Added account {new.name} in {new.region}. `dashgate doctor` tells whether it works."])


async def _list(res: Resources) -> Report:
    from app.routing.accounts import all_accounts

    accounts = [{name: getattr(account, name) for name in SHOWN} for account in await all_accounts(res)]
    if not accounts:
        return Report({"accounts": []}, ["There is no account yet: add one with `dashgate account add`."])
    columns = ("name", "region", "main_account", "base_url", "workspace", "paused_until", "paused_reason")
    rows = [[account[name] for name in columns] for account in accounts]
    return Report({"accounts": accounts}, [table([name.replace("_", " ") for name in columns], rows)])


async def _limit(res: Resources, name: str, model: str, *, rps: float, running: int) -> Report:
    from app.routing.accounts import get_account_by_name, limit_model

    account = await get_account_by_name(res, name)
    await limit_model(res, name, model, rps=rps, running=running)
    limits = {"main_account": account.main_account, "region": account.region, "model": model}
    told = f"{model} on {account.main_account} in {account.region}: {rps:g} creates a second, {running} running."
    return Report({**limits, "rps": rps, "running": running}, [told])
