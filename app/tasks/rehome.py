"""Rehome: queued tasks of an account that takes no calls move to one that does, in a region their team allows.

Only what is `queued` moves: from `submitting` on a task lives and dies where it was sent. What an oss:// input pins
stays, since no other account can read that input.
"""

import random
from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import RowMapping

from app.errors import InvalidParameter, UpstreamAccountAtFault
from app.lib.db import transaction
from app.models.tasks import Mode
from app.resources import Resources
from app.routing.accounts import all_accounts
from app.routing.catalogue import load_catalogue, unlisted_offer
from app.routing.choice import Candidate, Chosen, Wish, choose
from app.routing.ways import Asked
from app.tasks import store_queue as store
from app.tasks.accept import candidates_for

log = structlog.get_logger()


async def move_queue(res: Resources, model_key: dict[str, str], *, teams: Sequence[UUID], limit: int) -> int:
    """Give queued tasks of a model whose accounts take no calls to others; return how many moved.

    One transaction: lock the oldest whose teams may call one of the others' regions, with their work; choose a home for
    each, write it. A task that none may take stays, and is looked at again with the next round.
    """
    now = res.clock.now()
    candidates = candidates_for(await all_accounts(res), model_key["model"], now=now)
    offer = load_catalogue(res.settings.catalogue_file).find(model_key["model"])
    ready = [one for one in candidates if one.takes_calls and (offer is None or offer.limits_in(one.region))]
    if not ready:
        return 0
    regions = sorted({one.region for one in ready})
    async with transaction(res) as session:
        homeless = await store.claim_homeless_all_teams(session, model_key, teams=teams, regions=regions, limit=limit)
        homes = [(task, _find_home(res, task, model=model_key["model"], ready=ready)) for task in homeless]
        moves = [(task, home) for task, home in homes if home is not None]
        for task, home in moves:
            await store.rehome(
                session,
                {
                    "key": task["key"],
                    "account_id": home.candidate.id,
                    "main_account": home.candidate.main_account,
                    "region": home.candidate.region,
                    "path": home.way.path,
                },
            )
    for task, home in moves:
        log.info("task.moved", task=task["key"], account=home.candidate.name, region=home.candidate.region)
    return len(moves)


def _find_home(res: Resources, task: RowMapping, *, model: str, ready: list[Candidate]) -> Chosen | None:
    """Return another account for a task, in which it goes the same way; None: there is none now."""
    asked = Asked(task["path"], is_async=task["mode"] == Mode.ASYNC)
    offer = load_catalogue(res.settings.catalogue_file).find(model)
    offer = offer or unlisted_offer(task["path"], is_async=asked.is_async)
    others = [region for region in task["regions"] if region != task["default_region"]]
    wish = Wish(allowed=(task["default_region"], *others), asked=asked, draw=random.random())  # noqa: S311
    try:
        home = choose(offer, ready, wish=wish, now=res.clock.now())
    except (InvalidParameter, UpstreamAccountAtFault):
        return None
    return home if home.way.upstream_call == task["upstream_call"] else None
