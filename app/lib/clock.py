"""Time: the only place that reads the wall clock.

Owns what "now" means. Leases and due times are judged by the database's clock: SQL takes
`coalesce(:now, now())`, and `Clock.for_sql` says what to pass. Durations inside a process use `monotonic`.
"""

import time
from datetime import UTC, datetime, timedelta, timezone

ALIBABA_ZONE = timezone(timedelta(hours=8))


class Clock:
    """The real clock. Tests pass a subclass that stands still until it is moved."""

    def now(self) -> datetime:
        """Return the present instant, aware, in UTC."""
        return datetime.now(UTC)

    def for_sql(self) -> datetime | None:
        """Return what SQL should take for now: None lets the database's own clock decide."""
        return None

    def monotonic(self) -> float:
        """Return seconds that never jump; good only for differences inside this process."""
        return time.monotonic()


def in_upstream_form(instant: datetime) -> str:
    """Write an instant as the upstream writes it: zone-less, UTC+8, milliseconds (dashscope-api.md 2.8).

    >>> in_upstream_form(datetime(2026, 11, 22, 2, 0, 0, 100_000, tzinfo=UTC))
    '2026-11-22 10:00:00.100'
    """
    return instant.astimezone(ALIBABA_ZONE).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Return the seconds from `earlier` to `later`; negative when they are the other way round.

    >>> seconds_between(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 0, 1, tzinfo=UTC))
    60.0
    """
    return (later - earlier).total_seconds()
