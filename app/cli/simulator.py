"""`dashgate simulator`: run the fake DashScope until interrupted. Wires and prints; `app.simulator` does the rest."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import typer

from app.cli.troubles import clean_errors, load_settings

if TYPE_CHECKING:
    from app.simulator import Simulator, SimulatorOptions

DEFAULT_PORT = 8090
DEFAULT_CONTROL_PORT = 8091


def simulator(
    port: int = typer.Option(DEFAULT_PORT, min=0, max=65535, help="Public port; 0 takes a free one."),
    control_port: int = typer.Option(DEFAULT_CONTROL_PORT, min=0, max=65535, help="Control port; 0 takes a free one."),
    *,
    host: str = typer.Option("127.0.0.1", help="Address to listen on, for both ports."),
    hostile: bool = typer.Option(True, "--hostile/--calm", help="A few per cent of 429 and 503, slowness, 2 to 6 s."),
    seed: int | None = typer.Option(None, help="Make nastiness and durations repeatable."),
    scale: float = typer.Option(1.0, min=0.0, help="Simulated seconds per real second; 0 stops the clock."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document when ready."),
) -> None:
    """Run a fake DashScope: two regions, tasks, real PNG files, limits, faults. Nothing is kept."""
    with clean_errors(as_json=as_json):
        from app.errors import CommandRefused
        from app.simulator import ProductionRefusedError, serve

        announce = _print_json if as_json else _print_lines
        try:
            environment = load_settings().environment
            options = make_options(hostile=hostile, seed=seed, scale=scale, environment=environment)
            asyncio.run(serve(options, host=host, port=port, control_port=control_port, announce=announce))
        except (ProductionRefusedError, ValueError) as error:
            raise CommandRefused(str(error)) from error


def make_options(
    *, hostile: bool, seed: int | None, scale: float, environment: str = "development"
) -> SimulatorOptions:
    """Turn the command's switches into options. Raises: `ProductionRefusedError` where `environment` is production."""
    from app.simulator import SimulatorOptions

    make = SimulatorOptions.slightly_hostile if hostile else SimulatorOptions
    return make(seed=seed, clock_scale=scale, environment=environment)


def describe(running: Simulator) -> dict[str, Any]:
    """Say where a running simulator can be reached, and with which keys."""
    return {
        "port": running.port,
        "control_port": running.control_port,
        "control_url": running.control_url,
        "file_host": running.file_host,
        "regions": {
            region: {"base_url": running.base_url(region), "key": running.key(region)}
            for region in running.truth.options.regions
        },
    }


def _print_json(running: Simulator) -> None:
    print(json.dumps(describe(running)), flush=True)


def _print_lines(running: Simulator) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold]The simulator is ready.[/bold] Stop it with Ctrl-C; it keeps nothing.")
    for region, place in describe(running)["regions"].items():
        console.print(f"  {region:<15} {place['base_url']}  key [green]{place['key']}[/green]")
    console.print(f"  {'control':<15} {running.control_url}/state")
