"""`dashgate doctor`: is this installation well? Every line that says so stands for a call that was really made.

Later parts add their checks to one of the lists below. Whatever a check raises is its finding.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from app.cli.account_checks import account_checks
from app.cli.console import AsJson, Report, run, table
from app.cli.findings import Check, Finding, Level
from app.cli.troubles import explain

if TYPE_CHECKING:
    from uuid import UUID

    from app.resources import Resources

SKEW_SECONDS = 2.0  # more, and signed requests and links begin to fail elsewhere
PROOF = b"dashgate doctor"


def doctor(as_json: AsJson = False) -> None:
    """Check everything this installation leans on, by using it. Exits with 1 when anything failed."""
    run(_examine, as_json=as_json, checked=False)


async def _examine(res: Resources) -> Report:
    found = [(name, await _outcome(check, res)) for name, check in FIRST]
    if all(finding.level is not Level.FAILED for name, finding in found if name == "database"):
        for list_checks in ON_DATABASE:
            found += [(name, await _outcome(check, res)) for name, check in await list_checks(res)]
    failed = any(finding.level is Level.FAILED for _, finding in found)
    lines: list[dict[str, Any]] = [
        {"check": name, "level": str(finding.level), "text": finding.text} for name, finding in found
    ]
    made = table(["check", "", "finding"], ([line["check"], line["level"], line["text"]] for line in lines))
    told = "Something needs you: see the lines that say failed." if failed else "Nothing failed."
    return Report({"well": not failed, "findings": lines}, [made, told], failed=failed)


async def _outcome(check: Callable[[Resources], Awaitable[Finding]], res: Resources) -> Finding:
    try:
        return await check(res)
    except Exception as error:  # noqa: BLE001 -- whatever breaks a check is what it was made to find
        return Finding(Level.FAILED, explain(error).message)


async def _catalogue(res: Resources) -> Finding:
    from app.routing.catalogue import load_catalogue

    file = res.settings.catalogue_file
    models = load_catalogue(file).models
    return Finding(Level.OK, f"{', '.join(sorted(models))} ({'ours alone' if file is None else f'ours and {file}'})")


async def _redis(res: Resources) -> Finding:
    from redis.exceptions import RedisError

    try:
        return Finding(Level.OK, await res.signals.check())
    except (RedisError, OSError, TimeoutError) as error:
        return Finding(Level.FAILED, f"{type(error).__name__}: check DASHGATE_REDIS_URL; without it all is slower")


async def _database(res: Resources) -> Finding:
    from app.lib.db import reading
    from app.models.schema import newest_revision
    from app.models.store import present_revision, server_version
    from app.resources import OLDEST_POSTGRES

    async with reading(res) as session:
        version, present = await server_version(session), await present_revision(session)
    newest = newest_revision()
    text = f"Postgres {version // 10_000}.{version % 10_000}, schema {present or 'none'}"
    if version < OLDEST_POSTGRES:
        return Finding(Level.FAILED, f"{text}: E03 use Postgres {OLDEST_POSTGRES // 10_000} or newer")
    if present != newest:
        return Finding(Level.FAILED, f"{text}, this version needs {newest}: E04 run `dashgate migrate`")
    return Finding(Level.OK, text)


async def _secret_key(res: Resources) -> Finding:
    from app.lib.db import transaction
    from app.models.store import keep_fingerprint

    ours = res.keyring.fingerprint()
    async with transaction(res) as session:
        known = await keep_fingerprint(session, ours)
    if known != ours:
        text = f"E06 the database was sealed with the key {known}, DASHGATE_SECRET_KEY is {ours}: set the first one"
        return Finding(Level.FAILED, text)
    opened = res.keyring.open(res.keyring.seal(PROOF, place="doctor"), place="doctor")
    return Finding(Level.OK if opened == PROOF else Level.FAILED, f"seals and opens; fingerprint {ours}")


async def _clock(res: Resources) -> Finding:
    from app.cli.store import server_now
    from app.lib.clock import seconds_between
    from app.lib.db import reading

    async with reading(res) as session:
        before, there, after = res.clock.now(), await server_now(session), res.clock.now()
    skew = seconds_between(before + (after - before) / 2, there)
    level = Level.WARNING if abs(skew) > SKEW_SECONDS else Level.OK
    return Finding(level, f"the database's clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}")


async def _destination_checks(res: Resources) -> list[Check]:
    from app.delivery.store import read_destinations_all_teams
    from app.lib.db import reading
    from app.teams.teams import list_teams

    async with reading(res) as session:
        places = {row["team_id"]: row["id"] for row in await read_destinations_all_teams(session)}
    return [
        (f"destination of {team['slug']}", partial(_destination, team_id=team["id"], place_id=places.get(team["id"])))
        for team in await list_teams(res)
    ]


async def _destination(res: Resources, *, team_id: UUID, place_id: UUID | None) -> Finding:
    """Put, read and remove a small object."""
    from app.delivery.destinations import get_store
    from app.delivery.storage import StoreTrouble, probe

    if place_id is None:
        return Finding(Level.WARNING, "missing: its files are kept nowhere; set one with `dashgate destination set`")
    store, links = await get_store(res, team_id, place_id)
    try:
        await probe(store)
    except StoreTrouble as trouble:
        return Finding(Level.FAILED, str(trouble))
    return Finding(Level.OK, f"a small object was put, read and removed; {links} links")


async def _basics(_: Resources) -> list[Check]:
    return [("secret key", _secret_key), ("clock", _clock)]


FIRST: Sequence[Check] = (("catalogue", _catalogue), ("redis", _redis), ("database", _database))
ON_DATABASE: Sequence[Callable[[Resources], Awaitable[list[Check]]]] = (
    _basics,
    account_checks,
    _destination_checks,
)
