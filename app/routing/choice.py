"""Which account takes a request: a pure choice over what it is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.errors import InvalidParameter, UpstreamAccountAtFault
from app.routing.catalogue import Offer


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the choice needs to know of an account."""

    id: UUID
    name: str
    region: str
    main_account: str
    paused_until: datetime | None = None


def choose(
    offer: Offer,
    candidates: Sequence[Candidate],
    *,
    allowed: Sequence[str],
    wanted: str | None,
    now: datetime,
) -> Candidate:
    """Return the account that takes the call: in the wanted region, else the first allowed one that can.

    `allowed` are the team's regions, its default first; `wanted` is what the request asked for.

    Raises:
        InvalidParameter: the wanted region is not the team's, or no allowed region offers the model.
        UpstreamAccountAtFault: the model is offered, but every account that could take it is paused or missing.

    >>> from datetime import UTC
    >>> from uuid import UUID
    >>> from app.routing.catalogue import load_catalogue
    >>> offer = load_catalogue(None).models["wan2.6-image"]
    >>> now = datetime(2026, 11, 22, tzinfo=UTC)
    >>> here, there = Candidate(UUID(int=1), "a", "cn-beijing", "m"), Candidate(UUID(int=2), "b", "ap-southeast-1", "m")
    >>> choose(offer, [here, there], allowed=["cn-beijing", "ap-southeast-1"], wanted=None, now=now).name
    'a'
    >>> choose(offer, [there], allowed=["cn-beijing", "ap-southeast-1"], wanted=None, now=now).name
    'b'
    >>> choose(offer, [here], allowed=["cn-hongkong"], wanted=None, now=now)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    app.errors.InvalidParameter: No region allowed for this team offers this model; it is offered in: ap-southeast-1...
    """
    if wanted is not None and wanted not in allowed:
        raise InvalidParameter("The region asked for is not one of this team's regions.")
    regions = [region for region in ([wanted] if wanted else allowed) if region in offer.regions]
    if not regions:
        offering = ", ".join(sorted(offer.regions))
        raise InvalidParameter(f"No region allowed for this team offers this model; it is offered in: {offering}.")
    for region in regions:
        for candidate in sorted(candidates, key=lambda candidate: candidate.name):
            paused = candidate.paused_until is not None and candidate.paused_until > now
            if candidate.region == region and not paused:
                return candidate
    raise UpstreamAccountAtFault()
