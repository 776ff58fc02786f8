"""Stream: pass a streamed call through, event by event, and keep what it made although its reader may leave.

Owns the pump between the upstream's events and the outlet. Which links stand in for the upstream's is handed in:
delivery is a neighbour that this room does not see.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.errors import AnswerLost, NotSent
from app.lib.ids import new_id
from app.relay.outlet import Outlet
from app.resources import Resources
from app.routing.accounts import upstream_of
from app.tasks.attempts import Attempt, InlineWait, hold_on_to
from app.tasks.blame import find_another_key
from app.tasks.call import Ended, begin, lose, not_sent, outgoing_of, refuse
from app.tasks.outcome import Broken, make_asset, record_broken, record_made, record_seen
from app.tasks.prepare import Prepared, prepare
from app.upstream import calls
from app.upstream.answers import Refused, Succeeded
from app.upstream.results import Artifact, find_artifacts, find_usage, replace_links
from app.upstream.streams import SseEvent, StreamedAnswer, format_event

log = structlog.get_logger()

LinkTo = Callable[[dict[str, Any]], str]
BROKEN_OFF = "The upstream broke off this stream."
BROKEN_CODE = "Dashgate.OutcomeUnknown"


@dataclass(slots=True)
class Passage:
    """A streamed call on its way through. `opened` tells how it began, a stream with None; `assets` are by their place
    in the folded answer, `seen` is the usage that was committed last."""

    attempt: Attempt
    link_to: LinkTo
    outlet: Outlet = field(default_factory=Outlet)
    opened: asyncio.Future[Ended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    streamed: StreamedAnswer = field(default_factory=StreamedAnswer)
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    is_recorded: bool = False
    events: int = 0
    _is_open: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it began as a stream."""
        return self._is_open

    def open(self) -> None:
        """Say that events come."""
        self._is_open = True
        self.began(None)

    def began(self, ended: Ended) -> None:
        """Say how it began, once."""
        if not self.opened.done():
            self.opened.set_result(ended)


async def pump(res: Resources, passage: Passage) -> None:
    """Make a streamed call and pass its events on, to the end, whether or not somebody still reads.

    1. Wait for the slot, prepare the body, check the lease (call.prepare).
    2. Outside: the call. An answer that is no stream is recorded as any synchronous one.
    3. Per event: files and a usage that has grown are committed (record_seen) before the event is handed on with
       the gateway's links, so that any process serves them and no death of this one loses them.
    4. Before the last event is handed on, one transaction: the whole outcome. A stream that breaks off ends the task
       as failed, with what it had shown on the bill.

    A crash after 3 leaves the usage seen: rescue bills it when the lease lapses.
    """
    attempt = passage.attempt
    try:
        prepared = await prepare(res, attempt)
        if not isinstance(prepared, Prepared):
            passage.began(prepared)
            return
        await _call(res, passage, prepared)
    except NotSent:
        passage.began(await not_sent(res, attempt))
    except AnswerLost as lost:
        if passage.opened.done():
            await _break_off(res, passage, Broken(BROKEN_CODE, BROKEN_OFF, is_lost=True), request_id=lost.request_id)
        else:
            await lose(res, attempt, lost)
            passage.began(None)
    finally:
        if not passage.opened.done():
            passage.opened.cancel()
        passage.outlet.end()


async def _call(res: Resources, passage: Passage, prepared: Prepared) -> None:
    attempt, key = passage.attempt, passage.attempt.key
    outgoing = outgoing_of(res, attempt, prepared)
    while True:
        upstream = upstream_of(res, attempt.account, key=key)
        async with calls.open_stream(upstream, outgoing) as opened:
            if isinstance(opened, calls.Stream):
                await _pass_on(res, passage, opened)
                return
        other = await find_another_key(res, attempt, key=key, answer=opened)
        if other is not None:
            key = other
        else:
            passage.began(await _take_whole(res, attempt, opened))
            return


async def _take_whole(res: Resources, attempt: Attempt, whole: calls.Called) -> Ended:
    """Record an answer that is no stream."""
    if isinstance(whole, Refused):
        return await refuse(res, attempt, whole, inline=InlineWait())
    return await hold_on_to(res, attempt, lambda: record_made(res, attempt, whole))


async def _pass_on(res: Resources, passage: Passage, stream: calls.Stream) -> None:
    await hold_on_to(res, passage.attempt, lambda: begin(res, passage.attempt))
    passage.open()
    async for event in stream.events:
        if passage.is_recorded:
            await passage.outlet.put(event.raw)  # nothing new can be made any more
            continue
        passage.events += 1
        fields = _fields(event)
        if event.event == "error" or (fields.get("code") and "output" not in fields):
            trouble = Broken(str(fields.get("code") or "InternalError"), str(fields.get("message") or ""))
            await _break_off(res, passage, trouble, event=event)
            return
        await _pass_event(res, passage, event, fields=fields)
    if not passage.is_recorded:
        if not passage.events:
            raise AnswerLost("a stream without events")
        await _finish(res, passage)


async def _pass_event(res: Resources, passage: Passage, event: SseEvent, *, fields: dict[str, Any]) -> None:
    """Keep what an event shows, then hand it on."""
    output = fields.get("output")
    places = passage.streamed.fold(fields)
    shown = {artifact.json_path: artifact for artifact in find_artifacts(output)} if isinstance(output, dict) else {}
    new = [Artifact(places[path], shown[path].url) for path in shown if places[path] not in passage.assets]
    await _keep_seen(res, passage, new)
    if passage.streamed.is_finished:
        await _finish(res, passage)
    if not shown or not isinstance(output, dict):
        await passage.outlet.put(event.raw)
        return
    replace_links(output, {path: passage.link_to(passage.assets[places[path]]) for path in shown})
    data = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    event_id, status = event.id or str(passage.events), event.status or 200
    await passage.outlet.put(format_event(event.event or "result", data, event_id=event_id, status=status))


async def _keep_seen(res: Resources, passage: Passage, new: list[Artifact]) -> None:
    """Commit files and a usage that has grown; most events, which carry only words, cost nothing."""
    usage = passage.streamed.usage
    billable = [one for one in find_usage({"usage": usage}) if one.quantity] if usage else []
    if not new and billable == passage.seen:
        return
    attempt, first = passage.attempt, len(passage.assets)
    subject = {"id": attempt.task_id, "team_id": attempt.team_id, "place_id": attempt.place_id}
    assets = [make_asset(res, subject, position=first + n, artifact=artifact) for n, artifact in enumerate(new)]
    seen = usage or {"image_count": first + len(assets)}
    await hold_on_to(res, attempt, lambda: record_seen(res, attempt, usage=seen, assets=assets))
    passage.assets |= {asset["json_path"]: asset for asset in assets}
    passage.seen = billable


async def _finish(res: Resources, passage: Passage) -> None:
    """Record the whole outcome."""
    answer = passage.streamed.answer
    made = Succeeded(answer["request_id"], answer, json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))
    assets = list(passage.assets.values())
    await hold_on_to(res, passage.attempt, lambda: record_made(res, passage.attempt, made, streamed=assets))
    passage.is_recorded = True


async def _break_off(
    res: Resources, passage: Passage, broken: Broken, *, event: SseEvent | None = None, request_id: str | None = None
) -> None:
    """Record a stream that ended badly, and say so to its reader in DashScope's own framing."""
    if not passage.is_recorded:
        answer = passage.streamed.answer
        assets = list(passage.assets.values())
        await hold_on_to(
            res, passage.attempt, lambda: record_broken(res, passage.attempt, broken, answer=answer, assets=assets)
        )
        log.warning("stream.broken", task=str(passage.attempt.task_id), code=broken.code, files=len(assets))
    status = (event.status if event is not None else None) or 500
    words = {"code": broken.code, "message": broken.message, "request_id": request_id or _request_id(passage)}
    data = event.data if event is not None else json.dumps(words, ensure_ascii=False)
    event_id = event.id if event is not None and event.id else str(passage.events + 1)
    await passage.outlet.put(format_event("error", data, event_id=event_id, status=status))


def _request_id(passage: Passage) -> str:
    return str(passage.streamed.answer["request_id"]) or str(new_id())


def _fields(event: SseEvent) -> dict[str, Any]:
    try:
        parsed = json.loads(event.data)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
