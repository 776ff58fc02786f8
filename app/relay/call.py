"""Call: pass a synchronous call through, once. Tries again only while it is certain that nothing was taken."""

import asyncio

from app.errors import Throttled, UpstreamAccountAtFault, UpstreamAway
from app.relay.entrance import Patience, enter
from app.resources import Resources
from app.tasks.accept import Accepted, Call
from app.tasks.attempts import InlineWait
from app.tasks.call import Ended, make_call
from app.tasks.prepare import NothingTaken
from app.teams.authenticate import Caller

AGAIN_SECONDS = 0.5
THROTTLING = ("Throttling", "Limit")


async def relay(
    res: Resources, caller: Caller, call: Call, *, accepted: Accepted, patience: Patience
) -> tuple[Accepted, Ended]:
    """Make a relay's call and return what came of it, with the row that it ended in.

    Each try has a row of its own, written before anything is sent. What was refused for load, or could not be sent,
    is tried again while the caller's patience lasts. A row that is a resend's twin is returned as it is.

    Raises:
        Throttled, UpstreamAway, UpstreamAccountAtFault: patience is over, and nothing was taken.
        DashgateError, DatabaseAway: as `accept`.
    """
    while accepted.attempt is not None:
        ended = await make_call(res, accepted.attempt, inline=InlineWait())
        if not isinstance(ended, NothingTaken):
            return accepted, ended
        await asyncio.sleep(AGAIN_SECONDS)
        if patience.is_over(res):
            raise trouble_of(ended)
        accepted = await enter(res, caller, call, patience=patience)
    return accepted, None


def trouble_of(nothing: NothingTaken) -> Exception:
    """Return what a caller is told whose call was never taken.

    >>> trouble_of(NothingTaken("Throttling.RateQuota", 7.0)).status, trouble_of(NothingTaken("not_sent")).status
    (429, 503)
    """
    if nothing.reason.startswith(THROTTLING):
        return Throttled(nothing.retry_after_seconds or 1)
    return (
        UpstreamAway() if nothing.reason in ("not_sent", "sender was late", "input_away") else UpstreamAccountAtFault()
    )
