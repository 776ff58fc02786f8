"""What all commands share: settings, resources, the loop to run on, and how results and troubles are shown.

Knows no noun. Heavy parts are imported where they are used, so that `dashgate --help` is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TextIO
from uuid import UUID

import typer

from app.cli.troubles import clean_errors, load_settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from app.resources import Resources
    from app.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
PIPED_COLUMNS = 1_000  # a file or a pipe has no width of its own; narrower would break ids and paths apart


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found or did: a document for programs, parts for people, asides for them on stderr.

    `failed`: exit with 1.
    """

    document: dict[str, Any]
    parts: Sequence[RenderableType] = ()
    asides: Sequence[str] = ()
    failed: bool = False


def run(work: Callable[[Resources], Awaitable[Report]], *, as_json: bool, checked: bool = True) -> None:
    """Run a command that ends by itself, and show its report. `checked`: only on a database that is ready for us.

    Logs go to stderr, from warning up: stdout is the command's.
    """
    with clean_errors(as_json=as_json):
        from app.cli.embedding import own_database

        settings = load_settings()
        log_to(sys.stderr, "debug" if settings.log_level == "debug" else "warning")
        with own_database(settings, lasting=False) as usable:
            report = asyncio.run(_with_resources(usable, work, checked=checked))
        show(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(1)


def run_lasting(work: Callable[[Resources], Awaitable[None]], *, as_json: bool) -> None:
    """Run a process that lives until it is stopped. Logs go to stdout, with --json to stderr.

    Before `work` begins: all settings are logged, secrets masked, and the database is checked.
    """
    with clean_errors(as_json=as_json):
        import structlog
        import uvloop

        from app.cli.embedding import own_database
        from app.settings import masked

        settings = load_settings()
        log_to(sys.stderr if as_json else sys.stdout, settings.log_level)
        with own_database(settings, lasting=True) as usable:
            structlog.get_logger().info("settings.read", **masked(usable))
            uvloop.run(_with_accounts(usable, work))


async def _with_resources(
    settings: Settings, work: Callable[[Resources], Awaitable[Report]], *, checked: bool
) -> Report:
    from app.resources import check_ready, open_resources

    async with open_resources(settings) as res:
        if checked:
            await check_ready(res)
        return await work(res)


async def _with_accounts(settings: Settings, work: Callable[[Resources], Awaitable[None]]) -> None:
    import structlog

    from app.delivery.inputs import fill_inputs
    from app.resources import check_ready, open_resources
    from app.routing.accounts import all_accounts

    async with open_resources(settings, fill_inputs=fill_inputs) as res:
        await check_ready(res)
        if not await all_accounts(res):
            structlog.get_logger().warning("accounts.missing", hint="W01 no account yet: `dashgate account add`")
        await work(res)


def log_to(stream: TextIO, level: str) -> None:
    """Send logs to a stream."""
    from app.lib.logs import set_up_logs

    with contextlib.redirect_stdout(stream):  # set_up_logs keeps what stdout is at this moment
        set_up_logs(level)


def stop_on_signals() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set, in place of ending the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


def show(report: Report, *, as_json: bool) -> None:
    """Print a report: the document, or the parts."""
    if as_json:
        print(json.dumps(report.document, default=plain, ensure_ascii=False), flush=True)
        return
    out = console()
    for part in report.parts:
        out.print(part, markup=False, soft_wrap=isinstance(part, str))
    for aside in report.asides:
        typer.echo(aside, err=True)


def console(*, quiet: bool = False) -> Console:
    """Return a console on stdout: as wide as the terminal, or wide enough for a file."""
    from rich.console import Console

    return Console(highlight=False, quiet=quiet, width=None if sys.stdout.isatty() else PIPED_COLUMNS)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Return a table; None is shown as a dash, and nothing in a cell is taken for markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def cell(value: object) -> str:
    """Write a value for people, instants in UTC; characters that could steer a terminal become question marks.

    >>> cell(None), cell(["a", "b"]), cell(Decimal("2.000000")), cell("a" + chr(27) + "[2J")
    ('-', 'a, b', '2', 'a?[2J')
    """
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%SZ}"
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return "".join(character if character.isprintable() else "?" for character in str(value))


def plain(value: object) -> str:
    """Write what JSON has no form for: instants in ISO 8601, decimals exactly, as the HTTP routes do."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
