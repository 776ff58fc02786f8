"""Outcome: the only place that records what the upstream made of a task.

One transaction is the whole fact: state, answer, assets with their work, ledger lines, and the end where there is
nothing to wait for. Knows no storage: copying the files is delivery's affair.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from app.errors import UpstreamAccountAtFault
from app.ledger.entries import record_presumed, record_uncertain, record_usage
from app.lib import leases
from app.lib.db import AnySession, Session, direct_transaction, transaction
from app.lib.ids import new_id
from app.models.tasks import Mode, State, UpstreamCall
from app.resources import Resources
from app.routing import room
from app.routing.catalogue import load_catalogue, unit_of
from app.tasks import store, store_polled
from app.tasks.attempts import Attempt
from app.tasks.finish import finish
from app.tasks.keep import keep_answer
from app.tasks.oddities import note_oddity
from app.upstream import answers
from app.upstream.faults import Fault, judge
from app.upstream.results import Artifact, find_artifacts, find_usage, link_expiry

log = structlog.get_logger()

OUTCOME_UNKNOWN = "The upstream's answer was lost and its outcome could not be found out."
EXPIRED_MESSAGE = "The upstream forgot this task before its result could be read."


@dataclass(frozen=True, slots=True)
class Subject:
    """The task an outcome is about, in the attempt that brought it."""

    id: UUID
    attempt: int
    place_id: UUID | None


@dataclass(frozen=True, slots=True)
class Made:
    """What was made and recorded: the upstream's answer, and a row per file in it."""

    task_id: UUID
    team_id: UUID
    answer: dict[str, Any]
    assets: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Broken:
    """How a stream ended badly: with the upstream's own words, or lost on the way."""

    code: str
    message: str
    is_lost: bool = False


async def record_outcome(res: Resources, task: Mapping[str, Any], outcome: answers.Look) -> bool:
    """Record what a look at a task learned; False: nothing new, nothing was written.

    Facts are matched by attempt and state, never by lease: recording the same outcome twice changes nothing. What is
    odd about an outcome is noted apart (oddities.py).
    """
    match outcome:
        case answers.Running(request_id=request_id):
            await note_oddity(res, task, outcome)
            return await _record_running(res, task, request_id)
        case answers.Succeeded():
            subject = Subject(task["id"], task["attempt"], task["place_id"])
            return await _record_success(res, subject, outcome) is not None
        case answers.Failed(request_id=request_id, code=code, message=message) if _is_ours(code, message):
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
            await note_oddity(res, task, outcome)
            return False


def _is_ours(code: str, message: str) -> bool:
    return judge(code, message).fault is Fault.ACCOUNT


async def _record_running(res: Resources, task: Mapping[str, Any], request_id: str) -> bool:
    if task["state"] == State.RUNNING:
        return False
    at = res.clock.now()
    async with transaction(res) as session:
        moved = await store.move(
            session, task["id"], State.RUNNING, attempt=task["attempt"], started_at=at, last_request_id=request_id
        )
    res.signals.tell(task["id"])
    return moved is not None


async def record_started(res: Resources, tasks: Sequence[tuple[UUID, int]]) -> int:
    """Record that the upstream's list shows tasks at work, given with their attempts; return how many were not yet."""
    async with transaction(res) as session:
        started = await store_polled.mark_started_all_teams(session, tasks, at=res.clock.now())
    for task_id in started:
        res.signals.tell(task_id)
    return len(started)


async def record_made(
    res: Resources, attempt: Attempt, made: answers.Succeeded, *, streamed: Sequence[dict[str, Any]] = ()
) -> Made | None:
    """Record what a synchronous call made; None: the task had moved on, and somebody recorded an end before.

    `streamed`: the assets that were written while its events passed through; the others are written now.
    """
    subject = Subject(attempt.task_id, attempt.number, attempt.place_id)
    return await _record_success(res, subject, made, work=attempt.lease, streamed=streamed)


async def _record_success(
    res: Resources,
    subject: Subject,
    made: answers.Succeeded,
    *,
    work: leases.Lease | None = None,
    streamed: Sequence[dict[str, Any]] = (),
) -> Made | None:
    """State, answer, assets, their work, ledger lines; and the end, when no file is waited for."""
    at = res.clock.now()
    output = made.answer.get("output")
    known = {asset["json_path"] for asset in streamed}
    artifacts = find_artifacts(output if isinstance(output, dict) else {})
    async with direct_transaction(res) as session:
        if work is not None:
            await leases.finish(session, work)
        row = await _move_on(session, res, subject, made=made, has_files=bool(artifacts))
        if row is None:
            return None
        new = [artifact for artifact in artifacts if artifact.json_path not in known]
        assets = [make_asset(res, row, position=len(known) + n, artifact=artifact) for n, artifact in enumerate(new)]
        await enqueue_copies(session, res, row, assets=[*streamed, *assets])
        if assets:
            await store.insert_assets(session, assets)
        await keep_answer(session, res, row["id"], body=made.body)
        await record_usage(
            session, row, find_usage(made.answer), request_id=made.request_id, at=at, zone=res.settings.billing_zone
        )
        await _learn_duration(session, res, row, at)
    log.info("task.made", task=str(row["id"]), team=str(row["team_id"]), files=len(artifacts))
    if row["mode"] != Mode.RELAY:
        res.signals.tell(row["id"])
    res.signals.wake("deliver")
    res.signals.wake("submit")
    return Made(row["id"], row["team_id"], made.answer, [*streamed, *assets])


async def _move_on(
    session: AnySession, res: Resources, subject: Subject, *, made: answers.Succeeded, has_files: bool
) -> Mapping[str, Any] | None:
    """Move a made task to `delivering`, or straight to its end when nothing is waited for."""
    at = res.clock.now()
    learned: dict[str, Any] = {"made_at": at, "last_request_id": made.request_id}
    if not has_files or subject.place_id is None:
        return await finish(session, subject.id, State.SUCCEEDED, attempt=subject.attempt, at=at, **learned)
    grace = timedelta(seconds=res.settings.delivery_grace_seconds)
    return await store.move(
        session, subject.id, State.DELIVERING, attempt=subject.attempt, grace_until=at + grace, **learned
    )


async def enqueue_copies(
    session: AnySession, res: Resources, task: Mapping[str, Any], *, assets: Sequence[dict[str, Any]]
) -> None:
    """Add the work of copying files, where the team has a place for them."""
    if task["place_id"] is None:
        return
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


def make_asset(res: Resources, task: Mapping[Any, Any], *, position: int, artifact: Artifact) -> dict[str, Any]:
    """Return a new asset's row: the file of an answer, before anything is copied."""
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
        "source_expires_at": datetime.fromtimestamp(expiry, UTC) if expiry else res.clock.now() + retention,
        "state": "waiting",
        "place_id": task["place_id"],
    }


async def _record_end(
    res: Resources, task: Mapping[str, Any], to: State, *, body: bytes | None, values: dict[str, Any]
) -> bool:
    """The upstream ended the task without a result: nothing is billed."""
    at = res.clock.now()
    async with transaction(res) as session:
        row = await finish(session, task["id"], to, attempt=task["attempt"], at=at, made_at=at, **values)
        if row is not None and body is not None:
            await keep_answer(session, res, row["id"], body=body)
    res.signals.tell(task["id"])
    res.signals.wake("submit")
    return row is not None


async def _record_expired(res: Resources, task: Mapping[str, Any], request_id: str) -> bool:
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
    res.signals.tell(task["id"])
    return row is not None


async def record_seen(res: Resources, attempt: Attempt, *, seen: dict[str, Any], assets: list[dict[str, Any]]) -> None:
    """Write files that a stream has announced, and its usage so far, before its reader is shown them.

    `seen` has the upstream's `usage` and its `request_id`, for the bill of a stream that comes to no end.

    One transaction, which the process that reads the stream may not survive. The files are not copied yet: that begins
    with the outcome, or with rescue when there is none.
    """
    async with direct_transaction(res) as session:
        await store.note_usage(session, attempt.task_id, attempt=attempt.number, seen=seen)
        if assets:
            await store.insert_assets(session, assets)


async def record_broken(
    res: Resources, attempt: Attempt, broken: Broken, *, answer: dict[str, Any], assets: list[dict[str, Any]]
) -> None:
    """Record a stream that broke off: failed, with what it had shown on the bill and its files on their way.

    Without anything billable shown, a stream that was lost may still have cost something: that stands apart.
    """
    body = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    async with transaction(res) as session:
        await leases.finish(session, attempt.lease)
        if broken.is_lost:
            request_id = answer["request_id"] or None
            await end_unknown(session, res, attempt.task_id, attempt=attempt.number, request_id=request_id)
        else:
            ending = {"code": broken.code, "message": broken.message}
            at = res.clock.now()
            task = await finish(session, attempt.task_id, State.FAILED, attempt=attempt.number, at=at, **ending)
            if task is not None and task["seen_usage"]:
                await _bill_seen(session, res, task, request_id=answer["request_id"])
                await enqueue_copies(session, res, task, assets=assets)
        if assets:
            await keep_answer(session, res, attempt.task_id, body=body)
    res.signals.wake("deliver")


async def _bill_seen(session: Session, res: Resources, task: Mapping[str, Any], *, request_id: str | None) -> None:
    """Bill what a stream had shown before it broke off."""
    kept = task["seen_usage"]
    seen = json.loads(kept) if isinstance(kept, str) else kept  # sessions of the driver itself do not parse
    lines = [replace(usage, flag="partial") for usage in find_usage(seen) if usage.quantity]
    at, zone = res.clock.now(), res.settings.billing_zone
    await record_usage(session, task, lines, request_id=request_id or seen["request_id"], at=at, zone=zone)


async def end_unknown(
    session: Session, res: Resources, task_id: UUID, *, attempt: int, request_id: str | None = None
) -> None:
    """Give up on a task: it fails honestly, and what it may have cost stands apart from the bill.

    A stream whose process died is billed by what it had shown: the upstream had reported that much.
    """
    at, zone = res.clock.now(), res.settings.billing_zone
    task = await finish(
        session,
        task_id,
        State.FAILED,
        attempt=attempt,
        at=at,
        code="Dashgate.OutcomeUnknown",
        message=OUTCOME_UNKNOWN,
        **({"upstream_request_id": request_id} if request_id else {}),
    )
    if task is None:
        return
    if task["seen_usage"]:
        await _bill_seen(session, res, task, request_id=request_id)
        await enqueue_copies(session, res, task, assets=await store.read_streamed(session, task_id))
        return
    unit = unit_of(load_catalogue(res.settings.catalogue_file), task["model"])
    await record_uncertain(session, task, unit=unit, at=at, zone=zone)


async def _learn_duration(session: AnySession, res: Resources, task: Mapping[str, Any], at: datetime) -> None:
    """Remember how long this model runs, for the doubtful: a synchronous call never is one, and locks no limits."""
    if task["submitted_at"] is None or task["upstream_call"] == UpstreamCall.SYNC:
        return
    key = {name: task[name] for name in ("main_account", "region", "model")}
    seen = max(0.0, (at - task["submitted_at"]).total_seconds())
    await room.note_success(session, res, key, seconds=seen)


def _is_forgotten(res: Resources, task: Mapping[str, Any]) -> bool:
    """Tell whether the upstream may rightly have forgotten a task: older than its retention."""
    age = res.clock.now() - task["submitted_at"]
    return bool(age > timedelta(seconds=res.settings.upstream_retention_seconds))
