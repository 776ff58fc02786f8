"""Destinations: a team's present place and its credentials; opening any of its places as a `Store`.

Owns the sealed credentials: they go to the storage library and nowhere else.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import UUID

from sqlalchemy import RowMapping

from app.delivery import store
from app.delivery.storage import PlaceSpec, S3Credentials, Store, StoreTrouble, open_store, probe
from app.errors import CommandRefused, FileAway
from app.lib.db import reading, transaction
from app.lib.ids import new_id
from app.models.destinations import LinkMode, PlaceKind
from app.resources import Resources
from app.teams.teams import get_team

DEFAULT_S3_REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class NewDestination:
    """What `destination set` was told. `url` is file:///path or s3://bucket/prefix."""

    url: str
    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    links: LinkMode = LinkMode.GATEWAY


async def set_destination(res: Resources, slug: str, new: NewDestination) -> UUID:
    """Prove a place by writing, reading and deleting a small object, then make it the team's; return its id.

    Raises:
        CommandRefused: no such team, a URL that is neither, credentials missing, or the proof failed: it says how.
    """
    team = await get_team(res, slug)
    place = _place(new)
    credentials = _credentials(new, place)
    try:
        await probe(open_store(place, credentials, outside=res.outside))
    except StoreTrouble as trouble:
        raise CommandRefused(f"The destination does not work: {trouble}") from trouble
    place_id = new_id()
    values = {
        "id": place_id,
        "team_id": team["id"],
        "kind": place.kind,
        "endpoint": place.endpoint,
        "region": place.region,
        "bucket": place.bucket or None,
        "prefix": place.root or place.prefix,
        "links": str(new.links),
    }
    sealed = _seal(res, team["id"], credentials)
    async with transaction(res) as session:
        await store.insert_place(session, values)
        await store.set_destination(session, team["id"], place_id=place_id, credentials=sealed)
    return place_id


async def get_store(res: Resources, team_id: UUID, place_id: UUID) -> tuple[Store, LinkMode]:
    """Open one of a team's places with its newest credentials; kept for two seconds.

    Raises:
        FileAway: the place or its destination was removed.
    """
    opened: tuple[Store, LinkMode] = await res.stores.get(place_id, lambda: _open(res, team_id, place_id))
    return opened


async def _open(res: Resources, team_id: UUID, place_id: UUID) -> tuple[Store, LinkMode]:
    async with reading(res) as session:
        row = await store.find_place(session, team_id, place_id)
    if row is None:
        raise FileAway()
    try:
        return open_store(_spec(row), _unseal(res, row), outside=res.outside), LinkMode(row["links"])
    except ValueError as error:
        raise FileAway() from error


def _place(new: NewDestination) -> PlaceSpec:
    """Read a destination URL.

    >>> _place(NewDestination("s3://pictures/alpha/in")).bucket, _place(NewDestination("s3://pictures/alpha/in")).prefix
    ('pictures', 'alpha/in')
    >>> _place(NewDestination("file:///srv/pictures")).root
    '/srv/pictures'
    """
    parts = urlsplit(new.url)
    if parts.scheme == "file" and not parts.netloc and parts.path not in ("", "/"):
        if new.links is LinkMode.PRESIGNED:
            raise CommandRefused("A folder has no presigned links; use --links gateway.")
        return PlaceSpec(kind="file", root=str(Path(unquote(parts.path))))
    if parts.scheme == "s3" and parts.netloc and not parts.query and not parts.fragment:
        region = new.region or DEFAULT_S3_REGION
        return PlaceSpec("s3", endpoint=new.endpoint, region=region, bucket=parts.netloc, prefix=parts.path.strip("/"))
    raise CommandRefused("The URL must be file:///absolute/path or s3://bucket/prefix.")


def _credentials(new: NewDestination, place: PlaceSpec) -> S3Credentials | None:
    if place.kind == "file":
        return None
    if not new.access_key_id or not new.secret_access_key:
        raise CommandRefused("A bucket needs --access-key-id and --secret-access-key-file.")
    return S3Credentials(new.access_key_id, new.secret_access_key)


def _spec(row: RowMapping) -> PlaceSpec:
    if row["kind"] == PlaceKind.FILE:
        return PlaceSpec(kind="file", root=row["prefix"])
    return PlaceSpec(
        "s3",
        endpoint=row["endpoint"],
        region=row["region"] or DEFAULT_S3_REGION,
        bucket=row["bucket"],
        prefix=row["prefix"],
    )


def _seal(res: Resources, team_id: UUID, credentials: S3Credentials | None) -> bytes | None:
    if credentials is None:
        return None
    pair = json.dumps([credentials.access_key_id, credentials.secret_access_key]).encode()
    return res.keyring.seal(pair, place=f"destinations.credentials:{team_id}")


def _unseal(res: Resources, row: RowMapping) -> S3Credentials | None:
    if row["credentials"] is None:
        return None
    pair = json.loads(res.keyring.open(row["credentials"], place=f"destinations.credentials:{row['team_id']}"))
    return S3Credentials(*pair)
