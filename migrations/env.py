"""Alembic's entry: runs on the connection it is given by app/models/migrating.py, and nowhere else.

Forward only in production. Every run takes an advisory lock first, so that two deploys at once wait for each other,
and gives up quickly on table locks instead of queueing traffic behind a migration.
"""

from alembic import context
from sqlalchemy import Connection, text

from app.models import Base

MIGRATION_LOCK = 0x64617368  # "dash": one migration at a time in one database
LOCK_TIMEOUT = "5s"


def run(connection: Connection) -> None:
    # The app's connections give up after seconds; another deploy, and a migration itself, may take longer.
    connection.execute(text("SET statement_timeout = 0"))
    connection.execute(text("SET lock_timeout = 0"))
    connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
        connection.execute(text("RESET statement_timeout"))
        connection.execute(text("RESET lock_timeout"))
        connection.commit()


run(context.config.attributes["connection"])
