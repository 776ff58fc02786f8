"""Streams of events: reading them from bytes, writing them, and folding them into one answer (dashscope-api.md 2.6).

Does no input or output: whoever reads the connection feeds the parser. Knows no task and no link of ours.
"""

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.upstream.results import find_artifacts

EVENT_MAX_BYTES = 1024 * 1024
TEXT_MAX_CHARS = 4_000_000  # of one answer; what is said beyond it is forwarded, but not kept
STATUS = re.compile(rb"\s*HTTP_STATUS/([0-9]{3})\s*")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UNFINISHED = (None, "", "null")  # the upstream says the word "null" until the last event


class BadStream(ValueError):
    """The bytes are no stream of events, or an event in it is longer than any we take."""


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its fields, the HTTP status told in a comment, and the bytes it was read from."""

    event: str
    data: str
    id: str = ""
    status: int | None = None
    raw: bytes = field(default=b"", repr=False)


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
        self._is_broken = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Return the events that these bytes complete.

        Raises:
            BadStream: an event is too long. Those complete before it are returned first; the next call raises.
        """
        events: list[SseEvent] = []
        if not self._is_broken:
            self._read += chunk
            events = list(self._cut())
            self._is_broken = self._is_broken or len(self._read) > self._max_bytes
        if self._is_broken and not events:
            raise BadStream(f"an event of more than {self._max_bytes} bytes")
        return events

    def close(self) -> list[SseEvent]:
        """Return the last event where the stream ended without the empty line after it; it may be cut short."""
        return [] if self._is_broken or not self._read else self.feed(b"\n\n")

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
            self._lines = []
            del self._read[: self._line_at]
            self._line_at = self._searched = 0
            if event is not None:
                yield event
        self._searched = len(self._read)


def format_event(event: str, data: str, *, event_id: str, status: int = 200) -> bytes:
    r"""Write an event as the upstream does: no space after a colon, which the vendor's parser would stumble over.

    >>> format_event("error", '{"code":"InternalError"}', event_id="3", status=500)
    b'id:3\nevent:error\n:HTTP_STATUS/500\ndata:{"code":"InternalError"}\n\n'
    """
    text = "\n".join(f"data:{line}" for line in re.split(r"\r\n|\r|\n", data))
    return f"id:{event_id}\nevent:{event}\n:HTTP_STATUS/{status}\n{text}\n\n".encode("utf-8", "replace")


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
        self._choices: list[dict[str, Any]] = []
        self._output: dict[str, Any] = {}  # what stands in `output` beside the choices, as last said
        self._usage: dict[str, Any] | None = None
        self._request_id = ""
        self._text_chars = 0

    @property
    def is_finished(self) -> bool:
        """Whether every choice said why it ended."""
        return bool(self._choices) and all(choice["finish_reason"] not in UNFINISHED for choice in self._choices)

    @property
    def usage(self) -> dict[str, Any] | None:
        """The upstream's sum so far, where it told one."""
        return self._usage

    @property
    def answer(self) -> dict[str, Any]:
        """The answer so far, as one without a stream looks; a copy, to be changed at will."""
        output = {**self._output, "choices": self._choices, "finished": self.is_finished}
        usage = {} if self._usage is None else {"usage": self._usage}
        return copy.deepcopy({"output": output, **usage, "request_id": self._request_id})

    def fold(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Add the JSON of one event; return where each of its files stands in the folded answer, by its place there.

        An event that says nothing we understand, such as an error, changes nothing.
        """
        if isinstance(fields.get("request_id"), str):
            self._request_id = fields["request_id"] or self._request_id
        if isinstance(fields.get("usage"), dict) and fields["usage"]:
            self._usage = fields["usage"]
        output = fields.get("output")
        if not isinstance(output, dict):
            return {}
        beside = {key: value for key, value in output.items() if key not in ("choices", "finished")}
        self._output |= copy.deepcopy(beside)  # whoever forwards the event puts other links into it
        moved: dict[str, str] = {}
        choices = output.get("choices")
        for index, choice in enumerate(choices if isinstance(choices, list) else []):
            if isinstance(choice, dict):
                moved |= self._fold_choice(index, choice)
        return {
            artifact.json_path: moved.get(artifact.json_path, artifact.json_path) for artifact in find_artifacts(output)
        }

    def _fold_choice(self, index: int, choice: Mapping[str, Any]) -> dict[str, str]:
        """Add one choice of an event; return the new place of each of its images."""
        while len(self._choices) <= index:
            self._choices.append({"finish_reason": "null", "message": {"role": "assistant", "content": []}})
        known = self._choices[index]
        if choice.get("finish_reason") not in UNFINISHED:
            known["finish_reason"] = choice["finish_reason"]
        message = choice.get("message")
        items = message.get("content") if isinstance(message, dict) else None
        if isinstance(items, str):  # models of text alone answer with no list
            items = [{"text": items}]
        moved = {}
        for at, item in enumerate(items if isinstance(items, list) else []):
            place = self._fold_item(known["message"]["content"], item)
            if place is not None:
                way = f"choices.{index}.message.content"
                moved[f"{way}.{at}.image"] = f"{way}.{place}.image"
        return moved

    def _fold_item(self, content: list[Any], item: Any) -> int | None:
        """Add one item of content; return the place of an image. One that was said before keeps its place."""
        if not isinstance(item, dict):
            return None
        if isinstance(item.get("image"), str):
            known = next((place for place, one in enumerate(content) if one.get("image") == item["image"]), None)
            if known is None:
                content.append(dict(item))
            return len(content) - 1 if known is None else known
        text = item.get("text")
        if isinstance(text, str):
            self._text_chars += len(text)
            if self._text_chars > TEXT_MAX_CHARS:
                return None
            if content and "image" not in content[-1] and isinstance(content[-1].get("text"), str):
                content[-1]["text"] += text
                return None
        content.append(dict(item))
        return None


def _parse(lines: list[bytes], raw: bytes) -> SseEvent | None:
    """Read the lines of one event; None when they are comments alone."""
    said: dict[bytes, list[str]] = {}
    status = None
    for line in lines:
        name, _, value = line.removeprefix(BYTE_ORDER_MARK).partition(b":")
        told = STATUS.fullmatch(value) if not name else None
        if told is not None:
            status = int(told[1])
        elif name:
            said.setdefault(name, []).append(value.removeprefix(b" ").decode("utf-8", "replace"))
    if not said:
        return None
    event, event_id = (said.get(key, [""])[-1].strip() for key in (b"event", b"id"))
    return SseEvent(event, "\n".join(said.get(b"data", [])), event_id, status, raw)
