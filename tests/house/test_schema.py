"""The schema: one line of migrations, equal to the models; and a ledger that cannot be changed."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app.lib.db import Database
from app.models import Base
from app.models.migrating import alembic_config, upgrade
from app.models.schema import newest_revision
from tests.databases import Databases, _new_name, _with_database, run_sql

MIGRATION_LOCK = 0x64617368  # of migrations/env.py, which runs when it is imported
LINE = """
    INSERT INTO ledger_entries (id, kind, team_id, api_key_id, task_id, account_id, main_account, region, model, unit,
                                quantity, billed_at)
    VALUES (gen_random_uuid(), 'usage', gen_random_uuid(), 'k', gen_random_uuid(), gen_random_uuid(), 'm', 'cn-beijing',
            'wan2.6-image', 'image', 1, now())
"""
COLUMNS = """
    SELECT table_name || '.' || column_name AS name, udt_name, is_nullable, column_default, numeric_precision,
           numeric_scale, character_maximum_length
    FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
"""
CONSTRAINTS = """
    SELECT conrelid::regclass || '.' || conname AS name, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conrelid::regclass::text <> 'alembic_version'
"""
INDEXES = """
    SELECT indexname AS name, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
"""
OPTIONS = """
    SELECT relname AS name, array_to_string(reloptions, ', ') AS options
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
"""


def revisions() -> list[Script]:
    return list(ScriptDirectory.from_config(alembic_config()).walk_revisions())


@pytest.fixture
def modelled_database(databases: Databases) -> Iterator[str]:
    """A database made from the models alone, without any migration."""
    url = _with_database(databases.server_url, name := _new_name())
    databases._admin(f'CREATE DATABASE "{name}"')
    asyncio.run(_on(url, Base.metadata.create_all, commit=True))
    yield url
    databases.drop(url)


def test_the_migrations_have_one_head() -> None:
    assert len(ScriptDirectory.from_config(alembic_config()).get_heads()) == 1


@pytest.mark.parametrize("script", revisions(), ids=lambda script: script.revision)
def test_a_revision_is_named_by_date_and_purpose_as_its_file_is(script: Script) -> None:
    assert re.fullmatch(r"20\d{6}_[a-z0-9_]+", script.revision)
    assert script.path.endswith(f"/{script.revision}.py")


@pytest.mark.parametrize("script", revisions(), ids=lambda script: script.revision)
def test_a_revision_is_no_older_than_the_one_before_it(script: Script) -> None:
    before = script.down_revision
    assert before is None or str(before)[:8] <= script.revision[:8]


def test_alembic_finds_no_difference_between_models_and_migrations(own_database: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)

    assert asyncio.run(_on(own_database, differences)) == []


# Alembic compares neither CHECKs nor storage options, and partial indexes only by their columns; Postgres tells all.
@pytest.mark.parametrize(
    "query", [COLUMNS, CONSTRAINTS, INDEXES, OPTIONS], ids=["columns", "constraints", "indexes", "options"]
)
def test_a_database_of_the_models_is_equal_to_a_migrated_one(
    own_database: str, modelled_database: str, query: str
) -> None:
    migrated = asyncio.run(_rows(own_database, query))
    assert migrated
    assert migrated == asyncio.run(_rows(modelled_database, query))


def test_a_migrated_database_is_at_the_newest_revision(own_database: str) -> None:
    at = asyncio.run(_rows(own_database, "SELECT version_num AS name FROM alembic_version"))
    assert at == {newest_revision(): {}}


async def test_a_migration_waits_for_another_however_impatient_its_connection_is(own_database: str) -> None:
    impatient = {"server_settings": {"lock_timeout": "100ms", "statement_timeout": "200ms"}}
    engine = create_async_engine(make_url(own_database).set(drivername="postgresql+asyncpg"), connect_args=impatient)
    other = await asyncpg.connect(own_database)
    await other.execute(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
    migrating = asyncio.create_task(upgrade(engine))
    done, _ = await asyncio.wait({migrating}, timeout=0.5)
    await other.close()
    assert not done
    await migrating
    await engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_entries SET quantity = 0",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries",
        "TRUNCATE ledger_entries CASCADE",
        "INSERT INTO ledger_entries SELECT * FROM ledger_entries ON CONFLICT (id) DO UPDATE SET quantity = 0",
    ],
    ids=["update", "delete", "truncate", "truncate_cascade", "upsert"],
)
def test_the_ledger_refuses_every_change(own_database: str, statement: str) -> None:
    asyncio.run(run_sql(own_database, LINE))
    with pytest.raises(asyncpg.RestrictViolationError, match="append only"):
        asyncio.run(run_sql(own_database, statement))
    assert len(asyncio.run(_rows(own_database, "SELECT id::text AS name, quantity FROM ledger_entries"))) == 1


async def _on(url: str, work: Any, *, commit: bool = False) -> Any:
    """Run a synchronous function on a connection."""
    database = Database(url)
    try:
        async with database.engine.connect() as connection:
            result = await connection.run_sync(work)
            if commit:
                await connection.commit()
            return result
    finally:
        await database.close()


async def _rows(url: str, query: str) -> dict[str, dict[str, Any]]:
    """Return what a query finds by the column `name`."""
    connection = await asyncpg.connect(url)
    try:
        rows = [dict(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()
    return {row.pop("name"): row for row in rows}
