"""`dashgate team …`: who calls and pays, and what each team chose."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from app.cli.console import AsJson, Report, run, table
from app.cli.switch import Switch
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.resources import Resources
    from app.teams.teams import TeamChange

app = typer.Typer(no_args_is_help=True, help="Teams: who calls and pays.")

FIRST_REGION = "cn-beijing"  # for a team that is made before any account
NO_DESTINATION = "its files are kept nowhere, and links die with the upstream's"
CHOICES = (
    "durable",
    "hold",
    "allow_unlisted_models",
    "rps",
    "weight",
    "max_queued",
    "queue_deadline_hours",
    "resubmit",
)
HOUR_SECONDS = 3600
MOST_NUMBER = 10**12  # whatever is larger is a slip of the hand
SHOWN = ("id", "slug", "regions", "default_region", "models", *CHOICES, "has_destination", "created_at")


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
    weight: Annotated[int | None, typer.Option(help="Its share of the sends while several teams wait.")] = None,
    max_queued: Annotated[
        str | None, typer.Option(metavar="N|none", help="The most of its tasks that may wait; more get 429.")
    ] = None,
    queue_deadline: Annotated[
        str | None, typer.Option(metavar="HOURS|none", help="How long a task may wait from now on; none: the setting.")
    ] = None,
    resubmit: Annotated[
        Switch | None, typer.Option(help="Send again what the upstream was proven not to have taken; off: it fails.")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option(help="Where its calls may go from now on, the preferred one first.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Models it may call from now on.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a team; every process obeys within five seconds."""
    with clean_errors(as_json=as_json):
        others = {"weight": weight, "regions": region, "models": model}
        told = {
            **_switched(durable=durable, hold=hold, allow_unlisted_models=allow_unlisted, resubmit=resubmit),
            **_limited(rps=rps, max_queued=max_queued, queue_deadline=queue_deadline),
            **{name: value for name, value in others.items() if value not in (None, [])},
        }
        change = cast("TeamChange", told)
    run(lambda res: _set(res, slug, change), as_json=as_json)


def _switched(**switches: Switch | None) -> dict[str, bool]:
    return {name: switch is Switch.ON for name, switch in switches.items() if switch is not None}


def _limited(*, rps: str | None, max_queued: str | None, queue_deadline: str | None) -> dict[str, Any]:
    """Return the limits that were given; `none` is given too, and means that there is none."""
    limits: dict[str, Any] = {}
    if rps is not None:
        limits["rps"] = _number(rps, option="--rps")
    if max_queued is not None:
        limits["max_queued"] = _count(max_queued, option="--max-queued")
    if queue_deadline is not None:
        hours = _number(queue_deadline, option="--queue-deadline")
        limits["queue_deadline_seconds"] = int(hours * HOUR_SECONDS) if hours is not None else None
    return limits


def _number(text: str, *, option: str) -> Decimal | None:
    from app.errors import CommandRefused

    if text == "none":
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number) > MOST_NUMBER:
        raise CommandRefused(f"{option} takes a number, or none.")
    return number


def _count(text: str, *, option: str) -> int | None:
    from app.errors import CommandRefused

    number = _number(text, option=option)
    if number is not None and number != int(number):
        raise CommandRefused(f"{option} takes a whole number, or none.")
    return int(number) if number is not None else None


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
    columns = ["team", "regions", "models", "durable", "hold", "unlisted", "rps", "weight", "most queued"]
    columns += ["hours queued", "resubmit", "destination", "created"]
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
    seconds, rps = row["queue_deadline_seconds"], row["rps"]
    return {
        **{name: row[name] for name in SHOWN if name != "queue_deadline_hours"},
        "rps": float(rps) if rps is not None else None,
        "queue_deadline_hours": seconds / HOUR_SECONDS if seconds is not None else None,
    }


def _warnings(teams: list[dict[str, Any]]) -> list[str]:
    return [f"{team['slug']} has no destination: {NO_DESTINATION}" for team in teams if not team["has_destination"]]


def _word(value: object) -> object:
    """Say a choice as it is set, and a rate in short."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(Switch.ON if value else Switch.OFF) if isinstance(value, bool) else value
