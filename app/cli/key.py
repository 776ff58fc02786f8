"""`dashgate key …`: API keys of teams. A key is shown once, when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, run, table

if TYPE_CHECKING:
    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="API keys: a team's secrets for this gateway.")

SHOWN = ("id", "name", "models", "created_at", "expires_at", "revoked_at")


@app.command()
def create(
    team: Annotated[str, typer.Argument(help="The team's slug.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[int | None, typer.Option(metavar="DAYS", help="How long it lives. [for ever]")] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Models it may call. [all]")] = None,
    as_json: AsJson = False,
) -> None:
    """Issue an API key and print it, once."""
    run(lambda res: _create(res, team, name, expires_in=expires_in, models=model or ["*"]), as_json=as_json)


@app.command("list")
def list_keys(team: Annotated[str, typer.Argument(help="The team's slug.")], as_json: AsJson = False) -> None:
    """List a team's API keys; the keys themselves are not stored."""
    run(lambda res: _list(res, team), as_json=as_json)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The 8 characters between dg_ and the next _.")], as_json: AsJson = False
) -> None:
    """Revoke an API key; every process obeys within five seconds."""
    run(lambda res: _revoke(res, key_id), as_json=as_json)


async def _create(res: Resources, team: str, name: str, *, expires_in: int | None, models: list[str]) -> Report:
    from app.teams.teams import issue_key

    key_id, api_key = await issue_key(res, team, name=name, expires_in_days=expires_in, models=models)
    document = {"id": key_id, "team": team, "name": name, "models": models, "api_key": api_key}
    return Report(document, [api_key], asides=["This is the only time that it is shown."])


async def _list(res: Resources, team: str) -> Report:
    from app.teams.teams import list_keys as read_keys

    keys = [{name: key[name] for name in SHOWN} for key in await read_keys(res, team)]
    columns = [name.replace("_at", "") for name in SHOWN]
    made = table(columns, ([key[name] for name in SHOWN] for key in keys))
    return Report({"team": team, "keys": keys}, [made if keys else f"{team} has no API key yet."])


async def _revoke(res: Resources, key_id: str) -> Report:
    from app.teams.teams import revoke_key

    await revoke_key(res, key_id)
    return Report({"id": key_id, "revoked": True}, [f"Revoked {key_id}."])
