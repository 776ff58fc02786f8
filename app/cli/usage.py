"""`dashgate usage report`: what each team used."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import AsJson, Report, run, table

if TYPE_CHECKING:
    from rich.table import Table

    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="Usage: what each team used.")

COLUMNS = ("month", "team", "region", "model", "unit", "tasks", "quantity", "presumed", "uncertain")


@app.callback()
def usage() -> None:
    """Keep `report` a word of its own, though it is the only one."""


@app.command()
def report(
    team: Annotated[str | None, typer.Option(help="The team's slug. [all teams]")] = None,
    month: Annotated[str | None, typer.Option(metavar="YYYY-MM", help="A billing month. [all months]")] = None,
    as_json: AsJson = False,
) -> None:
    """Sum usage by month, region, model and unit. `quantity` is billed; the two others wait for a correction."""
    run(lambda res: _report(res, team, month), as_json=as_json)


async def _report(res: Resources, team: str | None, month: str | None) -> Report:
    from app.ledger.reports import usage_report
    from app.teams.teams import get_team

    team_id = (await get_team(res, team))["id"] if team is not None else None
    lines = [asdict(line) for line in await usage_report(res, team_id=team_id, month=month)]
    document = {"billing_timezone": res.settings.billing_timezone, "lines": lines}
    return Report(document, [usage_table(lines) if lines else "Nothing was used."])


def usage_table(lines: list[dict[str, Any]]) -> Table:
    """Return the lines of a report as a table."""
    return table(COLUMNS, ([line[name] for name in COLUMNS] for line in lines))
