"""What a simulator can be told before it starts: keys, limits, durations, nastiness.

Knows no HTTP and no tasks. Every option has a calm default; `slightly_hostile` is what a demo runs with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from zlib import crc32

BEIJING = "cn-beijing"
SINGAPORE = "ap-southeast-1"
DAY_SECONDS = 24 * 60 * 60


class ProductionRefusedError(RuntimeError):
    """The simulator bills nobody and forgets everything: it does not start where the environment says production."""


@dataclass(frozen=True, slots=True)
class SimulatorKey:
    """One secret. Tasks belong to the main account and region, so two keys that share both see the same tasks."""

    secret: str
    region: str
    main_account: str = "1000000000000001"

    @property
    def api_key_id(self) -> str:
        """The number that the list shows instead of the secret."""
        return str(100_000 + crc32(self.secret.encode()) % 900_000)


DEFAULT_KEYS = (SimulatorKey("sk-sim-beijing", BEIJING), SimulatorKey("sk-sim-singapore", SINGAPORE))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one main account may do in one region; the defaults are the documented ones of `wan2.6-image`.

    `creates_per_second`, `running_tasks` and `upload_policies_per_second` count per model, `task_calls_per_second`
    counts queries and lists together.
    """

    task_calls_per_second: int = 20
    creates_per_second: int = 5
    running_tasks: int = 5
    cancels_per_second: int = 20
    upload_policies_per_second: int = 100

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{limit.name} must be a whole number, 0 or more")


@dataclass(frozen=True, slots=True)
class Hostility:
    """One switch per nastiness. Shares are between 0 and 1; query shares also hold for lists."""

    create_throttle_share: float = 0.0
    query_throttle_share: float = 0.0
    create_unavailable_share: float = 0.0
    query_unavailable_share: float = 0.0
    slowness_seconds: float = 0.0

    @classmethod
    def slight(cls) -> Hostility:
        """Enough to break a client that never expected trouble. A 503 on create is rare: each is a doubt to settle."""
        return cls(
            create_throttle_share=0.03,
            query_throttle_share=0.03,
            create_unavailable_share=0.005,
            query_unavailable_share=0.02,
            slowness_seconds=0.3,
        )


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """Everything about one simulator. Seconds are simulator seconds, those of the rates too; only slowness is real.

    `seed` makes nastiness and durations repeatable; ids are always new, because clients keep them.
    A `clock_scale` of 0 stops the clock: it then moves only when told.
    """

    keys: tuple[SimulatorKey, ...] = DEFAULT_KEYS
    limits: Limits = field(default_factory=Limits)
    hostility: Hostility = field(default_factory=Hostility)
    duration_seconds: tuple[float, float] = (0.2, 0.2)
    retention_seconds: float = DAY_SECONDS
    link_seconds: float = DAY_SECONDS
    max_page_size: int = 100
    max_upload_size_mb: int = 100
    clock_scale: float = 1.0
    clock_offset_seconds: float = 0.0
    seed: int | None = None
    environment: str = "development"

    def __post_init__(self) -> None:
        if self.environment == "production":
            raise ProductionRefusedError("The simulator refuses to start: the environment is production.")
        if not self.keys:
            raise ValueError("The simulator needs at least one key.")

    @classmethod
    def slightly_hostile(cls, **changes: object) -> SimulatorOptions:
        """Make the options of a demo: a little nasty, tasks of 2 to 6 s. `changes` are fields to set otherwise."""
        defaults: dict[str, object] = {"hostility": Hostility.slight(), "duration_seconds": (2.0, 6.0)}
        return cls(**{**defaults, **changes})  # type: ignore[arg-type]  # field names and types are the caller's to match

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions that have a key, in the order of the keys."""
        return tuple(dict.fromkeys(key.region for key in self.keys))
