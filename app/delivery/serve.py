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

IN_LINE_SECONDS = 60.0  # a slow reader in front keeps the others waiting for so long at most


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

    Of all who want a file that is not stored yet, one after another reads it from the upstream; whoever stood in line
    looks again, as it may be stored by then.

    Raises:
        NotFound: there is no such asset.
        Gone: it was never stored, and the upstream's link is dead or leads to no file we pass on.
        FileAway: its storage does not give it now, or others read it from the upstream for long.
    """
    asset = await _find(res, asset_id)
    if asset["state"] != AssetState.STORED:
        async with _in_line(res, asset_id):
            asset = await _find(res, asset_id)
            if asset["state"] != AssetState.STORED:
                async with _from_upstream(res, asset) as file:
                    yield file
                return
    async with _from_place(res, asset) as file:
        yield file


async def _find(res: Resources, asset_id: UUID) -> RowMapping:
    async with reading(res) as session:
        asset = await store.find_asset_all_teams(session, asset_id)
    if asset is None:
        raise NotFound("There is no such file.")
    return asset


@contextlib.asynccontextmanager
async def _in_line(res: Resources, asset_id: UUID) -> AsyncIterator[None]:
    """Stand in line for the only place from which a file is read from the upstream in this process."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(res.lines.first_in(f"asset:{asset_id}", timeout_seconds=IN_LINE_SECONDS))
        except TimeoutError:
            raise FileAway() from None
        yield


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
