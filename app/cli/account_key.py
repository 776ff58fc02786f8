"""`dashgate account key …`: the upstream keys of an account. Of a key only its beginning is ever shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, cell, run, table
from app.cli.secret_files import read_secret
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="An account's upstream keys: several while one replaces another.")

COLUMNS = ("id", "begins", "created", "bad until", "reason", "may not call", "retired")

Account = Annotated[str, typer.Argument(help="The account.")]


@app.command()
def add(
    name: Account,
    api_key: Annotated[str | None, typer.Option(help="The upstream key; other users of this machine see it.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file that holds the upstream key; - is stdin.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a key, to be used before the others. `doctor` tells whether it works."""
    with clean_errors(as_json=as_json):
        key = read_secret(api_key, api_key_file, option="--api-key")
    run(lambda res: _add(res, name, key), as_json=as_json)


@app.command("list")
def list_keys(name: Account, as_json: AsJson = False) -> None:
    """List an account's keys, the newest first."""
    run(lambda res: _list(res, name), as_json=as_json)


@app.command()
def retire(
    name: Account,
    key_id: Annotated[str, typer.Argument(help="The key's id, as `account key list` shows it.")],
    force: Annotated[bool, typer.Option("--force", help="Even if no usable key is left.")] = False,
    as_json: AsJson = False,
) -> None:
    """Use a key never again; every process obeys within two seconds."""
    run(lambda res: _retire(res, name, key_id, force=force), as_json=as_json)


async def _add(res: Resources, name: str, key: str) -> Report:
    from app.routing.keys import add_key, masked

    key_id = await add_key(res, name, key)
    document = {"account": name, "id": key_id, "begins": masked(key)}
    return Report(document, [f"Added key {key_id} to {name}. `dashgate doctor` tells whether it works."])


async def _list(res: Resources, name: str) -> Report:
    from app.routing.keys import list_keys as read_keys

    keys = await read_keys(res, name)
    rows = [
        [
            key.id,
            key.begins,
            key.created_at,
            key.bad_until,
            key.bad_reason,
            [f"{model} ({cell(bar.until)}: {bar.reason})" for model, bar in key.barred.items()],
            key.retired_at,
        ]
        for key in keys
    ]
    document = {"account": name, "keys": [{**asdict(key), "usable": key.is_usable} for key in keys]}
    return Report(document, [table(COLUMNS, rows) if keys else f"{name} has no key."])


async def _retire(res: Resources, name: str, asked: str, *, force: bool) -> Report:
    from app.errors import CommandRefused
    from app.lib.ids import find_uuid
    from app.routing.keys import retire_key

    key_id = find_uuid(asked)
    if key_id is None:
        raise CommandRefused(f"The account {name} has no key {asked}.")
    await retire_key(res, name, key_id, force=force)
    return Report({"account": name, "id": key_id, "retired": True}, [f"Retired {key_id}."])
