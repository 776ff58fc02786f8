"""When to try again: data in, data out. Knows nothing of what is tried."""

import random
from collections.abc import Sequence

JITTER = 0.2


def delay_seconds(
    schedule: Sequence[float], attempt: int, *, retry_after: float | None = None, luck: float | None = None
) -> float:
    """Return the seconds to wait after the given attempt (the first is 1).

    The schedule's last entry repeats. A `Retry-After` lengthens the delay, to at most twice the entry or one minute,
    whichever is more. `luck` (0 to 1) replaces the random draw of the ±20 % jitter.

    >>> delay_seconds([1, 5, 30], 2, luck=0.5)
    5.0
    >>> delay_seconds([1, 5, 30], 9, luck=0.0)
    24.0
    >>> delay_seconds([1, 5, 30], 1, retry_after=20, luck=0.5)
    20.0
    >>> delay_seconds([1, 5, 30], 1, retry_after=86400, luck=0.5)
    60.0
    """
    base = float(schedule[min(attempt, len(schedule)) - 1])
    if retry_after is not None:
        base = min(max(base, retry_after), max(base * 2, 60.0))
    draw = random.random() if luck is None else luck  # noqa: S311 -- spreads load, guards nothing
    return base * (1 - JITTER + 2 * JITTER * draw)
