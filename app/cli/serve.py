"""`dashgate serve`: the web process."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, run_lasting, show, stop_on_signals

if TYPE_CHECKING:
    from app.resources import Resources


class Surfaces(StrEnum):
    """What is served; `all` puts the operators' surface on DASHGATE_OPERATORS_LISTEN."""

    ALL = "all"
    TEAMS = "teams"
    OPERATORS = "operators"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    surface: Annotated[
        Surfaces, typer.Option(help="all: teams here, operators on DASHGATE_OPERATORS_LISTEN.")
    ] = Surfaces.ALL,
    as_json: AsJson = False,
) -> None:
    """Serve HTTP to teams, to operators, or to both. SIGTERM and Ctrl-C end it when open answers have ended."""
    name = f"[{host}]" if ":" in host else host
    run_lasting(lambda res: _serve(res, f"{name}:{port or free_port(name)}", surface, as_json=as_json), as_json=as_json)


def free_port(host: str) -> int:
    """Return a port that nobody listens on now: it must be known before the server starts, to be told or linked to."""
    from app.main import listen

    with listen(f"{host}:0") as found:
        port: int = found.getsockname()[1]
        return port


async def _serve(res: Resources, here: str, surface: Surfaces, *, as_json: bool) -> None:
    from app import main

    teams, operators = {
        Surfaces.ALL: (here, res.settings.operators_listen),
        Surfaces.TEAMS: (here, None),
        Surfaces.OPERATORS: (None, here),
    }[surface]
    serving = asyncio.ensure_future(main.serve(res, teams=teams, operators=operators, stop=stop_on_signals()))
    await asyncio.sleep(0)  # it listens, or has failed, before it first waits
    if as_json and not serving.done():
        show(Report({"teams": teams, "operators": operators}), as_json=True)
    await serving
