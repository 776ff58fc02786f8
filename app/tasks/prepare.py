"""Prepare: what must be right before a call leaves, and the way back to the queue when it is not."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from app.errors import FileAway, InvalidParameter
from app.resources import Resources
from app.tasks.attempts import (
    NOT_SENT_PAUSE_SECONDS,
    Attempt,
    hold_on_to,
    is_late,
    record_bad_input,
    record_not_taken,
)

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
    retry_after_seconds: float | None = None


async def prepare(res: Resources, attempt: Attempt) -> Prepared | NothingTaken:
    """Wait for the send slot and make the body ready; what must not leave is recorded, and its task handed back.

    The team's own files are put in as the upstream can read them (res.fill_inputs). Then, by our own clock: the whole
    call must still fit into the lease, or a process that was paused meanwhile sends nothing.
    """
    await asyncio.sleep(attempt.wait_seconds)
    try:
        filled = await res.fill_inputs(
            res, team_id=attempt.team_id, account_id=attempt.account.id, model=attempt.model, body=attempt.body
        )
    except InvalidParameter as error:
        problem = error
        await hold_on_to(res, attempt, lambda: record_bad_input(res, attempt, problem))
        return NothingTaken(problem.code)
    except FileAway:
        return await hand_back(res, attempt, reason="input_away", pause_seconds=NOT_SENT_PAUSE_SECONDS)
    if is_late(res, attempt):
        log.warning("task.send_skipped", task=str(attempt.task_id))
        return await hand_back(res, attempt, reason="sender was late")
    return Prepared(filled.body, {**attempt.headers, **filled.headers})


async def hand_back(res: Resources, attempt: Attempt, *, reason: str, pause_seconds: float = 0) -> NothingTaken:
    """Record that nothing was taken."""
    await hold_on_to(res, attempt, lambda: record_not_taken(res, attempt, reason=reason, pause_seconds=pause_seconds))
    return NothingTaken(reason)
