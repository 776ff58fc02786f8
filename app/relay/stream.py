"""Stream: pass a streamed call through, event by event, and keep what it made although its reader may leave.

Owns the pump between the upstream's events and the outlet. Which links stand in for the upstream's is handed in:
delivery is a neighbour that this room does not see.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.errors import AnswerLost, DashgateError, InternalTrouble, NotSent, UpstreamAccountAtFault
from app.lib.ids import new_id
from app.lib.metrics import UPSTREAM_CALLS
from app.relay.outlet import Outlet
from app.resources import Resources
from app.routing.accounts import upstream_of
from app.tasks.attempts import Attempt, InlineWait, hold_on_to
from app.tasks.blame import find_another_key, pause_what_is_at_fault
from app.tasks.call import Ended, begin, lose, not_sent, outgoing_of, refuse
from app.tasks.outcome import Broken, make_asset, record_broken, record_made, record_seen
from app.tasks.prepare import Prepared, prepare
from app.upstream import calls
from app.upstream.answers import Refused, Succeeded
from app.upstream.client import text_of
from app.upstream.faults import Fault, fault_of
from app.upstream.results import Artifact, find_artifacts, find_usage, replace_links
from app.upstream.streams import MOST_FILES, BadStream, SseEvent, StreamedAnswer, fields_of, format_event

log = structlog.get_logger()

LinkTo = Callable[[dict[str, Any]], str]
LAST_WORD_SECONDS = 0.5  # after the event that ends the answer: so long it waits for the end of the stream
BROKEN_OFF = "The upstream broke off this stream."
BROKEN_CODE = "Dashgate.OutcomeUnknown"
FAILED_STATUS = 500  # of an error event that tells none


@dataclass(slots=True)
class Passage:
    """A streamed call on its way through. `opened` tells how it began, a stream with None.

    `assets` are by their place in the folded answer, `urls` are the upstream's links of them; `counted` is what the
    last usage said beside tokens, `seen` the billable part that was committed last; `last` is the event that ends the
    answer, held back until the outcome is recorded.
    """

    attempt: Attempt
    link_to: LinkTo
    outlet: Outlet = field(default_factory=Outlet)
    opened: asyncio.Future[Ended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    streamed: StreamedAnswer = field(default_factory=StreamedAnswer)
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    counted: dict[str, Any] = field(default_factory=dict)
    seen: list[Any] = field(default_factory=list)
    last: bytes | None = None
    events: int = 0
    is_open: bool = False
    is_recorded: bool = False

    @property
    def request_id(self) -> str:
        """The upstream's id of this call, as a row can hold it; empty until it was told."""
        return text_of({"request_id": self.streamed.request_id}, "request_id")

    def counts_anew(self) -> bool:
        """Tell whether the usage counts anything but tokens otherwise than at the last call."""
        usage = self.streamed.usage
        if usage is None:
            return False
        counted = {name: value for name, value in usage.items() if not name.endswith("tokens")}
        if counted == self.counted:
            return False
        self.counted = counted
        return True

    def open(self) -> None:
        """Say that it began as a stream: events come."""
        self.is_open = True
        self.began(None)

    def began(self, ended: Ended) -> None:
        """Say how it began, once."""
        if not self.opened.done():
            self.opened.set_result(ended)

    def failed(self, trouble: DashgateError) -> None:
        """Say that it did not begin, for a reason of our own."""
        if not self.opened.done():
            self.opened.set_exception(trouble)

    async def let_go(self) -> None:
        """Hand on what was held back."""
        if self.last is not None:
            last, self.last = self.last, None
            await self.outlet.put(last)


async def pump(res: Resources, passage: Passage) -> None:
    """Make a streamed call and pass its events on, to the end, whether or not somebody still reads.

    1. Wait for the slot, prepare the body, check the lease (call.prepare).
    2. Outside: the call. An answer that is no stream is recorded as any synchronous one.
    3. Per event: files and a usage that has grown are committed (record_seen) before the event is handed on with
       the gateway's links, so that any process serves them and no death of this one loses them.
    4. Before the last event is handed on, one transaction: the whole outcome. A stream that breaks off ends the task
       as failed, with what it had shown on the bill.

    A crash after 3 leaves the usage seen: rescue bills it when the lease lapses. Ends when the reader has everything,
    or is gone, so that a process that stops waits for both.
    """
    try:
        await _carry_through(res, passage)
    except Exception:  # what came of it is not written down: rescue looks after it, and nobody may send it again
        ours = InternalTrouble()
        passage.failed(ours)
        if passage.is_open:
            await _tell_error(passage, {"code": ours.code, "message": ours.message}, status=ours.status)
        raise
    finally:
        passage.opened.cancel()  # where it is open still, this process is ending
        passage.outlet.end()
    await passage.outlet.emptied()


async def _carry_through(res: Resources, passage: Passage) -> None:
    attempt = passage.attempt
    try:
        prepared = await prepare(res, attempt)
        if not isinstance(prepared, Prepared):
            passage.began(prepared)
            return
        await _call(res, passage, prepared)
    except NotSent:
        passage.began(await not_sent(res, attempt))
    except (AnswerLost, BadStream) as trouble:
        lost = trouble if isinstance(trouble, AnswerLost) else AnswerLost(str(trouble))
        if passage.streamed.is_finished:  # all was said before it broke
            await _finish(res, passage)
        elif passage.is_open:
            await _break_off(res, passage, lost)
        else:
            await lose(res, attempt, lost)
            passage.began(None)


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
    """Pass on events to the end of the stream, and record its outcome, whatever that is."""
    await hold_on_to(res, passage.attempt, lambda: begin(res, passage.attempt))
    passage.open()
    async for event in stream.events:
        if not await _take(res, passage, event):
            return
        if passage.last is not None:
            await _hear_out(res, passage, stream.events)
            return
    streamed = passage.streamed
    if streamed.is_empty or (stream.may_be_cut and streamed.says_ends):
        raise AnswerLost("a stream that ended without an answer")
    await _finish(res, passage)


async def _hear_out(res: Resources, passage: Passage, events: AsyncIterator[SseEvent]) -> None:
    """Wait for what follows the event that ends the answer, mostly the end of the stream.

    The outcome is all that was said until then; but an upstream that lingers does not keep it waiting.
    """
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.wait({coming}, timeout=LAST_WORD_SECONDS)
            if not coming.done():
                await _finish(res, passage)
            event = await coming
        finally:
            coming.cancel()
        if event is None:
            await _finish(res, passage)
            return
        await passage.let_go()
        if not await _take(res, passage, event):
            return


async def _take(res: Resources, passage: Passage, event: SseEvent) -> bool:
    """Keep what an event shows and hand it on; False: it is the error that ends the stream.

    Most events carry only words: they pass as they came, and nothing is written for them.
    """
    fields = fields_of(event)
    passage.events += 1
    if event.event.startswith("error") or ("output" not in fields and fields.get("code")):
        await _fail(res, passage, event, fields=fields)
        return False
    places = passage.streamed.fold(fields)
    if places or passage.counts_anew() or not event.is_plain:
        chunk = await _keep(res, passage, event, fields=fields, places=places)
    else:
        chunk = event.raw
    if passage.streamed.is_finished and not passage.is_recorded:
        passage.last = chunk
    elif chunk:
        await passage.outlet.put(chunk)
    return True


async def _keep(
    res: Resources, passage: Passage, event: SseEvent, *, fields: dict[str, Any], places: dict[str, str]
) -> bytes:
    """Keep what an event shows; return it as it is handed on: byte for byte, unless there are files in it."""
    output: dict[str, Any] = fields.get("output") or {}
    urls = {file.json_path: file.url for file in find_artifacts(output)} if places else {}
    new = [Artifact(place, urls[path]) for path, place in places.items() if place not in passage.assets]
    if passage.is_recorded and new:
        log.error("stream.late_files", task=str(passage.attempt.task_id), files=len(new))
        return b""
    await _keep_seen(res, passage, new)
    if any(passage.urls[place] != urls[path] for path, place in places.items()):
        raise BadStream("a file in the place of another")
    data = event.data
    if places:
        replace_links(output, {path: passage.link_to(passage.assets[place]) for path, place in places.items()})
        data = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    elif event.is_plain:
        return event.raw
    event_id, status = event.id or str(passage.events), event.status or 200
    return format_event(event.event or "result", data, event_id=event_id, status=status)


async def _keep_seen(res: Resources, passage: Passage, new: list[Artifact]) -> None:
    """Commit files, and a usage that has grown."""
    usage = passage.streamed.usage or {}
    billable = [one for one in find_usage({"usage": usage}) if one.quantity] if usage else []
    if passage.is_recorded or (not new and billable == passage.seen):
        return
    attempt, first = passage.attempt, len(passage.assets)
    if first + len(new) > MOST_FILES:
        raise BadStream(f"a stream with more than {MOST_FILES} files")
    subject = {"id": attempt.task_id, "team_id": attempt.team_id, "place_id": attempt.place_id}
    assets = [make_asset(res, subject, position=first + n, artifact=artifact) for n, artifact in enumerate(new)]
    shown = _plain_values(usage) if billable else {"image_count": first + len(assets)}
    seen = {"usage": shown, "request_id": passage.request_id}
    await hold_on_to(res, attempt, lambda: record_seen(res, attempt, seen=seen, assets=assets))
    passage.assets |= {asset["json_path"]: asset for asset in assets}
    passage.urls |= {artifact.json_path: artifact.url for artifact in new}
    passage.seen = billable


def _plain_values(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a usage that can be billed by, and that a row can hold."""
    return {
        name: text_of(usage, name) if isinstance(value, str) else value
        for name, value in usage.items()
        if name.isidentifier() and (value is None or isinstance(value, str | int | float))
    }


async def _finish(res: Resources, passage: Passage) -> None:
    """Record the whole outcome, once, and hand on what was held back for it."""
    if not passage.is_recorded:
        answer, assets = passage.streamed.answer, list(passage.assets.values())
        body = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace")
        made = Succeeded(passage.request_id, answer, body)
        await hold_on_to(res, passage.attempt, lambda: record_made(res, passage.attempt, made, streamed=assets))
        passage.is_recorded = True
        UPSTREAM_CALLS.labels("sync", "succeeded").inc()
    await passage.let_go()


async def _fail(res: Resources, passage: Passage, event: SseEvent, *, fields: dict[str, Any]) -> None:
    """The upstream itself ends the stream with an error: recorded, and passed on in its own words."""
    words = {name: text_of(fields, name) for name in ("code", "message", "request_id")}
    words["code"] = words["code"] or InternalTrouble.code
    status = event.status if event.status is not None and event.status >= 400 else FAILED_STATUS
    fault = fault_of(status, words["code"], words["message"])
    UPSTREAM_CALLS.labels("sync", fault).inc()
    if fault is Fault.ACCOUNT:  # ours: its details stay with the operator
        refused = Refused(status, words["code"], words["message"], words["request_id"], b"", fault)
        await hold_on_to(res, passage.attempt, lambda: pause_what_is_at_fault(res, passage.attempt, refused))
        ours = UpstreamAccountAtFault()
        words, status = {**words, "code": ours.code, "message": ours.message}, ours.status
    await _record_broken(res, passage, Broken(words["code"], words["message"]), reason=words["code"])
    await _tell_error(passage, words, status=status, event_id=event.id)


async def _break_off(res: Resources, passage: Passage, lost: AnswerLost) -> None:
    """The stream broke off: recorded as lost, and told to its reader in DashScope's own framing."""
    UPSTREAM_CALLS.labels("sync", "lost").inc()
    await _record_broken(res, passage, Broken(BROKEN_CODE, BROKEN_OFF, is_lost=True), reason=lost.reason)
    await _tell_error(passage, {"code": BROKEN_CODE, "message": BROKEN_OFF}, status=FAILED_STATUS)


async def _record_broken(res: Resources, passage: Passage, broken: Broken, *, reason: str) -> None:
    await passage.let_go()
    if not passage.is_recorded:
        answer, assets = {**passage.streamed.answer, "request_id": passage.request_id}, list(passage.assets.values())
        await hold_on_to(
            res, passage.attempt, lambda: record_broken(res, passage.attempt, broken, answer=answer, assets=assets)
        )
        log.warning("stream.broken", task=str(passage.attempt.task_id), reason=reason, files=len(assets))


async def _tell_error(passage: Passage, words: dict[str, str], *, status: int, event_id: str = "") -> None:
    """End the stream with an error; the vendor's readers stumble over one that lacks any of three words."""
    request_id = words.get("request_id") or passage.request_id or str(new_id())
    data = json.dumps({**words, "request_id": request_id}, ensure_ascii=False, separators=(",", ":"))
    number = event_id or str(passage.events + 1)
    await passage.outlet.put(format_event("error", data, event_id=number, status=status))
