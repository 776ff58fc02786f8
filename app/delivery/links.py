"""Links that a team sees: ours, signed, or the storage's own presigned ones; made anew on every read.

A gateway link names an asset and an instant, under an HMAC of its own subkey; nothing in it can be changed, and it
tells nothing. Its end is rounded up to the hour, so that answers within an hour are equal and can be cached.
"""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest
from typing import Any
from uuid import UUID

from app.delivery.destinations import get_store
from app.errors import AccessDenied, FileAway, Gone
from app.models.assets import AssetState
from app.models.destinations import LinkMode
from app.resources import Resources
from app.upstream.results import link_extension

MAC_PURPOSE = "asset link"
HOUR_SECONDS = 3600
PRESIGNED_MOST_SECONDS = 7 * 86_400
KEY_ID_CHARS = 8
EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


@dataclass(frozen=True, slots=True)
class LinkedAsset:
    """What a link is made from. `source` is the upstream's own link, for the name's extension only."""

    id: UUID
    team_id: UUID
    position: int
    state: AssetState
    place_id: UUID | None
    object_key: str | None
    content_type: str | None
    source: str


async def link_to(res: Resources, asset: LinkedAsset) -> str:
    """Return the link that a team gets in place of the upstream's."""
    return await _find_presigned(res, asset) or gateway_link(res, asset)


async def _find_presigned(res: Resources, asset: LinkedAsset) -> str | None:
    """Return the storage's own link where the place wants that; trouble with a place must not fail a status read."""
    if asset.state is not AssetState.STORED or asset.place_id is None or asset.object_key is None:
        return None
    try:
        opened, mode = await get_store(res, asset.team_id, asset.place_id)
    except FileAway:
        return None
    seconds = min(res.settings.link_life_seconds, PRESIGNED_MOST_SECONDS)
    return opened.presign_get(asset.object_key, seconds=seconds) if mode is LinkMode.PRESIGNED else None


def gateway_link(res: Resources, asset: LinkedAsset) -> str:
    """Return our own signed link to an asset."""
    expires = round_up_to_hour(res.clock.now(), res.settings.link_life_seconds)
    extension = EXTENSIONS.get(asset.content_type or "") or link_extension(asset.source)
    signature = _signature(res, asset.id, expires)
    base = f"{res.settings.public_url}/assets/{asset.id}/{asset.position + 1}.{extension}"
    return f"{base}?expires={expires}&key={_key_id(res)}&signature={signature}"


def check_link(res: Resources, asset_id: UUID, query: Mapping[str, Any]) -> None:
    """Let a link pass that we signed and whose end has not come.

    Raises:
        AccessDenied: not signed by us, or altered.
        Gone: it was ours, and has expired.
    """
    expires, signature = str(query.get("expires", "")), str(query.get("signature", ""))
    if not expires.isascii() or not expires.isdigit() or len(expires) > 11 or not signature.isascii():
        raise AccessDenied("This link is not signed by this gateway.")
    expected = _signature(res, asset_id, int(expires))
    if query.get("key") != _key_id(res) or not compare_digest(expected, signature):
        raise AccessDenied("This link is not signed by this gateway.")
    if int(expires) <= res.clock.now().timestamp():
        raise Gone("This link has expired; read the task again for a new one.")


def round_up_to_hour(now: datetime, life_seconds: int) -> int:
    """Return the unix second at which a link made now ends.

    >>> from datetime import UTC
    >>> round_up_to_hour(datetime(2026, 11, 22, 10, 0, 1, tzinfo=UTC), 3600) % 3600
    0
    >>> made = datetime(2026, 11, 22, 10, 0, 1, tzinfo=UTC)
    >>> round_up_to_hour(made, 3600) - int(made.timestamp())
    7199
    """
    end = int(now.timestamp()) + life_seconds
    return -(-end // HOUR_SECONDS) * HOUR_SECONDS


def _signature(res: Resources, asset_id: UUID, expires: int) -> str:
    tag = res.keyring.mac(MAC_PURPOSE, f"{asset_id}|{expires}".encode())
    return urlsafe_b64encode(tag).decode().rstrip("=")


def _key_id(res: Resources) -> str:
    return res.keyring.fingerprint()[:KEY_ID_CHARS]
