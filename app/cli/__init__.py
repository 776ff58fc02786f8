"""The command line: one file per noun, assembled here. Commands wire and print; what they do is done by the rooms.

Every command takes --json: then stdout holds exactly one JSON document, errors included, with exit code 1.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from app.cli import account, demo, destination, doctor, key, migrate, serve, simulator, task, team, usage, worker
from app.cli.troubles import say_error

app = typer.Typer(
    name="dashgate",
    help="A self-hosted gateway in front of Alibaba Cloud DashScope.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo.demo, serve.serve, worker.worker, migrate.migrate, doctor.doctor, simulator.simulator):
    app.command()(command)
for name, noun in (
    ("account", account.app),
    ("team", team.app),
    ("key", key.app),
    ("destination", destination.app),
    ("task", task.app),
    ("usage", usage.app),
):
    app.add_typer(noun, name=name)


def main() -> None:
    """Run the command line."""
    if "--json" not in sys.argv[1:]:
        app()
        return
    try:
        code = app(standalone_mode=False)
    except TyperException as error:  # a wrong option or argument, in the form that was asked for
        say_error("Usage", error.format_message(), as_json=True)
        code = 1
    except typer.Abort:
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
