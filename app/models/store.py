"""Facts about the installation as a whole: its secret key's fingerprint, its server's version."""

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert

from app.lib.db import Session
from app.models.installation import Installation

FINGERPRINT = "secret_key_fingerprint"


async def find_fingerprint(session: Session) -> str | None:
    """Return the fingerprint this database knows, or None when no process has started on it yet."""
    return await session.scalar(select(Installation.value).where(Installation.name == FINGERPRINT))


async def keep_fingerprint(session: Session, fingerprint: str) -> str:
    """Return the fingerprint this database knows; the first process to ask writes its own."""
    if known := await find_fingerprint(session):
        return known
    await session.execute(
        insert(Installation).values(name=FINGERPRINT, value=fingerprint).on_conflict_do_nothing(index_elements=["name"])
    )
    return str(await session.scalar(select(Installation.value).where(Installation.name == FINGERPRINT)))


async def present_revision(session: Session) -> str | None:
    """Return the schema revision the database is at, or None when it was never migrated."""
    known = await session.scalar(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
    return await session.scalar(text("SELECT version_num FROM alembic_version")) if known else None


async def server_version(session: Session) -> int:
    """Return the server's version as a number, e.g. 150018: also a real round trip for health checks."""
    return int(await session.scalar(text("SELECT current_setting('server_version_num')")) or 0)
