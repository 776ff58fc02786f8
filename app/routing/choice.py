"""Which account takes a request, and which way it goes there: a pure choice over what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from uuid import UUID

from app.errors import InvalidParameter, UpstreamAccountAtFault
from app.routing.catalogue import Offer
from app.routing.ways import Asked, Way, find_way


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the choice needs to know of an account. `takes_calls` is False while an operator holds it back."""

    id: UUID
    name: str
    region: str
    main_account: str
    paused_until: datetime | None = None
    weight: int = 1  # its share of its region's calls; 0: only when no other account of the region can take one
    takes_calls: bool = True


@dataclass(frozen=True, slots=True)
class Wish:
    """What a call asks for. `allowed` are the team's regions, its default first."""

    allowed: Sequence[str]
    asked: Asked
    wanted: str | None = None  # the region named by the request
    durable: bool = True
    pinned_account: UUID | None = None  # holds an input of this call (oss://): no other account can read it
    draw: float = 0.0  # from 0 up to 1, drawn by the caller: decides among the accounts that can take it


@dataclass(frozen=True, slots=True)
class Chosen:
    """The account that takes a call, and the way it goes."""

    candidate: Candidate
    way: Way


def choose(offer: Offer, candidates: Sequence[Candidate], *, wish: Wish, now: datetime) -> Chosen:
    """Return what takes the call: in the wanted region, else in the first allowed one that can, by weight.

    Raises:
        InvalidParameter: the wanted region is not the team's, no allowed region offers the model to such a call, or
            the account that holds an input is in none of those that do.
        UpstreamAccountAtFault: it is offered, but every account that could take it is paused, held back or missing.

    >>> from datetime import UTC
    >>> from app.routing.catalogue import load_catalogue
    >>> offer = load_catalogue(None).models["wan2.6-image"]
    >>> plain, stream = Asked("aigc/multimodal-generation/generation"), Asked(str(offer.sync_path), streams=True)
    >>> def tell(candidates, *wish, **more):
    ...     chosen = choose(offer, candidates, wish=Wish(*wish, **more), now=datetime(2026, 11, 22, tzinfo=UTC))
    ...     return f"{chosen.candidate.name}: {chosen.way.mode}"
    >>> here, there = Candidate(UUID(int=1), "a", "cn-beijing", "m"), Candidate(UUID(int=2), "b", "eu-central-1", "m")
    >>> tell([here, there], ["cn-beijing", "eu-central-1"], plain)
    'a: durable'
    >>> tell([there], ["cn-beijing", "eu-central-1"], plain)
    'b: durable'
    >>> tell([here, there], ["eu-central-1", "cn-beijing"], stream)
    'a: relay'
    >>> tell([here], ["cn-hongkong"], plain)
    Traceback (most recent call last):
    app.errors.InvalidParameter: No region allowed for this team offers this model; it is offered in: ap-southeast-1, \
cn-beijing, eu-central-1, us-east-1.
    >>> tell([there], ["eu-central-1"], stream)
    Traceback (most recent call last):
    app.errors.InvalidParameter: No region allowed for this team offers this model as a stream; it is offered so in: \
ap-southeast-1, cn-beijing, us-east-1.
    """
    ways = _ways(offer, wish)
    usable = [candidate for candidate in candidates if candidate.region in ways]
    if wish.pinned_account is not None:
        usable = _pinned(candidates, wish.pinned_account, regions=ways)
    ready = [candidate for candidate in usable if _can_take(candidate, now)]
    for region, way in ways.items():
        if here := [candidate for candidate in ready if candidate.region == region]:
            return Chosen(pick(here, wish.draw), way)
    raise UpstreamAccountAtFault()


def pick(candidates: Sequence[Candidate], draw: float) -> Candidate:
    """Return one of several candidates, each as often as its weight says; `draw` is from 0 up to 1.

    >>> few, many = Candidate(UUID(int=1), "few", "r", "m"), Candidate(UUID(int=2), "many", "r", "m", weight=3)
    >>> [pick([many, few], draw).name for draw in (0.0, 0.24, 0.25, 0.99)]
    ['few', 'few', 'many', 'many']
    >>> spare = Candidate(UUID(int=3), "a spare", "r", "m", weight=0)
    >>> pick([spare, few], 0.0).name, pick([spare], 0.5).name
    ('few', 'a spare')
    """
    in_order = sorted(candidates, key=lambda candidate: candidate.name)
    weighted = [candidate for candidate in in_order if candidate.weight > 0]
    if not weighted:
        return in_order[min(int(draw * len(in_order)), len(in_order) - 1)]
    sums = list(accumulate(candidate.weight for candidate in weighted))
    point = draw * sums[-1]
    return next((one for one, reach in zip(weighted, sums, strict=True) if point < reach), weighted[-1])


def _ways(offer: Offer, wish: Wish) -> dict[str, Way]:
    """Return the way such a call goes in each region that may take it, the preferred region first."""
    if wish.wanted is not None and wish.wanted not in wish.allowed:
        raise InvalidParameter("The region asked for is not one of this team's regions.")
    regions = [wish.wanted] if wish.wanted is not None else wish.allowed
    found = {region: find_way(offer, region, asked=wish.asked, durable=wish.durable) for region in regions}
    ways = {region: way for region, way in found.items() if way is not None}
    if not ways:
        raise InvalidParameter(_not_offered(offer, wish, regions=regions))
    return ways


def _not_offered(offer: Offer, wish: Wish, *, regions: Sequence[str]) -> str:
    """Say why no region can take the call, and which could: the model is not there, or not in this form."""
    if not any(offer.limits_in(region) for region in regions):
        offering = ", ".join(sorted(offer.regions))
        return f"No region allowed for this team offers this model; it is offered in: {offering}."
    form = _form(wish.asked)
    offering = ", ".join(
        region
        for region in sorted(offer.regions)
        if find_way(offer, region, asked=wish.asked, durable=wish.durable) is not None
    )
    if not offering:
        return f"This model is not offered {form}."
    return f"No region allowed for this team offers this model {form}; it is offered so in: {offering}."


def _form(asked: Asked) -> str:
    if asked.is_async:
        return "asynchronously"
    return "as a stream" if asked.streams else "synchronously"


def _pinned(candidates: Sequence[Candidate], account_id: UUID, *, regions: dict[str, Way]) -> list[Candidate]:
    """Return the account that holds an input of the call, where it still is and may take the call."""
    found = [candidate for candidate in candidates if candidate.id == account_id]
    if found and found[0].region not in regions:
        raise InvalidParameter("An oss:// input of this request was uploaded to a region that cannot take this call.")
    return found


def _can_take(candidate: Candidate, now: datetime) -> bool:
    return candidate.takes_calls and (candidate.paused_until is None or candidate.paused_until <= now)
