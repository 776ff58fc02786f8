"""Room upstream: how many creates of a model may leave a main account now, and when. Decides under the model's lock."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.lib.db import Session
from app.resources import Resources
from app.routing.accounts import AccountInfo
from app.routing.catalogue import Limits, load_catalogue
from app.tasks import schedule, store

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


async def take(session: Session, res: Resources, key: dict[str, str], *, wanted: int, past_queue: bool = False) -> Free:
    """Take up to `wanted` places and their send slots, holding the model's lock until the transaction ends.

    Newcomers take nothing while others are queued; the dispatcher, which serves the queue, passes `past_queue`.
    """
    now_sql = res.clock.for_sql()
    limits = await store.lock_model(session, key, _limits(res, key), now_sql)
    occupies = schedule.doubtful_occupies_seconds(limits["learned_seconds"])
    used = await store.count_room(session, key, doubtful_seconds=occupies, now=now_sql)
    places = limits["running"] + limits["buffer"] - used["occupied"]
    if limits["paused"] or places <= 0 or (used["has_queue"] and not past_queue):
        return Free((), used["has_queue"], limits["now"])
    rps = float(limits["rps"])
    slots = schedule.send_slots(limits["next_submit_at"], limits["now"], rps=rps, wanted=min(wanted, places))
    if slots:
        await store.set_pace(session, key, next_submit_at=slots[-1] + schedule.spacing(rps))
    return Free(slots, used["has_queue"], limits["now"])


def _limits(res: Resources, key: dict[str, str]) -> dict[str, float]:
    offer = load_catalogue(res.settings.catalogue_file).find(key["model"])
    limits = offer.regions.get(key["region"], UNLISTED) if offer else UNLISTED
    return limits.model_dump()
