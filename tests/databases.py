"""Real Postgres and Redis for tests: those given by URL, else embedded ones. Touches no database it did not make."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

from app.embedded import running_postgres, running_valkey
from app.lib.db import Database
from app.models.migrating import upgrade

STATE_DIR = Path(".dashgate")
# Deleting with triggers off: the ledger refuses it otherwise, and foreign keys would demand an order.
CLEAN = """
    DO $$ DECLARE name text; BEGIN
        SET LOCAL session_replication_role = replica;
        FOR name IN SELECT tablename FROM pg_tables
            WHERE schemaname = 'public' AND tablename <> 'alembic_version'
        LOOP EXECUTE 'DELETE FROM ' || quote_ident(name); END LOOP;
    END $$
"""


@dataclass(frozen=True)
class Databases:
    """A server, and a migrated template of which databases are cloned."""

    server_url: str
    template: str

    def clone(self) -> str:
        """Make a fresh migrated database; return its URL."""
        name = _new_name()
        self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{self.template}"')
        return _with_database(self.server_url, name)

    def drop(self, url: str) -> None:
        """Drop a database that `clone` made."""
        self._admin(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    def _admin(self, statement: str) -> None:
        asyncio.run(run_sql(self.server_url, statement))


@contextlib.contextmanager
def running_databases() -> Iterator[Databases]:
    """Provide a server with a template built by running the migrations; drop what was made."""
    with contextlib.ExitStack() as stack:
        url = os.environ.get("DASHGATE_DATABASE_URL")
        if not url:
            url = stack.enter_context(running_postgres(STATE_DIR, durable=False, announce=lambda _: None)).url
        template = _new_name()
        databases = Databases(url, template)
        databases._admin(f'CREATE DATABASE "{template}"')
        stack.callback(databases.drop, _with_database(url, template))
        asyncio.run(_migrate(_with_database(url, template)))
        yield databases


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """Provide a Redis URL: the one given, else an embedded server's."""
    url = os.environ.get("DASHGATE_REDIS_URL")
    if url:
        yield url
        return
    with running_valkey(STATE_DIR, announce=lambda _: None) as server:
        yield server.url


async def run_sql(url: str, statement: str) -> None:
    """Run one statement outside any transaction."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _migrate(url: str) -> None:
    database = Database(url)
    try:
        await upgrade(database.engine)
    finally:
        await database.close()


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _new_name() -> str:
    return f"dashgate_test_{secrets.token_hex(6)}"
