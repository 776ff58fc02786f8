"""From an exception to what a person or a program reads: a code, a message, exit code 1. Never a traceback.

Also reads the settings, because that is where most troubles begin. A message never shows a setting's value.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from pydantic import ValidationError

    from app.errors import NotReady
    from app.settings import Settings


class InTrouble(NamedTuple):
    """What went wrong, in the form in which it is shown."""

    code: str
    message: str


@contextlib.contextmanager
def clean_errors(*, as_json: bool) -> Iterator[None]:
    """Show whatever goes wrong inside, and exit with 1: as a JSON document on stdout, or as a line on stderr."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own words, and a reader such as `head` that left
        raise
    except Exception as error:  # noqa: BLE001 -- the edge of the program: everything has to be shown to somebody
        say_error(*explain(error), as_json=as_json)
        raise typer.Exit(1) from None


def say_error(code: str, message: str, *, as_json: bool) -> None:
    """Show a trouble."""
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False))
    else:
        typer.echo(f"dashgate: {message}", err=True)


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        NotReady: one cannot be used; the message names it, says why, and does not show it.
    """
    from pydantic import ValidationError

    from app.errors import NotReady
    from app.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        raise _unusable(error) from None
    except OSError as error:  # a file named by a setting is missing or not ours to read
        raise NotReady("E07", "a file named by a DASHGATE_…_FILE setting cannot be read", str(error.strerror)) from None


def explain(error: BaseException) -> InTrouble:
    """Return the code and the message for an exception; what was not expected is named, not shown."""
    from app.embedded import EmbeddedServerError
    from app.errors import DashgateError

    match error:
        case BaseExceptionGroup():
            return explain(error.exceptions[0])
        case DashgateError():
            return InTrouble(error.code, error.message)
        case EmbeddedServerError():
            return InTrouble("EmbeddedServer", f"The embedded server cannot be used: {error}")
        case OSError():
            about = f"{error.filename}: " if error.filename else ""
            return InTrouble("System", f"{about}{error.strerror or type(error).__name__}")
    return _explain_rest(error)


def _explain_rest(error: BaseException) -> InTrouble:
    import asyncpg
    import structlog
    from sqlalchemy.exc import DBAPIError

    from app.lib.crypto import CryptoError
    from app.lib.db import DatabaseAway

    inner = getattr(error, "orig", None) or error  # SQLAlchemy wraps what the driver raised, twice
    match inner.__cause__ or inner if isinstance(error, DBAPIError) else error:
        case DatabaseAway():
            return InTrouble("DatabaseAway", f"The database cannot be reached ({error}): check DASHGATE_DATABASE_URL.")
        case asyncpg.ClientConfigurationError():
            return InTrouble("NotReady", "E01 DASHGATE_DATABASE_URL is not a URL of the form postgresql://…")
        case CryptoError():
            return InTrouble("SecretKey", f"What is stored does not open with this DASHGATE_SECRET_KEY: {error}.")
        case asyncpg.PostgresError() | DBAPIError() as refusal:
            # Its text may quote values; the class says enough: InvalidPasswordError, LockNotAvailableError, …
            return InTrouble("DatabaseRefused", f"The database refused: {type(refusal).__name__}.")
    structlog.get_logger().debug("command.failed", exc_info=error)
    hint = "DASHGATE_LOG_LEVEL=debug shows where"
    return InTrouble("InternalError", f"An error of Dashgate's own: {type(error).__name__} ({hint}).")


def _unusable(error: ValidationError) -> NotReady:
    """Say which settings cannot be used, and why. Our own validators quote what they were given: that is cut out."""
    from app.errors import NotReady

    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        name = "".join(f"DASHGATE_{part}".upper() for part in problem["loc"][:1])
        why = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        if isinstance(given, str) and given:
            why = why.replace(given, "…")
        lines.append(f"{name} {why}".strip())
    noun = "a setting" if len(lines) == 1 else f"{len(lines)} settings"
    return NotReady("E07", f"{noun} cannot be used", "; ".join(lines))
