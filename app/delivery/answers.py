"""A task's answer as its team sees it: DashScope's shape, our id, the team's links where the upstream had its own.

Read from Postgres alone. Owns the shapes of dashscope-api.md 2.8; knows no HTTP.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.delivery.links import LinkedAsset, link_to
from app.lib.clock import in_upstream_form
from app.lib.crypto import unpack
from app.lib.db import direct_reading
from app.lib.ids import find_uuid
from app.models.assets import AssetState
from app.models.tasks import State
from app.resources import Resources
from app.tasks.states import is_terminal, upstream_word
from app.tasks.store_reads import read_answers
from app.upstream.results import replace_links

ECHOED_ID_MAX_CHARS = 100
ENDED = b"ended"  # kept in place of an answer: read the row


async def task_answer(res: Resources, team_id: UUID, asked_id: str, *, request_id: str) -> bytes:
    """Return the answer to "what became of this task": 200 whatever it is, UNKNOWN when it is not the team's.

    Answers about tasks that have not ended may be one second old (signals.py); endings are always read, and never
    leave this process, because they carry links.

    Raises:
        DatabaseAway: it cannot be read now.
    """
    task_id = find_uuid(asked_id)
    cache_key = f"{team_id}:{asked_id}"
    rest = await res.signals.find_status(cache_key) if task_id else None
    if rest is None or rest == ENDED:
        rest = await _read(res, team_id, asked_id, task_id=task_id, cache_key=cache_key)
    return b'{"request_id":' + json.dumps(request_id).encode() + b"," + rest[1:]


async def _read(res: Resources, team_id: UUID, asked_id: str, *, task_id: UUID | None, cache_key: str) -> bytes:
    row = None
    if task_id is not None:
        row = await res.reads.get((team_id, task_id), lambda asked: _read_together(res, asked))
    if row is None:
        return _bytes({"output": {"task_id": asked_id[:ECHOED_ID_MAX_CHARS], "task_status": "UNKNOWN"}})
    if is_terminal(State(row["state"])):
        # an earlier look that is written down later must not bring the task back to life
        await res.signals.put_status(cache_key, ENDED)
        return _bytes(await _ended(res, team_id, task_id=str(task_id), row=row))
    rest = _bytes({"output": _under_way(str(task_id), row)})
    await res.signals.put_status(cache_key, rest)
    return rest


async def _read_together(
    res: Resources, asked: Sequence[tuple[UUID, UUID]]
) -> Mapping[tuple[UUID, UUID], Mapping[str, Any]]:
    async with direct_reading(res) as session:
        return await read_answers(session, asked)


def _under_way(task_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    output = {
        "task_id": task_id,
        "task_status": upstream_word(State(row["state"])),
        "submit_time": in_upstream_form(row["created_at"]),
    }
    if row["started_at"] is not None:
        output["scheduled_time"] = in_upstream_form(row["started_at"])
    return output


async def _ended(res: Resources, team_id: UUID, *, task_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The upstream's own final answer where there is one, else ours in its shape; both without a request id."""
    answer = _opened(res, task_id, row)
    output = answer.get("output")
    if not isinstance(output, dict):
        return {"output": _ending(task_id, row)}
    output["task_id"] = task_id
    assets = json.loads(row["assets"] or "[]")
    replace_links(output, {asset["json_path"]: await link_to(res, _linked(res, team_id, asset)) for asset in assets})
    answer.pop("request_id", None)
    return answer


def _ending(task_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    finished_at: datetime = row["finished_at"]
    output = {**_under_way(task_id, row), "end_time": in_upstream_form(finished_at)}
    if row["code"] is not None:
        output |= {"code": row["code"], "message": row["message"] or ""}
    return output


def _opened(res: Resources, task_id: str, row: Mapping[str, Any]) -> dict[str, Any]:
    if row["answer"] is None:
        return {}
    answer = json.loads(unpack(res.keyring.open(row["answer"], place=f"task_bodies.answer:{task_id}")))
    return answer if isinstance(answer, dict) else {}


def _linked(res: Resources, team_id: UUID, asset: dict[str, Any]) -> LinkedAsset:
    source = res.keyring.open(bytes.fromhex(asset["source"]), place=f"assets.source:{asset['id']}").decode()
    return LinkedAsset(
        id=UUID(asset["id"]),
        team_id=team_id,
        position=asset["position"],
        state=AssetState(asset["state"]),
        place_id=UUID(asset["place_id"]) if asset["place_id"] else None,
        object_key=asset["object_key"],
        content_type=asset["content_type"],
        source=source,
    )


def _bytes(fields: dict[str, Any]) -> bytes:
    # A cut upstream text may end in half of a surrogate pair, which UTF-8 does not have; JSON has its escape.
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
