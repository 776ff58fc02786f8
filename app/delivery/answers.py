"""A task's answer as its team sees it: DashScope's shape, our id, the team's links where the upstream had its own.

Read from Postgres alone, also by those who wait for it to change. Owns the shapes of dashscope-api.md 2.8 and, for
calls that were waited for, 2.5; knows no HTTP.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.delivery.kept import find_kept, keep
from app.delivery.links import LinkedAsset, link_to
from app.errors import UpstreamAccountAtFault
from app.lib.clock import in_upstream_form
from app.lib.crypto import unpack
from app.lib.db import direct_reading
from app.lib.ids import find_uuid
from app.models.assets import AssetState
from app.models.tasks import State, UpstreamCall
from app.resources import Resources
from app.tasks.states import is_terminal, upstream_word
from app.tasks.store_reads import find_answer, read_answers
from app.tasks.waiting import wait_for_task
from app.upstream.faults import http_status_of
from app.upstream.results import replace_links

ECHOED_ID_MAX_CHARS = 100
ENDED = b"ended"  # kept in place of an answer: read the row
# What a single query says of a task beside its results; a synchronous call knows of no task.
TASK_FIELDS = ("task_id", "task_status", "submit_time", "scheduled_time", "end_time")
CANCELED_CODE = "Dashgate.Canceled"  # no code of the upstream's: nobody waits there for a task that he cancels
CANCELED_MESSAGE = "The task was cancelled while this call waited for it."

Row = Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """What a call is answered on its connection."""

    status: int
    body: bytes


async def task_answer(res: Resources, team_id: UUID, asked_id: str, *, request_id: str) -> bytes:
    """Return the answer to "what became of this task": 200 whatever it is, UNKNOWN when it is not the team's.

    Answers about tasks that have not ended may be one second old (signals.py); endings are always read, and never
    leave this process, because they carry links.

    Raises:
        DatabaseAway: it cannot be read now.
    """
    task_id = find_uuid(asked_id)
    cache_key = f"{team_id}:{asked_id}"
    rest = await find_kept(res, cache_key) if task_id else None
    if rest is None or rest == ENDED:
        rest = await _write(res, team_id, asked_id, row=await _find(res, team_id, task_id))
    return _with_id(request_id, rest)


async def awaited_task_answer(
    res: Resources, team_id: UUID, asked_id: str, *, request_id: str, wait_seconds: float
) -> bytes:
    """Return the same answer when the task has ended, or as things stand when time is up; never an old one.

    Raises:
        DatabaseAway: as `task_answer`.
    """
    task_id = find_uuid(asked_id)
    row = await _find(res, team_id, task_id)
    if task_id is not None and row is not None and not is_terminal(State(row["state"])):
        await wait_for_task(res, task_id, is_over=_has_ended, timeout_seconds=wait_seconds)
        row = await _find(res, team_id, task_id)
    return _with_id(request_id, await _write(res, team_id, asked_id, row=row))


async def task_answers(
    res: Resources, team_id: UUID, asked_id: str, *, request_id: str, silence_seconds: float
) -> AsyncGenerator[bytes | None, None]:
    """Yield the answer now and each time it is another one, until the task has ended or the process is about to.

    None is yielded where there was nothing to say for `silence_seconds`, or a little less.

    Raises:
        DatabaseAway: as `task_answer`.
    """
    task_id, last = find_uuid(asked_id), None
    while True:
        row = await _find(res, team_id, task_id)
        rest = await _write(res, team_id, asked_id, row=row)
        yield _with_id(request_id, rest) if rest != last else None
        last = rest
        if task_id is None or row is None or is_terminal(State(row["state"])) or res.waiters.is_ending:
            return
        await wait_for_task(res, task_id, is_over=_has_left(row["state"]), timeout_seconds=silence_seconds)


async def sync_answer(res: Resources, team_id: UUID, task_id: UUID) -> SyncAnswer:
    """Return what a call is told whose task has ended, as if it had been synchronous all along.

    The results with the team's links; or the error, with the status that belongs to its code (design.md 7). Where the
    upstream itself answered with an error, that answer unchanged.

    Raises:
        LookupError: the team has no such task, or it has not ended.
        DatabaseAway: it cannot be read now.
    """
    async with direct_reading(res) as session:
        row = await find_answer(session, team_id, task_id)
    if row is None or not is_terminal(State(row["state"])):
        raise LookupError("this task has no final answer")
    if row["state"] == State.SUCCEEDED:
        return SyncAnswer(200, _bytes(await _made(res, team_id, task_id=str(task_id), row=row)))
    if row["answer_status"] is not None and row["answer"] is not None:
        return SyncAnswer(row["answer_status"], _unsealed(res, str(task_id), row))
    status, code, message = _trouble(row)
    return SyncAnswer(status, _bytes({"code": code, "message": message, "request_id": _request_id(row)}))


async def _find(res: Resources, team_id: UUID, task_id: UUID | None) -> Row | None:
    """Find a team's task, together with whatever else is asked for at this moment."""
    return await res.reads.get((team_id, task_id), lambda asked: _read_together(res, asked)) if task_id else None


async def _write(res: Resources, team_id: UUID, asked_id: str, *, row: Row | None) -> bytes:
    """Write the answer about a task, without its request id, and keep it for the next second's reads."""
    if row is None:
        return _bytes({"output": {"task_id": asked_id[:ECHOED_ID_MAX_CHARS], "task_status": "UNKNOWN"}})
    task_id, cache_key = str(row["id"]), f"{team_id}:{asked_id}"
    if is_terminal(State(row["state"])):
        # an earlier look that is written down later must not bring the task back to life
        await keep(res, cache_key, ENDED)
        return _bytes(await _ended(res, team_id, task_id=task_id, row=row))
    rest = _bytes({"output": _under_way(task_id, row)})
    await keep(res, cache_key, rest)
    return rest


async def _read_together(res: Resources, asked: Sequence[tuple[UUID, UUID]]) -> Mapping[tuple[UUID, UUID], Row]:
    async with direct_reading(res) as session:
        return await read_answers(session, asked)


def _has_ended(task: Row) -> bool:
    return is_terminal(State(task["state"]))


def _has_left(state: str) -> Callable[[Row], bool]:
    return lambda task: task["state"] != state


def _under_way(task_id: str, row: Row) -> dict[str, Any]:
    output = {
        "task_id": task_id,
        "task_status": upstream_word(State(row["state"]), UpstreamCall(row["upstream_call"])),
        "submit_time": in_upstream_form(row["created_at"]),
    }
    if row["started_at"] is not None:
        output["scheduled_time"] = in_upstream_form(row["started_at"])
    return output


async def _ended(res: Resources, team_id: UUID, *, task_id: str, row: Row) -> dict[str, Any]:
    """The upstream's own final answer where there is one, else ours in its shape; both without a request id."""
    answer = _opened(res, task_id, row)
    output = answer.get("output")
    if not isinstance(output, dict):
        return {"output": _ending(task_id, row)}
    if row["upstream_call"] == UpstreamCall.SYNC:  # it was told of no task
        output = answer["output"] = {**_ending(task_id, row), **output}
    output["task_id"] = task_id
    await _put_links(res, team_id, output, row=row)
    answer.pop("request_id", None)
    return answer


async def _made(res: Resources, team_id: UUID, *, task_id: str, row: Row) -> dict[str, Any]:
    """What was made, in the shape of a synchronous answer (dashscope-api.md 2.5)."""
    answer = _opened(res, task_id, row)
    told = answer.get("output")
    output = {name: value for name, value in told.items() if name not in TASK_FIELDS} if isinstance(told, dict) else {}
    await _put_links(res, team_id, output, row=row)
    rest = {name: value for name, value in answer.items() if name not in ("output", "request_id")}
    return {"output": output, **rest, "request_id": answer.get("request_id") or _request_id(row)}


def _trouble(row: Row) -> tuple[int, str, str]:
    """Return status, code and message of a task that ended badly."""
    code, message = row["code"] or "", row["message"] or ""
    if row["state"] == State.CANCELED:
        return 400, CANCELED_CODE, CANCELED_MESSAGE
    if code == UpstreamAccountAtFault.code:
        trouble = UpstreamAccountAtFault()
        return trouble.status, code, trouble.message
    return http_status_of(code, message), code, message


def _request_id(row: Row) -> str:
    """Return the upstream's last word's id, or that of the call itself where the upstream never had one."""
    return str(row["upstream_request_id"] or row["request_id"])


def _ending(task_id: str, row: Row) -> dict[str, Any]:
    output = _under_way(task_id, row)
    if row["state"] != State.CANCELED:  # a cancelled task has no end (dashscope-api.md 2.8)
        output["end_time"] = in_upstream_form(row["finished_at"])
    if row["code"] is not None:
        output |= {"code": row["code"], "message": row["message"] or ""}
    return output


def _opened(res: Resources, task_id: str, row: Row) -> dict[str, Any]:
    if row["answer"] is None:
        return {}
    answer = json.loads(_unsealed(res, task_id, row))
    return answer if isinstance(answer, dict) else {}


def _unsealed(res: Resources, task_id: str, row: Row) -> bytes:
    return unpack(res.keyring.open(row["answer"], place=f"task_bodies.answer:{task_id}"))


def _with_id(request_id: str, rest: bytes) -> bytes:
    return b'{"request_id":' + json.dumps(request_id).encode() + b"," + rest[1:]


async def _put_links(res: Resources, team_id: UUID, output: dict[str, Any], *, row: Row) -> None:
    """Put the team's links in the place of the upstream's."""
    assets = json.loads(row["assets"] or "[]")
    replace_links(output, {asset["json_path"]: await link_to(res, _linked(res, team_id, asset)) for asset in assets})


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
