"""Outcome: the only place that records what the upstream made of a task.

One transaction is the whole fact: state, answer, assets with their work, ledger lines, and the end where there is
nothing to wait for. Knows no storage: copying the files is delivery's affair.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import UpstreamAccountAtFault
from app.ledger.entries import record_presumed, record_usage
from app.lib import leases
from app.lib.crypto import pack
from app.lib.db import Session, transaction
from app.lib.ids import new_id
from app.models.tasks import State
from app.resources import Resources
from app.routing import room
from app.routing.catalogue import load_catalogue, unit_of
from app.tasks import store
from app.tasks.finish import finish
from app.upstream import answers
from app.upstream.faults import ACCOUNT_CODES
from app.upstream.results import Artifact, find_artifacts, find_usage, link_expiry

log = structlog.get_logger()

EXPIRED_MESSAGE = "The upstream forgot this task before its result could be read."


async def record_outcome(res: Resources, task: RowMapping, outcome: answers.Look) -> bool:
    """Record what a look at a task learned; False: nothing new, nothing was written.

    Facts are matched by attempt and state, never by lease: recording the same outcome twice changes nothing.
    """
    match outcome:
        case answers.Running(request_id=request_id):
            return await _record_running(res, task, request_id)
        case answers.Succeeded():
            return await _record_success(res, task, outcome)
        case answers.Failed(request_id=request_id, code=code, message=message) if code in ACCOUNT_CODES:
            # our account's trouble, not the team's: its details stay with the operator
            log.error("account.refused", task=str(task["id"]), code=code, message=message)
            ending = {"code": UpstreamAccountAtFault.code, "last_request_id": request_id}
            return await _record_end(res, task, State.FAILED, body=None, values=ending)
        case answers.Failed(request_id=request_id, body=body, code=code, message=message):
            ending = {"code": code, "message": message, "last_request_id": request_id}
            return await _record_end(res, task, State.FAILED, body=body, values=ending)
        case answers.Canceled(request_id=request_id, body=body):
            return await _record_end(res, task, State.CANCELED, body=body, values={"last_request_id": request_id})
        case answers.Gone(request_id=request_id) if _is_forgotten(res, task):
            return await _record_expired(res, task, request_id)
        case answers.Pending() | answers.Gone():
            return False


async def _record_running(res: Resources, task: RowMapping, request_id: str) -> bool:
    if task["state"] == State.RUNNING:
        return False
    at = res.clock.now()
    async with transaction(res) as session:
        moved = await store.move(
            session, task["id"], State.RUNNING, attempt=task["attempt"], started_at=at, last_request_id=request_id
        )
    return moved is not None


async def _record_success(res: Resources, task: RowMapping, made: answers.Succeeded) -> bool:
    """State, answer, assets, their work, ledger lines; and the end, when no file is waited for."""
    at = res.clock.now()
    output = made.answer.get("output")
    artifacts = find_artifacts(output if isinstance(output, dict) else {})
    async with transaction(res) as session:
        row = await _move_on(session, res, task, made=made, has_files=bool(artifacts), at=at)
        if row is None:
            return False
        await _enqueue_copies(session, res, row, artifacts=artifacts)
        await _keep_answer(session, res, row["id"], made.body)
        await record_usage(
            session, row, find_usage(made.answer), request_id=made.request_id, at=at, zone=res.settings.billing_zone
        )
        await _learn_duration(session, res, row, at)
    log.info("task.made", task=str(task["id"]), team=str(row["team_id"]), files=len(artifacts))
    res.signals.wake("deliver")
    res.signals.wake("submit")
    return True


async def _move_on(
    session: Session, res: Resources, task: RowMapping, *, made: answers.Succeeded, has_files: bool, at: datetime
) -> RowMapping | None:
    """Move a made task to `delivering`, or straight to its end when nothing is waited for."""
    learned: dict[str, Any] = {"made_at": at, "last_request_id": made.request_id}
    if not has_files or task["place_id"] is None:
        return await finish(session, task["id"], State.SUCCEEDED, attempt=task["attempt"], at=at, **learned)
    grace = timedelta(seconds=res.settings.delivery_grace_seconds)
    return await store.move(
        session, task["id"], State.DELIVERING, attempt=task["attempt"], grace_until=at + grace, **learned
    )


async def _enqueue_copies(session: Session, res: Resources, task: RowMapping, *, artifacts: list[Artifact]) -> None:
    """Write an asset per file, and its work where the team has a place for it."""
    assets = [_asset(res, task, position=position, artifact=artifact) for position, artifact in enumerate(artifacts)]
    if task["place_id"] is not None:
        for asset in assets:
            await leases.enqueue(
                session,
                "deliver",
                key=str(asset["id"]),
                deadline_at=asset["source_expires_at"],
                account_id=task["account_id"],
                team_id=task["team_id"],
                now=res.clock.for_sql(),
            )
    if assets:
        await store.insert_assets(session, assets)


def _asset(res: Resources, task: RowMapping, *, position: int, artifact: Artifact) -> dict[str, Any]:
    asset_id = new_id()
    expiry = link_expiry(artifact.url)
    retention = timedelta(seconds=res.settings.upstream_retention_seconds)
    return {
        "id": asset_id,
        "task_id": task["id"],
        "team_id": task["team_id"],
        "position": position,
        "json_path": artifact.json_path,
        "source": res.keyring.seal(artifact.url.encode("utf-8", "backslashreplace"), place=f"assets.source:{asset_id}"),
        "source_expires_at": datetime.fromtimestamp(expiry, UTC) if expiry else task["made_at"] + retention,
        "state": "waiting",
        "place_id": task["place_id"],
    }


async def _record_end(
    res: Resources, task: RowMapping, to: State, *, body: bytes | None, values: dict[str, Any]
) -> bool:
    """The upstream ended the task without a result: nothing is billed."""
    at = res.clock.now()
    async with transaction(res) as session:
        row = await finish(session, task["id"], to, attempt=task["attempt"], at=at, made_at=at, **values)
        if row is not None and body is not None:
            await _keep_answer(session, res, row["id"], body)
    res.signals.wake("submit")
    return row is not None


async def _record_expired(res: Resources, task: RowMapping, request_id: str) -> bool:
    at = res.clock.now()
    async with transaction(res) as session:
        row = await finish(
            session,
            task["id"],
            State.EXPIRED,
            attempt=task["attempt"],
            at=at,
            code="Dashgate.ResultExpired",
            message=EXPIRED_MESSAGE,
            last_request_id=request_id,
        )
        if row is not None:
            unit = unit_of(load_catalogue(res.settings.catalogue_file), row["model"])
            await record_presumed(session, row, unit=unit, at=at, zone=res.settings.billing_zone)
    return row is not None


async def _keep_answer(session: Session, res: Resources, task_id: UUID, body: bytes) -> None:
    await store.write_answer(session, task_id, res.keyring.seal(pack(body), place=f"task_bodies.answer:{task_id}"))


async def _learn_duration(session: Session, res: Resources, task: RowMapping, at: datetime) -> None:
    """Remember how long this model runs, and that its creates are welcome again."""
    if task["submitted_at"] is None:
        return
    key = {name: task[name] for name in ("main_account", "region", "model")}
    seen = max(0.0, (at - task["submitted_at"]).total_seconds())
    await room.note_success(session, res, key, seconds=seen)


def _is_forgotten(res: Resources, task: RowMapping) -> bool:
    """Tell whether the upstream may rightly have forgotten a task: older than its retention."""
    age = res.clock.now() - task["submitted_at"]
    return bool(age > timedelta(seconds=res.settings.upstream_retention_seconds))
