"""Owns servers from wheels: Postgres for the demo and the tests, Valkey for the tests, each a child of this process.

It must not know what they are used for, and uses the standard library only: callers are the command line, the demo and
the test fixtures. Not for production: those read DASHGATE_DATABASE_URL.
"""

from app.embedded.errors import EmbeddedServerError
from app.embedded.postgres import PostgresServer, running_postgres
from app.embedded.valkey import ValkeyServer, running_valkey

__all__ = ["EmbeddedServerError", "PostgresServer", "ValkeyServer", "running_postgres", "running_valkey"]
