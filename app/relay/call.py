"""Call: pass a synchronous call through, once. Tries again only while it is certain that nothing was taken."""

import asyncio
from dataclasses import dataclass

from app.errors import DashgateError, InternalTrouble, Throttled, UpstreamAccountAtFault, UpstreamAway
from app.lib.db import DatabaseAway
from app.relay.entrance import Patience, enter
from app.resources import Resources
from app.tasks.accept import Accepted, Call
from app.tasks.attempts import InlineWait
from app.tasks.call import Ended, make_call
from app.tasks.leaving import marked_when_left
from app.tasks.prepare import NothingTaken
from app.teams.authenticate import Caller
from app.upstream.faults import Fault

AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Relayed:
    """What became of a relay: the row that it ended in, and how; or what its caller is told instead."""

    accepted: Accepted
    ended: Ended = None
    trouble: DashgateError | None = None


async def relay(res: Resources, caller: Caller, call: Call, *, accepted: Accepted, patience: Patience) -> Relayed:
    """Make a relay's call and return what came of it, with the row that it ended in.

    Each try has a row of its own, written before anything is sent. What was refused for load, or could not be sent,
    is tried again while the caller's patience lasts. A row that is a resend's twin is returned as it is. When the
    caller hangs up, the row of that moment is marked: the same request gets it.

    Raises:
        DatabaseAway: as `accept`; nothing was sent, or it is recorded.
    """
    while accepted.attempt is not None:
        try:
            async with marked_when_left(res, accepted.task_id, request=call.resent, left=patience.left):
                ended = await make_call(res, accepted.attempt, inline=InlineWait())
        except DatabaseAway:  # what came of it is not written down: nobody may send it again
            return Relayed(accepted, trouble=InternalTrouble())
        if not isinstance(ended, NothingTaken):
            return Relayed(accepted, ended)
        if patience.is_over(res):
            return Relayed(accepted, trouble=trouble_of(ended))
        await asyncio.sleep(AGAIN_SECONDS)
        try:
            accepted = await enter(res, caller, call, patience=patience)
        except DashgateError as trouble:
            return Relayed(accepted, trouble=trouble)
    return Relayed(accepted)


def trouble_of(nothing: NothingTaken) -> DashgateError:
    """Return what a caller is told whose call was never taken.

    >>> trouble_of(NothingTaken("limit_requests", Fault.LOAD, 7.0)).status, trouble_of(NothingTaken("not_sent")).status
    (429, 503)
    >>> trouble_of(NothingTaken("InvalidApiKey", Fault.ACCOUNT)).code
    'Dashgate.UpstreamAccount'
    """
    match nothing.fault:
        case Fault.LOAD:
            return Throttled(nothing.retry_after_seconds or 1)
        case Fault.ACCOUNT:
            return UpstreamAccountAtFault()
    return UpstreamAway()
