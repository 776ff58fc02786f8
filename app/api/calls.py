"""Calls answered on their connection: relayed, or run as a task and waited for. What several routes share.

Puts the rooms together that do not see each other: `relay` makes the call, `delivery` says what its team is shown.
"""

import asyncio
from uuid import UUID

from app.delivery.answers import SyncAnswer, sync_answer
from app.delivery.relayed import passed_on
from app.errors import IdempotencyConflict, StillRunning, UpstreamAccountAtFault
from app.lib.db import DatabaseAway
from app.models.tasks import Mode
from app.relay.call import relay
from app.relay.entrance import Patience, enter
from app.resources import Resources
from app.tasks.accept import Accepted, Call
from app.tasks.call import Ended
from app.tasks.leaving import Leaving, mark_once
from app.tasks.outcome import Made
from app.tasks.waiting import mark_answered, wait_for_end
from app.teams.authenticate import Caller
from app.upstream.answers import Refused
from app.upstream.faults import Fault


async def answer_call(res: Resources, caller: Caller, call: Call, *, left: Leaving) -> tuple[UUID, SyncAnswer]:
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
    await asyncio.wait({relaying})  # it goes on when this process gives the connection up
    relayed = relaying.result()
    if relayed.trouble is not None:
        raise relayed.trouble
    accepted = relayed.accepted
    if accepted.is_twin:
        return accepted.task_id, await await_answer(res, caller, accepted, call=call, left=left)
    return accepted.task_id, await _answer_of(res, caller, accepted, ended=relayed.ended)


async def await_answer(res: Resources, caller: Caller, accepted: Accepted, *, call: Call, left: Leaving) -> SyncAnswer:
    """Wait for a task to end, and return its answer in the synchronous shape.

    Raises:
        StillRunning: it has not ended in time, or can be read by nobody now; it goes on.
        IdempotencyConflict: as the former, for a key's second call.
    """
    task_id, seconds = accepted.task_id, res.settings.durable_wait_seconds
    try:
        has_ended = await wait_for_end(res, task_id, left=left, timeout_seconds=seconds)
        answer = await sync_answer(res, caller.team_id, task_id) if has_ended else None
    except DatabaseAway:
        answer = None
    if answer is None or left.is_set():
        await mark_once(res, task_id, request=call.resent, left=left)
    elif accepted.mode is Mode.DURABLE:
        res.calls.start(mark_answered(res, task_id))
    if answer is None:
        raise IdempotencyConflict() if accepted.is_twin and call.idempotency_key else StillRunning(str(task_id))
    return answer


async def _answer_of(res: Resources, caller: Caller, accepted: Accepted, *, ended: Ended) -> SyncAnswer:
    match ended:
        case Made():
            return passed_on(res, ended)
        case Refused(fault=Fault.ACCOUNT):
            raise UpstreamAccountAtFault()
        case Refused(status=status, body=body):
            return SyncAnswer(status, body)
    return await sync_answer(res, caller.team_id, accepted.task_id)
