"""Prepare: what must be right before a call leaves, and the way back to the queue when it is not."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from app.errors import FileAway, InvalidParameter
from app.lib.db import DatabaseAway, direct_reading
from app.models.tasks import UpstreamCall
from app.resources import Resources
from app.routing import room
from app.tasks.attempts import (
    NOT_SENT_PAUSE_SECONDS,
    Attempt,
    hold_on_to,
    is_late,
    record_bad_input,
    record_not_taken,
)
from app.upstream.faults import Fault

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A body as it leaves, with its headers."""

    body: bytes = field(repr=False)
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NothingTaken:
    """Certain that the upstream took nothing, and why."""

    reason: str
    fault: Fault | None = None  # None: it could not be sent
    retry_after_seconds: float | None = None


async def prepare(res: Resources, attempt: Attempt) -> Prepared | NothingTaken | None:
    """Wait for the send slot and make the body ready; what must not leave is recorded, and its task handed back.

    The team's own files are put in as the upstream can read them (res.fill_inputs); one that is gone ends the task,
    which its row tells (None). Then, by our own clock: the whole call must still fit into the lease, or a process that
    was paused meanwhile sends nothing.
    """
    await asyncio.sleep(attempt.wait_seconds)
    if await _is_paused(res, attempt):
        return await hand_back(res, attempt, reason="paused meanwhile", fault=Fault.LOAD)
    try:
        filled = await res.fill_inputs(
            res, team_id=attempt.team_id, account_id=attempt.account.id, model=attempt.model, body=attempt.body
        )
    except InvalidParameter as error:
        problem = error
        await hold_on_to(res, attempt, lambda: record_bad_input(res, attempt, problem))
        return None
    except FileAway:
        return await hand_back(res, attempt, reason="input_away", pause_seconds=NOT_SENT_PAUSE_SECONDS)
    if is_late(res, attempt):
        log.warning("task.send_skipped", task=str(attempt.task_id))
        return await hand_back(res, attempt, reason="sender was late")
    return Prepared(filled.body, {**attempt.headers, **filled.headers})


async def _is_paused(res: Resources, attempt: Attempt) -> bool:
    """Tell whether its model was paused since its slot was taken: after a lost answer nothing more leaves at once, so
    that it can be found out what became of it. A synchronous call is on no list."""
    if not attempt.wait_seconds or attempt.upstream_call is UpstreamCall.SYNC:
        return False
    try:
        async with direct_reading(res) as session:
            return await room.is_paused(session, res, room.model_key(attempt.account, attempt.model))
    except DatabaseAway:
        return False  # the mark is made, and the slot is its own


async def hand_back(
    res: Resources, attempt: Attempt, *, reason: str, fault: Fault | None = None, pause_seconds: float = 0
) -> NothingTaken:
    """Record that nothing was taken."""
    await hold_on_to(res, attempt, lambda: record_not_taken(res, attempt, reason=reason, pause_seconds=pause_seconds))
    return NothingTaken(reason, fault)
