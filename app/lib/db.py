"""The one door to Postgres: transactions that commit on leaving, and nothing outside while one is open.

Owns both ways in and the commit, and the words for "the database is away". Knows no table.

* `transaction` and `reading` lend a SQLAlchemy connection: for everything.
* `direct_transaction` and `direct_reading` lend the driver's own: for the create and the status read, which make up
  nearly all calls; measured at a fifth of the CPU. They take `Statement`s, which run on both.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast

import asyncpg
from sqlalchemy import exc, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")

# We speak of a session; it is one connection, for as long as it is lent.
Session = AsyncConnection

POOL_WAIT_SECONDS = 2.0  # a full pool is overload: say so at once instead of queueing requests
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 12.0  # above the server's own limit of ten: a server that has gone silent keeps no limits
HOLD_ON_SECONDS = 60.0
HOLD_ON_AGAIN_SECONDS = 0.5
LISTEN_AGAIN_SECONDS = 1.0
STILL_THERE_SECONDS = 10.0  # a listening connection says nothing by itself: a lost one is noticed so late at most
SERVER_SETTINGS = {
    "application_name": "dashgate",
    "timezone": "UTC",
    "jit": "off",
    "statement_timeout": "10s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
}

UNIQUE_VIOLATION = "23505"

_transaction_open: ContextVar[bool] = ContextVar("transaction_open", default=False)


class DirectSession(Protocol):
    """What we use of the driver's connection, which has no types of its own."""

    async def fetch(self, query: str, *args: Any) -> Sequence[Mapping[str, Any]]: ...

    async def execute(self, query: str, *args: Any) -> str: ...

    def transaction(self) -> contextlib.AbstractAsyncContextManager[Any]: ...


AnySession = Session | DirectSession


class DatabaseAway(Exception):
    """The database cannot be reached or cannot serve now; whether a commit in flight happened is unknown."""


class Duplicate(Exception):
    """A unique key refused a row."""


class Statement:
    """A constant SQL statement with `:name` parameters, for sessions of both kinds.

    >>> Statement("SELECT cast(:a AS text), :b, cast(:a AS text)").positional
    'SELECT cast($1 AS text), $2, cast($1 AS text)'
    """

    def __init__(self, sql: str) -> None:
        self.named = text(sql)
        self.names = list(dict.fromkeys(_PARAMETER.findall(sql)))
        self.positional = _PARAMETER.sub(lambda found: f"${self.names.index(found[1]) + 1}", sql)


class Database:
    """Both pools. Opened once per process in `resources.py`; connects when first used."""

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self._url = url
        self._half = max(1, pool_size // 2)
        self.engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            hide_parameters=True,  # an exception's text goes to the log; parameters are prompts and keys
            pool_size=self._half,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS,
            pool_pre_ping=False,  # costs a round trip per use; a broken connection is one 503, and the pool heals
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._direct: asyncpg.Pool | None = None

    async def close(self) -> None:
        """Close both pools."""
        await self.engine.dispose()
        if self._direct is not None:
            self._direct.terminate()

    @contextlib.asynccontextmanager
    async def connect(self, *, autocommit: bool) -> AsyncIterator[Session]:
        """Lend a SQLAlchemy connection.

        Raises:
            DatabaseAway: it cannot be reached, broke off, or has no free connection within two seconds.
        """
        with _named_troubles():
            async with (self._autocommit if autocommit else self.engine).connect() as session:
                yield session

    @contextlib.asynccontextmanager
    async def connect_direct(self) -> AsyncIterator[DirectSession]:
        """Lend a connection of the driver's own pool.

        Raises:
            DatabaseAway: as `connect`.
        """
        with _named_troubles():
            if self._direct is None:
                # Nothing of a session is changed by its users, so there is nothing to reset: saves a round trip.
                self._direct = asyncpg.create_pool(
                    min_size=0, max_size=self._half, connect=lambda *_, **__: self._connect(), reset=_leave_as_it_is
                )
                await self._direct
            async with self._direct.acquire(timeout=POOL_WAIT_SECONDS) as session:
                yield session

    async def notify(self, channel: str, message: str) -> None:
        """Say something to all who listen on a channel, in a transaction of its own.

        Raises:
            DatabaseAway: as `connect`.
        """
        async with self.connect(autocommit=True) as session:
            await session.execute(select(func.pg_notify(channel, message)))

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Hear what is said on a channel until cancelled, on a connection beside the pools.

        Database away: tries again every second; what was said meanwhile is never heard.
        """
        while True:
            with contextlib.suppress(DatabaseAway), _named_troubles():
                await self._listen(channel, heard)
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def _listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """Hear until the connection breaks."""
        connection = await self._connect()
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(channel, lambda _, __, ___, message: heard(message))
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(lost.wait(), STILL_THERE_SECONDS)
                await connection.execute("VALUES (1)")
        finally:
            connection.terminate()

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._url, timeout=CONNECT_SECONDS, command_timeout=ANSWER_SECONDS, server_settings=SERVER_SETTINGS
        )


class HasDatabase(Protocol):
    """Anything that carries the database: Resources, or a test's stand-in."""

    @property
    def db(self) -> Database: ...


@contextlib.asynccontextmanager
async def transaction(res: HasDatabase) -> AsyncIterator[Session]:
    """Open a transaction; commit on leaving, roll back on an exception. Only this file commits.

    Raises:
        DatabaseAway: also when the connection broke during COMMIT; the caller must then assume neither outcome.
        RuntimeError: a session is lent here already, which would make two facts out of one.
    """
    with _marked_open():
        async with res.db.connect(autocommit=False) as session, session.begin():
            yield session


@contextlib.asynccontextmanager
async def reading(res: HasDatabase) -> AsyncIterator[Session]:
    """Lend a session for single reads, each its own snapshot: saves BEGIN and COMMIT.

    Raises:
        DatabaseAway, RuntimeError: as `transaction`.
    """
    with _marked_open():
        async with res.db.connect(autocommit=True) as session:
            yield session


@contextlib.asynccontextmanager
async def direct_transaction(res: HasDatabase) -> AsyncIterator[DirectSession]:
    """As `transaction`, on the driver itself.

    Raises:
        DatabaseAway, RuntimeError: as `transaction`.
    """
    with _marked_open():
        async with res.db.connect_direct() as session, session.transaction():
            yield session


@contextlib.asynccontextmanager
async def direct_reading(res: HasDatabase) -> AsyncIterator[DirectSession]:
    """As `reading`, on the driver itself.

    Raises:
        DatabaseAway, RuntimeError: as `transaction`.
    """
    with _marked_open():
        async with res.db.connect_direct() as session:
            yield session


async def fetch(session: AnySession, statement: Statement, params: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Run a statement on either kind of session; return its rows.

    Raises:
        Duplicate: a unique key refused it.
    """
    try:
        if isinstance(session, AsyncConnection):
            found = (await session.execute(statement.named, params)).mappings().all()
            return cast(Sequence[Mapping[str, Any]], found)
        return await session.fetch(statement.positional, *(params[name] for name in statement.names))
    except (exc.IntegrityError, asyncpg.UniqueViolationError) as error:
        if getattr(getattr(error, "orig", error), "sqlstate", None) != UNIQUE_VIOLATION:
            raise
        raise Duplicate(type(error).__name__) from error


async def run(session: AnySession, statement: Statement, params: Mapping[str, Any]) -> None:
    """Run a statement that returns no rows on either kind of session."""
    if isinstance(session, AsyncConnection):
        await session.execute(statement.named, params)
    else:
        await session.execute(statement.positional, *(params[name] for name in statement.names))


async def hold_on(record: Callable[[], Awaitable[T]], *, monotonic: Callable[[], float]) -> T:
    """Record what only we know, again and again while the database is away; the record must bear repeating.

    Raises:
        DatabaseAway: it stayed away for a minute.
    """
    give_up = monotonic() + HOLD_ON_SECONDS
    while True:
        try:
            return await record()
        except DatabaseAway:
            if monotonic() >= give_up:
                raise
            await asyncio.sleep(HOLD_ON_AGAIN_SECONDS)


def in_transaction() -> bool:
    """Tell whether this task holds a database connection: then nothing outside may be called."""
    return _transaction_open.get()


@contextlib.contextmanager
def _marked_open() -> Iterator[None]:
    if _transaction_open.get():
        raise RuntimeError("a transaction is already open")
    mark = _transaction_open.set(True)
    try:
        yield
    finally:
        _transaction_open.reset(mark)


@contextlib.contextmanager
def _named_troubles() -> Iterator[None]:
    """Say "away" for all the ways in which two libraries say it."""
    try:
        yield
    except exc.DBAPIError as error:
        if error.connection_invalidated or _is_away(error.orig):
            raise DatabaseAway(type(error.orig).__name__) from error
        raise
    except (OSError, TimeoutError, exc.TimeoutError, asyncpg.InterfaceError) as error:
        raise DatabaseAway(type(error).__name__) from error
    except asyncpg.PostgresError as error:
        if _is_away(error):
            raise DatabaseAway(type(error).__name__) from error
        raise


def _is_away(error: BaseException | None) -> bool:
    """Tell a server that cannot serve now from a refused statement, by SQLSTATE.

    Gone, full, starting or stopping (08, 53, 57P), not made yet (3D), a lock or statement that took too long (55P03,
    57014), a deadlock or a conflict (40), a primary that was demoted (25006), a transaction ended for idling (25P03).
    """
    state = getattr(error, "sqlstate", None) or ""
    return state.startswith(("08", "53", "57P", "3D", "40", "55P03", "57014", "25006", "25P03"))


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    """Reset nothing."""


_PARAMETER = re.compile(r"(?<!:):([a-z_]+)\b")
