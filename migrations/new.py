"""`make migration m="…"`: write the next revision by comparing the models with a freshly migrated database.

Revision ids are date and slug, so that the files sort and read as a history.
"""

import asyncio
import re
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from alembic import command

from app.embedded import running_postgres
from app.lib.db import Database
from app.models.migrating import alembic_config, upgrade


def revision_id(message: str, *, day: datetime) -> str:
    """Return the id of a new revision.

    >>> revision_id("Add the webhook tables!", day=datetime(2026, 11, 22))
    '20261122_add_the_webhook_tables'
    """
    slug = re.sub(r"[^a-z0-9]+", "_", message.lower()).strip("_")
    return f"{day:%Y%m%d}_{slug}"


async def write(message: str, url: str) -> None:
    database = Database(url)
    try:
        await upgrade(database.engine)
        async with database.engine.connect() as connection:
            await connection.run_sync(
                lambda sync: command.revision(
                    alembic_config(sync),
                    message=message,
                    autogenerate=True,
                    rev_id=revision_id(message, day=datetime.now(UTC)),
                )
            )
    finally:
        await database.close()


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit('usage: make migration m="what it does"')
    with (
        tempfile.TemporaryDirectory(prefix="dashgate-migration-") as scratch,
        running_postgres(Path(scratch), durable=False) as server,
    ):
        asyncio.run(write(sys.argv[1], server.url))
