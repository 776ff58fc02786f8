"""Calls answered on their connection: relayed, or run as a task and waited for. What several routes share.

Puts the rooms together that do not see each other: `relay` makes the call, `delivery` says what its team is shown.
"""

import asyncio
from uuid import UUID

from app.delivery.answers import SyncAnswer, sync_answer
from app.delivery.relayed import passed_on
from app.errors import IdempotencyConflict, StillRunning
from app.models.tasks import Mode
from app.relay.call import relay
from app.relay.entrance import Patience, enter
from app.resources import Resources
from app.tasks.accept import Accepted, Call
from app.tasks.call import Ended
from app.tasks.outcome import Made
from app.tasks.resend import mark_left
from app.tasks.waiting import mark_answered, wait_for_end
from app.teams.authenticate import Caller
from app.upstream.answers import Refused


async def answer_call(res: Resources, caller: Caller, call: Call, *, left: asyncio.Event) -> tuple[UUID, SyncAnswer]:
    """Make a synchronous call and return its task's id and its answer; whoever leaves leaves a task behind.

    A call that has begun goes on without its caller, and is marked: the same request gets its task.

    Raises:
        StillRunning, IdempotencyConflict: it has not ended in time; the task goes on.
        DashgateError, DatabaseAway: as relay/entrance.py and relay/call.py.
    """
    patience = Patience(res.clock.monotonic() + res.settings.sync_wait_seconds, left)
    accepted = await enter(res, caller, call, patience=patience)
    if accepted.attempt is None:
        return accepted.task_id, await await_answer(res, caller, accepted, call=call, left=left)
    relaying = res.calls.start(relay(res, caller, call, accepted=accepted, patience=patience))
    leaving = asyncio.ensure_future(left.wait())
    try:
        await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if not relaying.done():
        await mark_left(res, accepted.task_id)
    accepted, ended = await relaying  # nobody reads it, and the connection costs nothing any more
    if accepted.is_twin:
        return accepted.task_id, await await_answer(res, caller, accepted, call=call, left=left)
    return accepted.task_id, await _answer_of(res, caller, accepted, ended=ended)


async def await_answer(
    res: Resources, caller: Caller, accepted: Accepted, *, call: Call, left: asyncio.Event
) -> SyncAnswer:
    """Wait for a task to end, and return its answer in the synchronous shape.

    Raises:
        StillRunning, IdempotencyConflict: it has not ended in time; DatabaseAway.
    """
    task_id, seconds = accepted.task_id, res.settings.durable_wait_seconds
    if not await wait_for_end(res, task_id, left=left, timeout_seconds=seconds):
        if accepted.is_twin and call.idempotency_key is not None:
            raise IdempotencyConflict()
        await mark_left(res, task_id)
        raise StillRunning(str(task_id))
    answer = await sync_answer(res, caller.team_id, task_id)
    if left.is_set():
        await mark_left(res, task_id)
    elif accepted.mode is Mode.DURABLE:
        res.calls.start(mark_answered(res, task_id))
    return answer


async def _answer_of(res: Resources, caller: Caller, accepted: Accepted, *, ended: Ended) -> SyncAnswer:
    match ended:
        case Made():
            return passed_on(res, ended)
        case Refused(status=status, body=body):
            return SyncAnswer(status, body)
    return await sync_answer(res, caller.team_id, accepted.task_id)
