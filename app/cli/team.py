"""`dashgate team …`: who calls and pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, run, table

if TYPE_CHECKING:
    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="Teams: who calls and pays.")

FIRST_REGION = "cn-beijing"  # for a team that is made before any account
NO_DESTINATION = "its files are kept nowhere, and links die with the upstream's"
SHOWN = ("id", "slug", "regions", "default_region", "models", "has_destination", "created_at")


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


async def _list(res: Resources) -> Report:
    from app.teams.teams import list_teams as read_teams

    teams = [{name: team[name] for name in SHOWN} for team in await read_teams(res)]
    without = [team["slug"] for team in teams if not team["has_destination"]]
    warnings = [f"{slug} has no destination: {NO_DESTINATION}" for slug in without]
    columns = ["team", "regions", "models", "destination", "created"]
    rows = [
        [team["slug"], team["regions"], team["models"], "set" if team["has_destination"] else "no", team["created_at"]]
        for team in teams
    ]
    parts = [table(columns, rows) if teams else "There is no team yet.", *(f"Warning: {text}." for text in warnings)]
    return Report({"teams": teams, "warnings": warnings}, parts)
