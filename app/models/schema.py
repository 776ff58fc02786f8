"""The newest schema revision, read from the migration files' own words: serving processes need not load Alembic."""

import re
from functools import cache
from pathlib import Path

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_REVISION = re.compile(r'^(revision|down_revision) = "([^"]+)"', re.MULTILINE)


@cache
def newest_revision() -> str:
    """Return the one revision that no other comes after (a house test demands that there is just one)."""
    words = [_REVISION.findall(file.read_text(encoding="utf-8")) for file in MIGRATIONS.glob("versions/*.py")]
    made: set[str] = {name for file in words for word, name in file if word == "revision"}
    before = {name for file in words for word, name in file if word == "down_revision"}
    (newest,) = made - before
    return newest
