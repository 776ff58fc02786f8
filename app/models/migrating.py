"""Bring a database to the newest schema.

Owns how Alembic is run; the revisions themselves are in `migrations/`. Knows no settings: it is given an engine.
"""

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from app.models.schema import MIGRATIONS


def alembic_config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration; there is no ini file, everything it needs is here."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("file_template", "%%(rev)s")
    config.attributes["connection"] = connection
    return config


async def upgrade(engine: AsyncEngine, revision: str = "head") -> None:
    """Run the migrations up to `revision`, each in its own transaction; waits for another process doing the same."""
    async with engine.connect() as connection:
        await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), revision))
