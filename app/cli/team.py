"""`dashgate team …`: who calls and pays, and what each team chose."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import AsJson, Report, run, table
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.resources import Resources
    from app.teams.teams import TeamChange

app = typer.Typer(no_args_is_help=True, help="Teams: who calls and pays.")

FIRST_REGION = "cn-beijing"  # for a team that is made before any account
NO_DESTINATION = "its files are kept nowhere, and links die with the upstream's"
CHOICES = ("durable", "hold", "allow_unlisted_models", "rps")
SHOWN = ("id", "slug", "regions", "default_region", "models", *CHOICES, "has_destination", "created_at")


class Switch(StrEnum):
    """A choice that a team makes or does not make."""

    ON = "on"
    OFF = "off"


@app.command()
def create(
    slug: Annotated[str, typer.Argument(help="a-z, 0-9 and dashes.")],
    region: Annotated[
        list[str] | None,
        typer.Option(help="Where its calls may go, the preferred one first. [the accounts' regions, oldest first]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a team."""
    run(lambda res: _create(res, slug, region or []), as_json=as_json)


@app.command("list")
def list_teams(as_json: AsJson = False) -> None:
    """List all teams, and warn where a destination is missing."""
    run(_list, as_json=as_json)


@app.command()
def show(slug: Annotated[str, typer.Argument(help="The team's slug.")], as_json: AsJson = False) -> None:
    """Show one team and what it chose."""
    run(lambda res: _show(res, slug), as_json=as_json)


@app.command("set")
def set_(
    slug: Annotated[str, typer.Argument(help="The team's slug.")],
    durable: Annotated[
        Switch | None, typer.Option(help="Run sync calls as tasks where possible, so that none is lost.")
    ] = None,
    hold: Annotated[
        Switch | None, typer.Option(help="Queue new async work while every account is at fault; off: 503.")
    ] = None,
    allow_unlisted: Annotated[
        Switch | None, typer.Option(help="Pass on calls of models that the catalogue does not know.")
    ] = None,
    rps: Annotated[str | None, typer.Option(metavar="N|none", help="Creates and sync calls a second.")] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Where its calls may go from now on, the preferred one first.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Models it may call from now on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a team; every process obeys within five seconds."""
    with clean_errors(as_json=as_json):
        change: TeamChange = {}
        if durable:
            change["durable"] = durable is Switch.ON
        if hold:
            change["hold"] = hold is Switch.ON
        if allow_unlisted:
            change["allow_unlisted_models"] = allow_unlisted is Switch.ON
        if rps is not None:
            change["rps"] = _rate(rps)
        if region:
            change["regions"] = region
        if model:
            change["models"] = model
    run(lambda res: _set(res, slug, change), as_json=as_json)


def _rate(text: str) -> Decimal | None:
    from app.errors import CommandRefused

    if text == "none":
        return None
    try:
        rate = Decimal(text)
    except InvalidOperation:
        rate = Decimal("NaN")
    if not rate.is_finite():
        raise CommandRefused("--rps takes a number, or none.")
    return rate


async def _create(res: Resources, slug: str, wanted: list[str]) -> Report:
    from app.teams.teams import create_team

    regions = list(dict.fromkeys(wanted)) or await _regions_of_accounts(res)
    team_id = await create_team(res, slug, regions=regions)
    told = f"Created team {slug}; its calls go to {', '.join(regions)}."
    hint = f"Next: `dashgate destination set {slug} --url …` and `dashgate key create {slug}`."
    return Report({"id": team_id, "slug": slug, "regions": regions, "default_region": regions[0]}, [told, hint])


async def _regions_of_accounts(res: Resources) -> list[str]:
    from app.routing.accounts import all_accounts

    accounts = sorted(await all_accounts(res), key=lambda account: account.id)  # ids grow with time
    return list(dict.fromkeys(account.region for account in accounts)) or [FIRST_REGION]


async def _show(res: Resources, slug: str) -> Report:
    from app.teams.teams import get_team

    return _told(await get_team(res, slug))


async def _set(res: Resources, slug: str, change: TeamChange) -> Report:
    from app.teams.teams import change_team

    return _told(await change_team(res, slug, change))


def _told(row: Mapping[Any, Any]) -> Report:
    team = _facts(row)
    warnings = _warnings([team])
    facts = [[name.replace("_", " "), _word(value)] for name, value in team.items()]
    parts: list[Any] = [table(["team", ""], facts), *(f"Warning: {text}." for text in warnings)]
    return Report({**team, "warnings": warnings}, parts)


async def _list(res: Resources) -> Report:
    from app.teams.teams import list_teams as read_teams

    teams = [_facts(row) for row in await read_teams(res)]
    warnings = _warnings(teams)
    columns = ["team", "regions", "models", "durable", "hold", "unlisted", "rps", "destination", "created"]
    rows = [
        [
            team["slug"],
            team["regions"],
            team["models"],
            *(_word(team[name]) for name in CHOICES),
            "set" if team["has_destination"] else "no",
            team["created_at"],
        ]
        for team in teams
    ]
    parts = [table(columns, rows) if teams else "There is no team yet.", *(f"Warning: {text}." for text in warnings)]
    return Report({"teams": teams, "warnings": warnings}, parts)


def _facts(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**{name: row[name] for name in SHOWN}, "rps": float(row["rps"]) if row["rps"] is not None else None}


def _warnings(teams: list[dict[str, Any]]) -> list[str]:
    return [f"{team['slug']} has no destination: {NO_DESTINATION}" for team in teams if not team["has_destination"]]


def _word(value: object) -> object:
    """Say a choice as it is set, and a rate in short."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(Switch.ON if value else Switch.OFF) if isinstance(value, bool) else value
