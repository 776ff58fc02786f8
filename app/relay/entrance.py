"""Entrance: a synchronous call waits for room upstream, on its connection, and then has its row and its attempt.

Of a team's calls to one model only the first in line asks Postgres, so that thousands of waiting connections cost one
small transaction a moment, not one each.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from app.errors import Throttled
from app.resources import Resources
from app.tasks.accept import Accepted, Call, NoRoom, accept
from app.tasks.leaving import Leaving
from app.teams.authenticate import Caller

ASK_AGAIN_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a caller waits for its call to leave: until an instant of the monotonic clock, or its own leaving."""

    until: float
    left: Leaving

    def is_over(self, res: Resources) -> bool:
        """Tell whether the call need not leave any more; a process that is stopping begins none."""
        return self.left.is_set() or res.waiters.is_ending or res.clock.monotonic() >= self.until


async def enter(res: Resources, caller: Caller, call: Call, *, patience: Patience) -> Accepted:
    """Accept a call, waiting for room as long as its caller's patience. Calls that run as tasks never wait.

    Raises:
        Throttled: there was no room in time; nothing was sent.
        DashgateError, DatabaseAway: as `accept`.
    """
    with contextlib.suppress(NoRoom):
        return await accept(res, caller, call, left=patience.left)
    left_seconds = max(0.0, patience.until - res.clock.monotonic())
    with contextlib.suppress(TimeoutError):
        async with res.lines.first_in(f"{caller.team}:{call.model}", timeout_seconds=left_seconds):
            # never cut off by time: a commit under way must be known to have happened or not
            while not patience.is_over(res):
                await asyncio.sleep(ASK_AGAIN_SECONDS)
                with contextlib.suppress(NoRoom):
                    return await accept(res, caller, call, left=patience.left)
    raise Throttled()
