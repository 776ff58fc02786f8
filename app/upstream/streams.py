"""Streams of events: reading them from bytes, writing them, and folding them into one answer (dashscope-api.md 2.6).

Does no input or output: whoever reads the connection feeds the parser. Knows no task and no link of ours. What comes
is not trusted: every size has its bound.
"""

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from app.upstream.results import find_artifacts

EVENT_MAX_BYTES = 1024 * 1024
KEPT_MAX_CHARS = 4_000_000  # of one answer; what is said beyond it is forwarded, but not kept
MOST_CHOICES = 100
MOST_FILES = 1_000
DEPTH_MAX = 64  # of an event's JSON: one of ours has seven levels
STATUS = re.compile(rb"\s*HTTP_STATUS/([0-9]{3})\s*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNREADABLE = "\ufffd"
NO_DATA = ("", "[DONE]")  # an event that says nothing is none of ours to refuse
UNFINISHED = ("", "null")  # the upstream says the word "null" until the last event


class BadStream(ValueError):
    """The bytes are no stream of events, or more is in it than any answer has."""


@dataclass(slots=True)  # not frozen: making one takes a third of the time so, and there are thousands a second
class SseEvent:
    """One event: its fields, the HTTP status told in a comment, and the bytes it was read from.

    `is_plain`: those bytes say these fields to everybody. Others could be read differently by another parser: fields
    said twice, unknown ones, lines that end in a bare carriage return.
    """

    event: str
    data: str
    id: str = ""
    status: int | None = None
    raw: bytes = field(default=b"", repr=False)
    is_plain: bool = field(default=True, repr=False)


class SseParser:
    """Cuts a stream of bytes, in whatever pieces it comes, into events. Events without any field are left out.

    >>> parser = SseParser()
    >>> parser.feed(b"id:1\\nevent:result\\n:HTTP_STA")
    []
    >>> parser.feed(b"TUS/200\\ndata:{}\\n\\n: still here\\n\\nid:2")
    [SseEvent(event='result', data='{}', id='1', status=200)]
    """

    def __init__(self, *, event_max_bytes: int = EVENT_MAX_BYTES) -> None:
        self._max_bytes = event_max_bytes
        self._read = bytearray()  # from the first byte of the event under way
        self._line_at = 0  # where its unfinished line begins
        self._searched = 0  # up to where that line is known to have no end: long lines come in many pieces
        self._lines: list[bytes] = []
        self._empty_bytes = 0  # of comments since the last event: a flood of them is no stream
        self._is_broken = False

    @property
    def is_broken(self) -> bool:
        """Whether an event was too long: nothing more comes of this stream."""
        return self._is_broken

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that these bytes complete.

        Raises:
            BadStream: an event is too long. Those complete before it are returned first; the next call raises.
        """
        events: list[SseEvent] = []
        if not self._is_broken:
            rest = 0 if self._read else self._take_usual(chunk, events)
            if rest < len(chunk):
                self._read += chunk[rest:] if rest else chunk
                events += self._cut()
                self._is_broken = self._is_broken or len(self._read) > self._max_bytes
        if self._is_broken and not events:
            raise BadStream(f"an event of more than {self._max_bytes} bytes")
        return events

    def close(self) -> list[SseEvent]:
        """Return the last event where the stream ended without the empty line after it; it may be cut short."""
        return [] if self._is_broken or not self._read else self.feed(b"\n\n")

    def _take_usual(self, chunk: bytes, events: list[SseEvent]) -> int:
        """Add the whole events at the head of a chunk that look as the upstream's do; return where others begin."""
        at = 0
        while (found := _USUAL.match(chunk, at)) is not None and found.end() - at <= self._max_bytes:
            event_id, event, status, data = found.groups()
            try:
                said = SseEvent(event.decode(), data.decode(), event_id.decode(), int(status), found[0])
            except UnicodeDecodeError:
                return at
            events.append(said)
            self._empty_bytes, at = 0, found.end()
        return at

    def _cut(self) -> Iterator[SseEvent]:
        while (end := self._read.find(b"\n", self._searched)) >= 0:
            line = bytes(self._read[self._line_at : end]).removesuffix(b"\r")
            self._line_at = self._searched = end + 1
            if line:
                self._lines.append(line)
                continue
            if self._line_at > self._max_bytes:
                self._is_broken = True
                return
            event = _parse(self._lines, bytes(self._read[: self._line_at]))
            self._empty_bytes = self._empty_bytes + self._line_at if event is None else 0
            self._lines = []
            del self._read[: self._line_at]
            self._line_at = self._searched = 0
            if event is not None:
                yield event
            elif self._empty_bytes > self._max_bytes:
                self._is_broken = True
                return
        self._searched = len(self._read)


def format_event(event: str, data: str, *, event_id: str, status: int = 200) -> bytes:
    r"""Write an event as the upstream does: no space after a colon, which the vendor's parser would stumble over.

    Half of a surrogate pair, which a cut text may end in and UTF-8 does not have, becomes its JSON escape.

    >>> format_event("error", '{"code":"InternalError"}', event_id="3", status=500)
    b'id:3\nevent:error\n:HTTP_STATUS/500\ndata:{"code":"InternalError"}\n\n'
    """
    text = "\n".join(f"data:{line}" for line in _LINE_END.split(data))
    return f"id:{event_id}\nevent:{event}\n:HTTP_STATUS/{status}\n{text}\n\n".encode("utf-8", "backslashreplace")


def fields_of(event: SseEvent) -> dict[str, Any]:
    """Return the JSON object of an event; an event without data has none.

    >>> fields_of(SseEvent("result", '{"request_id":"r-1"}')), fields_of(SseEvent("done", "[DONE]"))
    ({'request_id': 'r-1'}, {})

    Raises:
        BadStream: its data is no JSON object, or one that could not be written again.
    """
    if event.data in NO_DATA:
        return {}
    try:
        if UNREADABLE in event.data:
            event.raw.decode()  # it may be what was said, or stand for bytes that are no text
        fields, end = _JSON.raw_decode(data := event.data.strip())
    except (ValueError, RecursionError):
        raise BadStream("an event that is no JSON") from None
    if end != len(data) or not isinstance(fields, dict) or _is_too_deep(data, fields):
        raise BadStream("an event that is no JSON object, or too deep a one")
    return fields


class StreamedAnswer:
    """Folds the events of a streamed call into the answer that the same call gives without a stream.

    Text comes in pieces and is joined until an image comes; an image comes whole; `usage` is the sum so far.

    >>> streamed = StreamedAnswer()
    >>> def say(item, usage, reason="null"):
    ...     choices = [{"message": {"role": "assistant", "content": [item]}, "finish_reason": reason}]
    ...     return streamed.fold({"output": {"choices": choices}, "usage": usage, "request_id": "r-1"})
    >>> say({"type": "text", "text": "Fold"}, {"image_count": 0}), say({"type": "text", "text": " it"}, {})
    ({}, {})
    >>> say({"type": "image", "image": "https://h/1.png"}, {"image_count": 1}, "stop")
    {'choices.0.message.content.0.image': 'choices.0.message.content.1.image'}
    >>> streamed.answer["output"]["choices"][0]["message"]["content"]
    [{'type': 'text', 'text': 'Fold it'}, {'type': 'image', 'image': 'https://h/1.png'}]
    >>> streamed.answer["usage"], streamed.is_finished
    ({'image_count': 1}, True)
    """

    def __init__(self) -> None:
        self._choices: list[_Choice] = []
        self._unfinished = 0  # of them
        self._output: dict[str, Any] = {}  # what stands in `output` beside the choices, as last said
        self._usage: dict[str, Any] | None = None
        self._request_id = ""
        self._kept_chars = 0

    @property
    def is_finished(self) -> bool:
        """Whether every choice said why it ended."""
        return bool(self._choices) and not self._unfinished

    @property
    def says_ends(self) -> bool:
        """Whether its shape has a place for the reason of its end, so that one without it has not come to it."""
        return bool(self._choices)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of an answer has come."""
        return not self._choices and not self._output

    @property
    def usage(self) -> dict[str, Any] | None:
        """The upstream's sum so far, where it told one."""
        return self._usage

    @property
    def request_id(self) -> str:
        """The upstream's id of this call, as last said."""
        return self._request_id

    @property
    def answer(self) -> dict[str, Any]:
        """The answer so far, as one without a stream looks; a copy, to be changed at will."""
        choices = [choice.as_said() for choice in self._choices]
        output = {**self._output, "choices": choices, "finished": self.is_finished}
        usage = {} if self._usage is None else {"usage": self._usage}
        return copy.deepcopy({"output": output, **usage, "request_id": self._request_id})

    def fold(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Add the JSON of one event; return where each of its files stands in the folded answer, by its place there.

        An event that says nothing we understand, such as an error, changes nothing.

        Raises:
            BadStream: more is in it than any answer has.
        """
        if isinstance(fields.get("request_id"), str):
            self._request_id = fields["request_id"] or self._request_id
        if isinstance(fields.get("usage"), dict) and fields["usage"]:
            self._usage = fields["usage"]
        output = fields.get("output")
        if not isinstance(output, dict):
            return {}
        moved = self._fold_choices(output.get("choices"))
        names = output.keys() - _BESIDE_NOTHING
        if not moved and not names:
            return moved  # words alone, as most events
        beside = {name: output[name] for name in names}
        if beside and self._may_keep(len(str(beside))):
            self._output |= copy.deepcopy(beside)  # whoever forwards the event puts other links into it
        files = find_artifacts(output)
        if len(files) > MOST_FILES:
            raise BadStream(f"an event with more than {MOST_FILES} files")
        return {file.json_path: moved.get(file.json_path, file.json_path) for file in files}

    def _fold_choices(self, choices: Any) -> dict[str, str]:
        """Add the choices of an event; return the new place of each of their images."""
        moved: dict[str, str] = {}
        if not isinstance(choices, list):
            return moved
        if len(choices) > MOST_CHOICES:
            raise BadStream(f"an answer with more than {MOST_CHOICES} choices")
        for index, choice in enumerate(choices):
            if isinstance(choice, dict):
                while len(self._choices) <= index:
                    self._choices.append(_Choice())
                    self._unfinished += 1
                moved |= self._fold_choice(index, choice)
        return moved

    def _fold_choice(self, index: int, choice: Mapping[str, Any]) -> dict[str, str]:
        known, reason, message = self._choices[index], choice.get("finish_reason"), choice.get("message")
        if isinstance(reason, str) and reason not in UNFINISHED:
            self._unfinished -= known.finish_reason in UNFINISHED
            known.finish_reason = reason
        items = message.get("content") if isinstance(message, dict) else None
        if isinstance(items, str):  # models of text alone answer with no list
            items = [{"text": items}]
        moved = {}
        for at, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict):
                continue
            if isinstance(item.get("image"), str):
                way = f"choices.{index}.message.content"
                moved[f"{way}.{at}.image"] = f"{way}.{known.add_image(item)}.image"
            elif known.takes_words(item):
                if self._may_keep(len(item["text"])):
                    known.words.append(item["text"])
            elif self._may_keep(len(str(item))):
                known.add(item)
        return moved

    def _may_keep(self, chars: int) -> bool:
        """Count what is about to be kept; False: that would be too much."""
        self._kept_chars += chars
        return self._kept_chars <= KEPT_MAX_CHARS


@dataclass(slots=True)
class _Choice:
    """One choice of an answer as it grows. `words` continue its last item, which is a text then."""

    finish_reason: str = "null"
    content: list[dict[str, Any]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)  # of each image

    def takes_words(self, item: Mapping[str, Any]) -> bool:
        """Tell whether an item is a text that continues the last one."""
        if not isinstance(item.get("text"), str) or not self.content:
            return False
        last = self.content[-1]
        return "image" not in last and isinstance(last.get("text"), str)

    def add(self, item: Mapping[str, Any]) -> None:
        """Begin a new item."""
        self._join()
        self.content.append(dict(item))

    def add_image(self, item: Mapping[str, Any]) -> int:
        """Return the place of an image. One that was said before keeps its place."""
        place = self.places.get(item["image"])
        if place is None:
            if len(self.places) >= MOST_FILES:
                raise BadStream(f"an answer with more than {MOST_FILES} files")
            self.add(item)
            place = self.places[item["image"]] = len(self.content) - 1
        return place

    def as_said(self) -> dict[str, Any]:
        """Return the choice as an answer without a stream has it."""
        self._join()
        message = {"role": "assistant", "content": self.content}
        return {"finish_reason": self.finish_reason, "message": message}

    def _join(self) -> None:
        if self.words:
            self.content[-1]["text"] = "".join((self.content[-1]["text"], *self.words))
            self.words.clear()


def _parse(lines: list[bytes], raw: bytes) -> SseEvent | None:
    """Read the lines of one event; None when they are comments alone."""
    said: dict[bytes, list[str]] = {}
    status, is_plain = None, True
    for line in lines:
        name, _, value = line.removeprefix(BYTE_ORDER_MARK).partition(b":")
        if name:
            is_plain = is_plain and name in _FIELDS and name not in said
            said.setdefault(name, []).append(value.removeprefix(b" ").decode("utf-8", "replace"))
        elif (told := STATUS.fullmatch(value)) is not None:
            is_plain = is_plain and status is None
            status = int(told[1])
    if not said:
        return None
    event, event_id = (said.get(key, _NOTHING)[-1].strip() for key in (b"event", b"id"))
    is_plain = is_plain and (b"\r" not in raw or b"\r" not in raw.replace(b"\r\n", b""))
    return SseEvent(event, "\n".join(said.get(b"data", _NOTHING)), event_id, status, raw, is_plain)


def _is_too_deep(text: str, fields: dict[str, Any]) -> bool:
    """Tell whether JSON is nested deeper than we copy and write; hardly any has so many brackets at all."""
    if text.count("{") + text.count("[") <= DEPTH_MAX:
        return False
    level: list[Any] = [fields]
    for _ in range(DEPTH_MAX):
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not finite")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and Infinity are no JSON, and no row takes them


_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
# The events of dashscope-api.md 2.6, byte for byte: nearly all there are, at a third of the cost.
_USUAL = re.compile(rb"id:([^\s:]*)\nevent:([^\s:]*)\n:HTTP_STATUS/([0-9]{3})\ndata:([^ \r\n][^\r\n]*)\n\n")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BESIDE_NOTHING = frozenset({"choices", "finished"})
_FIELDS = frozenset({b"id", b"event", b"data"})
_NOTHING = ("",)
