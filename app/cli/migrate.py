"""`dashgate migrate`: bring the database to the schema of this version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.cli.console import AsJson, Report, run

if TYPE_CHECKING:
    from app.resources import Resources


def migrate(as_json: AsJson = False) -> None:
    """Bring the database to the schema of this version. Another process doing the same is waited for."""
    run(_migrate, as_json=as_json, checked=False)


async def _migrate(res: Resources) -> Report:
    before, after = await bring_to_newest(res)
    told = f"The database is at {after} already." if before == after else f"Migrated: {before or 'empty'} → {after}"
    return Report({"from": before, "to": after}, [told])


async def bring_to_newest(res: Resources) -> tuple[str | None, str | None]:
    """Run the migrations; return the revisions before and after.

    Raises:
        NotReady: the database cannot be reached.
    """
    from app.errors import NotReady
    from app.lib.db import DatabaseAway, reading
    from app.models.migrating import upgrade
    from app.models.store import present_revision

    try:
        async with reading(res) as session:
            before = await present_revision(session)
    except DatabaseAway as error:
        hint = "check DASHGATE_DATABASE_URL and the server"
        raise NotReady("E01", "the database cannot be reached", hint) from error
    await upgrade(res.db.engine)
    async with reading(res) as session:
        return before, await present_revision(session)
