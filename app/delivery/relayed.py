"""Answers passed on at once: the upstream's, with our links in place of its own. From memory; nothing is read."""

import json
from typing import Any

from app.delivery.answers import SyncAnswer
from app.delivery.links import LinkedAsset, gateway_link
from app.models.assets import AssetState
from app.resources import Resources
from app.tasks.outcome import Made
from app.upstream.results import replace_links


def passed_on(res: Resources, made: Made) -> SyncAnswer:
    """Return what a relayed call is answered; the upstream's links in `made` are lost by it."""
    output = made.answer.get("output")
    if isinstance(output, dict):
        replace_links(output, {asset["json_path"]: link_of(res, asset) for asset in made.assets})
    return SyncAnswer(200, json.dumps(made.answer, ensure_ascii=False).encode("utf-8", "backslashreplace"))


def link_of(res: Resources, asset: dict[str, Any]) -> str:
    """Return our link to a file that was written down a moment ago: it streams from the upstream until it is stored."""
    source = res.keyring.open(asset["source"], place=f"assets.source:{asset['id']}").decode()
    return gateway_link(
        res,
        LinkedAsset(
            id=asset["id"],
            team_id=asset["team_id"],
            position=asset["position"],
            state=AssetState.WAITING,
            place_id=asset["place_id"],
            object_key=None,
            content_type=None,
            source=source,
        ),
    )
