"""How often somebody may call: so many a second and so many at once, counted over all processes by Redis.

GCRA: each key keeps the one instant at which its calls so far would be paid off. Redis' own clock decides, in one round
trip. Redis away: the same count in this process alone, which is approximate, since every process then gives the full
rate. Knows not who calls.

Keys: `dashgate:rate:<key>` life until the key is paid off, owner `take`.
"""

import math
import time
from collections.abc import Callable

from app.lib.redis import RedisAway, RedisDoor

MOST_KEYS = 10_000  # kept by this process while Redis is away
_MICROSECONDS = 1_000_000
_KEY = "dashgate:rate:"

# `gcra` below, in Redis' words, for whole microseconds: both must stay the same.
_TAKE = """
    local spacing, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
    local time = redis.call('TIME')
    local now = time[1] * 1000000 + time[2]
    local paid_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
    local wait = paid_at + spacing - burst * spacing - now
    if wait > 0 then
        return wait
    end
    paid_at = paid_at + spacing
    redis.call('SET', KEYS[1], string.format('%.0f', paid_at), 'PX', math.ceil((paid_at - now) / 1000))
    return 0
"""


def gcra(paid_at: int, now: int, *, spacing: int, burst: int) -> tuple[int, int]:
    """Judge one call: return when all calls are paid off now, and how long to wait, 0 for a call that may pass.

    All in one unit of time. Calls are `spacing` apart, `burst` of them may come at once; a call that must wait costs
    nothing.

    >>> gcra(0, 1_000, spacing=10, burst=2)
    (1010, 0)
    >>> gcra(1_010, 1_000, spacing=10, burst=2)
    (1020, 0)
    >>> gcra(1_020, 1_000, spacing=10, burst=2)
    (1020, 10)
    """
    paid_at = max(paid_at, now)
    wait = paid_at + spacing - burst * spacing - now
    return (paid_at, wait) if wait > 0 else (paid_at + spacing, 0)


class Rates:
    """The rates of many keys."""

    def __init__(self, redis: RedisDoor, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._monotonic = monotonic
        self._paid_at: dict[str, int] = {}

    async def take(self, key: str, *, per_second: float, burst: int | None = None) -> float:
        """Count a call: return 0.0 when it may pass, else the seconds until it might; then it was not counted.

        `burst` is how many may come at once, a second's worth unless told. Redis away: counted in this process alone.
        """
        spacing = max(1, round(_MICROSECONDS / per_second))
        burst = max(1, math.ceil(per_second)) if burst is None else burst
        try:
            wait = int(await self._redis.ask(lambda redis: redis.eval(_TAKE, 1, _KEY + key, str(spacing), str(burst))))
        except RedisAway:
            wait = self._take_here(key, spacing=spacing, burst=burst)
        return wait / _MICROSECONDS

    def _take_here(self, key: str, *, spacing: int, burst: int) -> int:
        now = round(self._monotonic() * _MICROSECONDS)
        paid_at, wait = gcra(self._paid_at.get(key, 0), now, spacing=spacing, burst=burst)
        self._paid_at[key] = paid_at
        if len(self._paid_at) > MOST_KEYS:
            self._forget_paid_off(now)
        return wait

    def _forget_paid_off(self, now: int) -> None:
        """Make room: who has paid off begins anew anyway; where that is too few, those who came first go, too."""
        self._paid_at = {key: paid_at for key, paid_at in self._paid_at.items() if paid_at > now}
        if len(self._paid_at) > MOST_KEYS // 2:
            self._paid_at = dict(list(self._paid_at.items())[MOST_KEYS // 2 :])
