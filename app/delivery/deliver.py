"""Deliver: copy finished files to their team's place, verified, before the upstream's links die.

Owns what becomes of each asset. A task never fails by its delivery: its last file ends it, or the grace does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.delivery import download, storage, store
from app.delivery.destinations import get_store
from app.errors import DashgateError
from app.lib import leases
from app.lib.backoff import delay_seconds
from app.lib.db import DatabaseAway, Session, hold_on, reading, transaction
from app.lib.loop import side_by_side
from app.lib.metrics import ASSET_BYTES, ASSETS_FAILED, ASSETS_STORED, LEASES_LOST
from app.models.assets import AssetState
from app.models.tasks import State
from app.resources import Resources
from app.routing.accounts import get_account
from app.tasks.finish import finish
from app.tasks.rescue import hold_poison, is_poison
from app.tasks.store import has_unsettled_assets

log = structlog.get_logger()

RETRY_SECONDS = (2.0, 5.0, 15.0, 60.0, 300.0)  # then every five minutes until the upstream's link is dead
WAITING_FOR_PEOPLE_SECONDS = (60.0, 300.0)  # a host to allow, a bucket to repair


@dataclass(frozen=True, slots=True)
class Copied:
    """The file is stored and verified."""

    object_key: str
    facts: download.Facts


@dataclass(frozen=True, slots=True)
class NotCopied:
    """The file is not stored. `state` is what its row will say; `again` whether another attempt makes sense."""

    state: AssetState
    reason: str
    again: bool = True


async def deliver_due(res: Resources, *, limit: int = 8) -> int:
    """Copy due files, side by side; return how many were worked on (0 means idle).

    1. One transaction: claim `deliver` work.
    2. Outside, per file: read the upstream's link and write the team's place in one stream, then verify.
    3. One transaction per file: write back the work; the asset `stored` (or why not); and when it was the task's
       last, the end of the task.

    A crash before 3 leaves the lease to lapse and the same bytes to be found under the same key: they are compared,
    not overwritten. A lost lease does not undo what was stored: that is a fact.
    """
    async with transaction(res) as session:
        claimed = await leases.claim(
            session,
            "deliver",
            limit=limit,
            lease_seconds=res.settings.delivery_lease_seconds,
            monotonic=res.clock.monotonic(),
            now=res.clock.for_sql(),
        )
    await side_by_side(_deliver(res, lease) for lease in claimed)
    return len(claimed)


async def _deliver(res: Resources, lease: leases.Lease) -> None:
    async with reading(res) as session:
        asset = await store.find_asset_all_teams(session, UUID(lease.key))
    if asset is None or asset["state"] == AssetState.STORED:
        async with transaction(res) as session:
            await leases.finish(session, lease)
        return
    if is_poison(lease):
        await hold_poison(res, lease)
        return
    try:
        async with _kept_leased(res, lease):
            outcome = await _copy(res, asset)
    except Exception:
        # a surprise: push the file away before it is raised, or it would come back with every lease
        await _record_not_copied(res, lease, asset=asset, outcome=NotCopied(AssetState.WAITING, "internal_error"))
        raise
    match outcome:
        case Copied():
            copied = outcome
            await hold_on(lambda: _record_stored(res, lease, asset=asset, copied=copied), monotonic=res.clock.monotonic)
        case NotCopied():
            await _record_not_copied(res, lease, asset=asset, outcome=outcome)


@contextlib.asynccontextmanager
async def _kept_leased(res: Resources, lease: leases.Lease) -> AsyncIterator[None]:
    """Lengthen a lease for as long as a copy takes: a dead worker's file is free within one lease."""
    renewing = asyncio.ensure_future(_renew(res, lease))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)


async def _renew(res: Resources, lease: leases.Lease) -> None:
    seconds = res.settings.delivery_lease_seconds
    is_ours = True
    while is_ours:
        await asyncio.sleep(seconds / 3)
        with contextlib.suppress(DatabaseAway):  # the next third may find it back
            async with transaction(res) as session:
                is_ours = await leases.renew(session, lease, lease_seconds=seconds, now=res.clock.for_sql())


async def _copy(res: Resources, asset: RowMapping) -> Copied | NotCopied:
    """Stream one file from the upstream to its place; every expected trouble is a value."""
    try:
        url = res.keyring.open(asset["source"], place=f"assets.source:{asset['id']}").decode()
        account = await get_account(res, asset["account_id"])
        place, _ = await get_store(res, asset["team_id"], asset["place_id"])
        limits = download.Limits(file_hosts=account.file_hosts)
        async with download.open_source(res.outside, url, limits=limits, clock=res.clock) as source:
            key = object_key(asset, extension=source.kind.extension)
            await place.put(key, source.chunks(), size_bytes=source.size_bytes, content_type=source.kind.content_type)
            return Copied(key, source.facts())
    except download.HostNotAllowed as trouble:
        log.error("asset.held", asset=str(asset["id"]), host=trouble.host)
        return NotCopied(AssetState.HELD, "host_not_allowed")
    except (download.SourceGone, download.SourceRefused) as trouble:
        return NotCopied(AssetState.GIVEN_UP, getattr(trouble, "why", "gone"), again=False)
    except download.LinkExpired:
        return NotCopied(AssetState.WAITING, "link_refused")
    except download.SourceFault:
        return NotCopied(AssetState.WAITING, "source_fault")
    except storage.StoreFault:
        return NotCopied(AssetState.WAITING, "storage_fault")
    except storage.ObjectConflict:
        return NotCopied(AssetState.BLOCKED, "object_conflict")
    except storage.StoreTrouble as trouble:
        log.error("asset.blocked", asset=str(asset["id"]), team=asset["team"], reason=str(trouble))
        return NotCopied(AssetState.BLOCKED, "storage_refused")
    except DashgateError as trouble:
        return NotCopied(AssetState.BLOCKED, trouble.code)


def object_key(asset: RowMapping, *, extension: str) -> str:
    """Return where a file goes, below the place's prefix: made by us, the same at every attempt."""
    day: datetime = asset["task_created_at"]
    return f"{asset['team']}/{day:%Y/%m/%d}/{asset['task_id']}/{asset['position']}.{extension}"


async def _record_stored(res: Resources, lease: leases.Lease, *, asset: RowMapping, copied: Copied) -> None:
    facts = store.stored_facts(
        object_key=copied.object_key,
        content_type=copied.facts.content_type,
        size_bytes=copied.facts.size_bytes,
        sha256=copied.facts.sha256,
        at=res.clock.now(),
    )
    async with transaction(res) as session:
        if not await leases.finish(session, lease):
            LEASES_LOST.labels("deliver").inc()
        task = await store.lock_task(session, asset["team_id"], asset["task_id"])
        await store.mark_stored(session, asset["team_id"], asset["id"], **facts)
        await _end_task_if_last(session, res, task)
    ASSETS_STORED.inc()
    ASSET_BYTES.inc(copied.facts.size_bytes)
    res.signals.tell(asset["task_id"])
    log.info("asset.stored", asset=str(asset["id"]), task=str(asset["task_id"]), team=asset["team"])


async def _record_not_copied(res: Resources, lease: leases.Lease, *, asset: RowMapping, outcome: NotCopied) -> None:
    """Say why on the row, and when to try again: until the upstream's link is dead."""
    ASSETS_FAILED.labels(outcome.reason).inc()
    again = outcome.again and res.clock.now() < asset["source_expires_at"]
    state = outcome.state if again else AssetState.GIVEN_UP
    schedule = RETRY_SECONDS if state is AssetState.WAITING else WAITING_FOR_PEOPLE_SECONDS
    async with transaction(res) as session:
        if again:
            pause = delay_seconds(schedule, lease.attempts)
            is_ours = await leases.snooze(session, lease, seconds=pause, now=res.clock.for_sql())
        else:
            is_ours = await leases.finish(session, lease)
        if not is_ours:
            LEASES_LOST.labels("deliver").inc()
            return
        task = await store.lock_task(session, asset["team_id"], asset["task_id"])
        await store.mark_unstored(session, asset["team_id"], asset["id"], state=str(state), reason=outcome.reason)
        await _end_task_if_last(session, res, task)
    res.signals.tell(asset["task_id"])
    log.warning("asset.not_copied", asset=str(asset["id"]), state=str(state), reason=outcome.reason, again=again)


async def _end_task_if_last(session: Session, res: Resources, task: RowMapping) -> None:
    """End a delivering task when no file is waited for any more."""
    if task["state"] == State.DELIVERING and not await has_unsettled_assets(session, task["id"]):
        await finish(session, task["id"], State.SUCCEEDED, attempt=task["attempt"], at=res.clock.now())
