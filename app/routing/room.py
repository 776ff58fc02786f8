"""Room upstream: how many creates of a model may leave a main account now, and when. Decides under the model's lock.

The pace falls to a half with each refusal (429), loss or call that could not be sent, and grows back by itself within a
minute: also after an outage, when a queue that has grown long must not come back all at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from app.lib.backoff import delay_seconds
from app.lib.db import AnySession, Session
from app.resources import Resources
from app.routing import store
from app.routing.accounts import AccountInfo
from app.routing.catalogue import Limits, load_catalogue

MOST_SLOT_WAIT_SECONDS = 1.0  # a send slot further off than this is no room: the task is queued
DOUBTFUL_OCCUPIES_SECONDS = 900.0
UNLEARNED_SECONDS = 120.0  # how long a model is taken to run before any of its tasks was seen to end
LEARNING_RATE = 0.2
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # after a 429 on create: upstream limits recover within a minute
SLOWED_SHARE = 0.5  # of the pace that is left after each trouble
LEAST_SHARE = 0.1  # of the limit: never slower, and here begins a pace that had grown too quickly (BurstRate)
REGROWTH_SECONDS = 60.0  # in which the whole limit is regained: the upstream recovers within a minute
UNLISTED = Limits(rps=1, running=1)  # a model whose catalogue entry went away while its tasks were queued


@dataclass(frozen=True, slots=True)
class Free:
    """The send slots that were taken, by the database's clock, and whether other tasks wait in front."""

    slots: Sequence[datetime]
    has_queue: bool
    now: datetime


def model_key(account: AccountInfo, model: str) -> dict[str, str]:
    """Return what limits belong to: main account, region, model."""
    return {"main_account": account.main_account, "region": account.region, "model": model}


async def take(
    session: AnySession, res: Resources, key: dict[str, str], *, wanted: int, past_queue: bool = False
) -> Free:
    """Take up to `wanted` places and their send slots, holding the model's lock until the transaction ends.

    Newcomers take nothing while others are queued; the dispatcher, which serves the queue, passes `past_queue`.
    """
    limits = await _lock(session, res, key)
    occupies = doubtful_occupies_seconds(limits["learned_seconds"])
    used = await store.count_room(session, key, doubtful_seconds=occupies, now=res.clock.for_sql())
    places = limits["running"] + limits["buffer"] - used["occupied"]
    if limits["paused"] or places <= 0 or (used["has_queue"] and not past_queue):
        return Free((), used["has_queue"], used["now"])
    rps = _pace(limits)
    slots = send_slots(limits["next_submit_at"], used["now"], rps=rps, wanted=min(wanted, places))
    if slots:
        await store.set_next_submit(session, key, next_submit_at=slots[-1] + spacing(rps))
    return Free(slots, used["has_queue"], used["now"])


async def places(session: AnySession, res: Resources, key: dict[str, str]) -> int:
    """Return how many creates could leave now, without taking any: a look that keeps nobody waiting for a lock.

    What it says may be over in a moment; `take` decides.
    """
    now = res.clock.for_sql()
    limits = await store.find_model(session, key, now=now)
    if limits is None:
        return int(_limits(res, key)["running"])
    if limits["paused"]:
        return 0
    occupies = doubtful_occupies_seconds(limits["learned_seconds"])
    used = await store.count_room(session, key, doubtful_seconds=occupies, now=now)
    free = int(limits["running"] + limits["buffer"] - used["occupied"])
    return len(send_slots(limits["next_submit_at"], used["now"], rps=_pace(limits), wanted=free)) if free > 0 else 0


async def is_paused(session: AnySession, res: Resources, key: dict[str, str]) -> bool:
    """Tell whether nothing of a model may leave now, for a call whose slot was taken a while ago."""
    limits = await store.find_model(session, key, now=res.clock.for_sql())
    return limits is not None and limits["paused"]


async def back_off(
    session: Session, res: Resources, key: dict[str, str], *, retry_after_seconds: float | None, grew: bool = False
) -> None:
    """After a 429: send nothing more for a while, longer each time in a row, and then more slowly.

    `grew`: the upstream says that our pace rose too quickly. A burst refused together counts once.
    """
    limits = await _lock(session, res, key)
    if limits["paused"] and limits["backoff"]:
        return
    now, slowed_at = limits["now"], limits["slowed_at"]
    is_in_a_row = slowed_at is not None and (now - slowed_at).total_seconds() < REGROWTH_SECONDS
    backoff = limits["backoff"] + 1 if is_in_a_row else 1
    until = now + timedelta(seconds=delay_seconds(BACKOFF_SECONDS, backoff, retry_after=retry_after_seconds))
    slower = _slower(limits, since=until, share=0.0 if grew else SLOWED_SHARE)
    await store.set_pace(session, key, backoff=backoff, paused_until=until, **slower)


async def pause(session: Session, res: Resources, key: dict[str, str], *, seconds: float) -> None:
    """Take no room for so long, and less for a while after: after a lost answer, so that send windows do not overlap.

    The longest pause wins.
    """
    limits = await _lock(session, res, key)
    until = limits["now"] + timedelta(seconds=seconds)
    until = max(until, limits["paused_until"] or until)
    await store.set_pace(session, key, paused_until=until, **_slower(limits, since=until))


async def slow_down(session: Session, res: Resources, key: dict[str, str]) -> None:
    """Send more slowly for a while: a call could not leave, and when the upstream is back, others wait with it."""
    limits = await _lock(session, res, key)
    await store.set_pace(session, key, **_slower(limits, since=limits["now"]))


async def note_success(session: AnySession, res: Resources, key: dict[str, str], *, seconds: float) -> None:
    """Remember how long this model ran, and that its creates are welcome again."""
    limits = await _lock(session, res, key)
    await store.set_pace(session, key, learned_seconds=learn(limits["learned_seconds"], seconds), backoff=0)


async def _lock(session: AnySession, res: Resources, key: dict[str, str]) -> Mapping[str, Any]:
    return await store.lock_model(session, key, limits=_limits(res, key), now=res.clock.for_sql())


def _pace(limits: Mapping[str, Any]) -> float:
    slowed_to = float(limits["slowed_to"]) if limits["slowed_to"] is not None else None
    since = (limits["now"] - limits["slowed_at"]).total_seconds() if limits["slowed_at"] is not None else 0.0
    return pace_now(float(limits["rps"]), slowed_to, seconds_since=since)


def _slower(limits: Mapping[str, Any], *, since: datetime, share: float = SLOWED_SHARE) -> dict[str, Any]:
    rps = float(limits["rps"])
    return {"slowed_to": max(_pace(limits) * share, rps * LEAST_SHARE), "slowed_at": since}


def _limits(res: Resources, key: dict[str, str]) -> dict[str, float]:
    offer = load_catalogue(res.settings.catalogue_file).find(key["model"])
    limits = offer.regions.get(key["region"], UNLISTED) if offer else UNLISTED
    return limits.model_dump()


def pace_now(rps: float, slowed_to: float | None, *, seconds_since: float) -> float:
    """Return the creates a second that may leave: the limit, or what has grown again since the last trouble.

    >>> pace_now(5, None, seconds_since=0), pace_now(5, 2.5, seconds_since=-3), pace_now(5, 2.5, seconds_since=15)
    (5.0, 2.5, 3.75)
    >>> pace_now(5, 2.5, seconds_since=3600)
    5.0
    """
    if slowed_to is None:
        return float(rps)
    return min(float(rps), slowed_to + rps * max(0.0, seconds_since) / REGROWTH_SECONDS)


def send_slots(next_at: datetime | None, now: datetime, *, rps: float, wanted: int) -> list[datetime]:
    """Return the instants at which up to `wanted` creates may leave, evenly spaced, none more than a second off.

    >>> from datetime import UTC
    >>> now = datetime(2026, 11, 22, tzinfo=UTC)
    >>> [(slot - now).total_seconds() for slot in send_slots(None, now, rps=5, wanted=3)]
    [0.0, 0.2, 0.4]
    >>> len(send_slots(None, now, rps=5, wanted=100))
    6
    >>> send_slots(now + timedelta(seconds=2), now, rps=5, wanted=1)
    []
    """
    first = max(next_at or now, now)
    latest = now + timedelta(seconds=MOST_SLOT_WAIT_SECONDS)
    slots = [first + index * spacing(rps) for index in range(min(wanted, int(rps * MOST_SLOT_WAIT_SECONDS) + 1))]
    return [slot for slot in slots if slot <= latest]


def spacing(rps: float) -> timedelta:
    """Return the time between two creates at so many a second."""
    return timedelta(seconds=1 / rps)


def doubtful_occupies_seconds(learned_seconds: float | None) -> float:
    """Return how long after its send window a doubtful task still counts as running upstream.

    >>> doubtful_occupies_seconds(90), doubtful_occupies_seconds(3600)
    (180.0, 900.0)
    """
    return min(2.0 * (learned_seconds or UNLEARNED_SECONDS), DOUBTFUL_OCCUPIES_SECONDS)


def learn(learned_seconds: float | None, seen_seconds: float) -> float:
    """Return the moving average of a model's durations after one more was seen.

    >>> learn(None, 60), learn(60, 110)
    (60.0, 70.0)
    """
    if learned_seconds is None:
        return float(seen_seconds)
    return learned_seconds + LEARNING_RATE * (seen_seconds - learned_seconds)
