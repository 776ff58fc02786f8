"""The one door to Postgres: transactions that commit on leaving, and nothing outside while one is open.

Owns the engine, the commit, and the words for "the database is away". Knows no table.
"""

import contextlib
import socket
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Protocol

import asyncpg
from sqlalchemy import exc
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

Session = AsyncConnection  # we speak of a session; it is one connection, inside one transaction

POOL_WAIT_SECONDS = 2.0  # a full pool is overload: say so at once instead of queueing requests
CONNECT_SECONDS = 5.0
STATEMENT_TIMEOUT_MS = 10_000
LOCK_TIMEOUT_MS = 5_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000

_transaction_open: ContextVar[bool] = ContextVar("transaction_open", default=False)


class DatabaseAway(Exception):
    """The database cannot be reached or cannot serve now; whether a commit in flight happened is unknown."""


class Database:
    """The engine and its pool. Opened once per process in `resources.py`."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine: AsyncEngine = create_async_engine(
            with_driver(url),
            hide_parameters=True,  # an exception's text goes to the log; parameters are prompts and keys
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            pool_pre_ping=False,  # costs a round trip per request; a broken connection is one 503 and the pool heals
            connect_args={
                "timeout": CONNECT_SECONDS,
                "server_settings": {
                    "application_name": "dashgate",
                    "timezone": "UTC",
                    "jit": "off",
                    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                    "lock_timeout": str(LOCK_TIMEOUT_MS),
                    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
                },
            },
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    async def close(self) -> None:
        await self.engine.dispose()

    @contextlib.asynccontextmanager
    async def connect(self, *, autocommit: bool) -> AsyncIterator[Session]:
        """Lend a connection; all ways in go through here, so that "away" has one name.

        Raises:
            DatabaseAway: it cannot be reached, broke off, or has no free connection within two seconds.
        """
        engine = self._autocommit if autocommit else self.engine
        try:
            async with engine.connect() as session:
                yield session
        except _AWAY as error:
            raise DatabaseAway(type(error).__name__) from error
        except exc.DBAPIError as error:
            if error.connection_invalidated or isinstance(error.orig, _AWAY) or _is_away(error):
                raise DatabaseAway(type(error.orig).__name__) from error
            raise


class HasDatabase(Protocol):
    """Anything that carries the database: Resources, or a test's stand-in."""

    @property
    def db(self) -> Database: ...


@contextlib.asynccontextmanager
async def transaction(res: HasDatabase) -> AsyncIterator[Session]:
    """Open a transaction; commit on leaving, roll back on an exception. The only place that commits.

    Raises:
        DatabaseAway: also when the connection broke during COMMIT; the caller must then assume neither outcome.
        RuntimeError: a transaction is already open here, which would make two facts out of one.
    """
    if _transaction_open.get():
        raise RuntimeError("a transaction is already open")
    mark = _transaction_open.set(True)
    try:
        async with res.db.connect(autocommit=False) as session, session.begin():
            yield session
    finally:
        _transaction_open.reset(mark)


@contextlib.asynccontextmanager
async def reading(res: HasDatabase) -> AsyncIterator[Session]:
    """Lend a session for single reads, each its own snapshot: saves BEGIN and COMMIT.

    Raises:
        DatabaseAway: as `transaction`.
    """
    mark = _transaction_open.set(True)
    try:
        async with res.db.connect(autocommit=True) as session:
            yield session
    finally:
        _transaction_open.reset(mark)


def in_transaction() -> bool:
    """Tell whether this task holds a database connection: then nothing outside may be called."""
    return _transaction_open.get()


def with_driver(url: str) -> str:
    """Return the URL with our driver in it; which driver is nobody else's business.

    >>> with_driver("postgresql://u:p@db/dashgate")
    'postgresql+asyncpg://u:p@db/dashgate'
    """
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def _is_away(error: exc.DBAPIError) -> bool:
    """Tell a server that is gone or shutting down (SQLSTATE classes 08, 53, 57P) from a refused statement."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state.startswith(("08", "53", "57P"))


_AWAY = (
    OSError,
    TimeoutError,
    socket.gaierror,
    exc.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidCatalogNameError,
)
