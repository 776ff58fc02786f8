"""Secrets on the command line: given directly, or better in a file, which no process list shows."""

from __future__ import annotations

import sys
from pathlib import Path

MOST_CHARS = 10_000  # a key, not somebody's log


def read_secret(given: str | None, file: Path | None, *, option: str) -> str:
    """Return a secret from its option or from the option's `-file` twin; `-` is stdin.

    Raises:
        CommandRefused: none or both were given, or the file holds nothing or too much.
        OSError: the file cannot be read.
    """
    from app.errors import CommandRefused

    if (given is None) == (file is None):
        raise CommandRefused(f"Give {option} or {option}-file, one of them.")
    if file is not None:
        given = sys.stdin.read(MOST_CHARS + 1) if str(file) == "-" else file.read_text(encoding="utf-8")
    secret = (given or "").strip()
    if not secret or len(secret) > MOST_CHARS or not secret.isprintable():
        raise CommandRefused(f"{option} or its file must hold one line of text.")
    return secret
