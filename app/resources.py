"""Everything long-lived, opened once and closed in reverse; the only reader of settings.

Four composition roots open it: the web process, the worker, the commands, the tests. Everything else receives it as
its first argument. To fake a part, build `Resources` with another part.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit
from uuid import UUID

from app.errors import NotReady
from app.lib.calls import Calls
from app.lib.clock import Clock
from app.lib.crypto import Keyring
from app.lib.db import Database, DatabaseAway, reading, transaction
from app.lib.http import Outside
from app.lib.lines import Lines
from app.lib.rates import Rates
from app.lib.redis import RedisDoor
from app.lib.signals import Signals
from app.lib.together import Together
from app.lib.ttl import TtlCache
from app.lib.waiters import Waiters
from app.models.schema import newest_revision
from app.models.store import keep_fingerprint, present_revision, server_version
from app.settings import Settings

OLDEST_POSTGRES = 150_000
API_KEY_LIFE_SECONDS = 3.0  # a revoked key stops within five seconds on every process: cache life plus a slow load
ODDITY_LIFE_SECONDS = 86_400.0
ACCOUNTS_LIFE_SECONDS = 2.0
PASSED_ON_LIFE_SECONDS = 3_600.0  # a temporary upload lives two days, and is read soon after it is named in a call
MOST_API_KEYS = 20_000
MOST_READS_TOGETHER = 200


@dataclass(frozen=True, slots=True)
class Filled:
    """A request body as it leaves for the upstream, and the headers that it then needs."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)


class FillInputs(Protocol):
    """How a step puts into a body what the upstream can read in place of our own links; delivery/inputs.py."""

    async def __call__(
        self, res: "Resources", *, team_id: UUID, account_id: UUID, model: str, body: bytes
    ) -> Filled: ...


async def leave_as_it_is(res: "Resources", *, team_id: UUID, account_id: UUID, model: str, body: bytes) -> Filled:
    """Fill nothing in: for processes that send no creates."""
    return Filled(body)


@dataclass(frozen=True, slots=True)
class Resources:
    """The parts. Caches hold only what may be a few seconds old."""

    settings: Settings
    clock: Clock
    db: Database
    outside: Outside
    keyring: Keyring
    signals: Signals
    rates: Rates  # how often teams call
    calls: Calls  # what goes on after its request has left
    lines: Lines[str]  # relay/entrance.py: who waits for room upstream
    leaving: dict[bytes, asyncio.Future[None]]  # tasks/leaving.py: marks under way, by what was asked
    awaited: set[UUID]  # tasks/waiting.py: synchronous calls that run as tasks, waited for on a connection here
    api_keys: TtlCache[str, Any]  # teams/authenticate.py: what is known of an API key id
    accounts: TtlCache[str, Any]  # routing/accounts.py: all accounts
    reads: Together[tuple[UUID, UUID], Any]  # delivery/answers.py: (team, task) of status reads that come at once
    standings: TtlCache[tuple[UUID, UUID] | None, Any]  # tasks/standing.py: (team, task); None: which teams queue
    oddities: TtlCache[Any, bool]  # tasks/oddities.py: what was told already
    waiters: Waiters[Any]  # whoever waits for a task
    streams: Counter[UUID]  # api/tasks.py: how many streams of events each team has open here
    stores: TtlCache[UUID, Any]  # delivery/destinations.py: opened places
    passed_on: TtlCache[tuple[UUID, UUID, str], str]  # delivery/inputs.py: oss:// by (asset, account, model)
    fill_inputs: FillInputs  # for tasks/, which is below the room that can do it


@contextlib.asynccontextmanager
async def open_resources(
    settings: Settings, *, clock: Clock | None = None, fill_inputs: FillInputs = leave_as_it_is
) -> AsyncIterator[Resources]:
    """Open every part, without asking anything of the outside. Processes that send creates pass `fill_inputs`.

    Raises:
        NotReady: a setting that everything needs is missing.
    """
    clock = clock or Clock()
    async with contextlib.AsyncExitStack() as stack:
        db = Database(_database_url(settings), pool_size=settings.database_pool_size)
        stack.push_async_callback(db.close)
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        redis = await stack.enter_async_context(RedisDoor(redis_url))
        signals = await stack.enter_async_context(Signals(redis, db))
        waiters: Waiters[Any] = Waiters(signals.hear_changes)
        stack.push_async_callback(waiters.close)
        yield Resources(
            settings=settings,
            clock=clock,
            db=db,
            outside=await stack.enter_async_context(Outside()),
            keyring=_keyring(settings),
            signals=signals,
            rates=Rates(redis),
            calls=Calls(),
            lines=Lines(),
            leaving={},
            awaited=set(),
            api_keys=TtlCache(life_seconds=API_KEY_LIFE_SECONDS, most=MOST_API_KEYS, monotonic=clock.monotonic),
            accounts=TtlCache(life_seconds=ACCOUNTS_LIFE_SECONDS, most=1, monotonic=clock.monotonic),
            reads=Together(most=MOST_READS_TOGETHER),
            oddities=TtlCache(life_seconds=ODDITY_LIFE_SECONDS, most=10_000, monotonic=clock.monotonic),
            standings=TtlCache(life_seconds=ACCOUNTS_LIFE_SECONDS, most=10_000, monotonic=clock.monotonic),
            waiters=waiters,
            streams=Counter(),
            stores=TtlCache(life_seconds=ACCOUNTS_LIFE_SECONDS, most=1_000, monotonic=clock.monotonic),
            passed_on=TtlCache(life_seconds=PASSED_ON_LIFE_SECONDS, most=10_000, monotonic=clock.monotonic),
            fill_inputs=fill_inputs,
        )


async def check_ready(res: Resources) -> None:
    """Refuse to start on a database that this process must not work on.

    Raises:
        NotReady: unreachable, too old, at another schema, or sealed with another secret key.
    """
    try:
        async with reading(res) as session:
            version = await server_version(session)
            present = await present_revision(session)
        if version < OLDEST_POSTGRES:
            raise NotReady("E03", f"Postgres {version // 10000} is too old", "use Postgres 15 or newer")
        if present != newest_revision():
            raise NotReady(
                "E04",
                f"the database is at schema {present or 'none'}, this version needs {newest_revision()}",
                "run `dashgate migrate`",
            )
        async with transaction(res) as session:
            known = await keep_fingerprint(session, res.keyring.fingerprint())
    except (DatabaseAway, OSError) as error:
        raise NotReady("E01", "the database cannot be reached", "check DASHGATE_DATABASE_URL and the server") from error
    if known != res.keyring.fingerprint():
        raise NotReady(
            "E06",
            "DASHGATE_SECRET_KEY is not the key this database was sealed with",
            "set the key it was first started with; without it, stored keys and bodies cannot be read",
        )


def allow_base_url(res: Resources, base_url: str) -> None:
    """Let calls out to a base URL that the operator gave."""
    parts = urlsplit(base_url)
    scheme: Literal["http", "https"] = "http" if parts.scheme == "http" else "https"
    res.outside.allow(parts.hostname or "", parts.port or (80 if scheme == "http" else 443), scheme)


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise NotReady(
            "E01",
            "no database",
            "set DASHGATE_DATABASE_URL (postgresql://…), or DASHGATE_EMBEDDED=1 to run one in the state directory",
        )
    return settings.database_url.get_secret_value()


def _keyring(settings: Settings) -> Keyring:
    if settings.secret_key is None:
        raise NotReady("E02", "no secret key", "set DASHGATE_SECRET_KEY to 32 random characters or more, and keep them")
    return Keyring(settings.secret_key.get_secret_value())
