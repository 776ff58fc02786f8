"""Serve: open a file for a reader, from the team's place or, until it is there, from the upstream."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import RowMapping

from app.delivery import download, storage, store
from app.delivery.destinations import get_store
from app.errors import FileAway, Gone, NotFound
from app.lib.db import reading
from app.models.assets import AssetState
from app.resources import Resources
from app.routing.accounts import get_account


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file about to be read. `etag` is known once it is stored."""

    content_type: str
    size_bytes: int
    etag: str | None
    chunks: AsyncIterator[bytes]


@contextlib.asynccontextmanager
async def open_asset(res: Resources, asset_id: UUID) -> AsyncIterator[OpenFile]:
    """Open an asset's bytes.

    Raises:
        NotFound: there is no such asset.
        Gone: it was never stored, and the upstream's link is dead or leads to no file we pass on.
        FileAway: its storage does not give it now.
    """
    async with reading(res) as session:
        asset = await store.find_asset_all_teams(session, asset_id)
    if asset is None:
        raise NotFound("There is no such file.")
    opened = _from_place(res, asset) if asset["state"] == AssetState.STORED else _from_upstream(res, asset)
    async with opened as file:
        yield file


@contextlib.asynccontextmanager
async def _from_place(res: Resources, asset: RowMapping) -> AsyncIterator[OpenFile]:
    place, _ = await get_store(res, asset["team_id"], asset["place_id"])
    async with contextlib.AsyncExitStack() as stack:
        try:
            found = await stack.enter_async_context(place.open_read(asset["object_key"]))
        except storage.ObjectMissing:
            raise Gone() from None
        except storage.StoreTrouble as trouble:
            raise FileAway() from trouble
        yield OpenFile(asset["content_type"], found.size_bytes, f'"{asset["sha256"]}"', found.chunks)


@contextlib.asynccontextmanager
async def _from_upstream(res: Resources, asset: RowMapping) -> AsyncIterator[OpenFile]:
    if asset["source_expires_at"] <= res.clock.now():
        raise Gone()
    url = res.keyring.open(asset["source"], place=f"assets.source:{asset['id']}").decode()
    account = await get_account(res, asset["account_id"])
    limits = download.Limits(file_hosts=account.file_hosts)
    async with contextlib.AsyncExitStack() as stack:
        try:
            source = await stack.enter_async_context(
                download.open_source(res.outside, url, limits=limits, clock=res.clock)
            )
        except (download.SourceGone, download.SourceRefused, download.LinkExpired):
            raise Gone() from None
        except download.NoImage as trouble:
            raise FileAway() from trouble
        yield OpenFile(source.kind.content_type, source.size_bytes, None, source.chunks())
