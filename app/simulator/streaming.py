"""A streamed answer as events (pure): what each one says, and how it looks on the wire. Knows no time and no reader.

Wire format: no space after a field's colon, the HTTP status in a comment, one JSON object in a single `data` line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.simulator import wire
from app.simulator.problems import Problem
from app.simulator.shapes import TOKENS_PER_IMAGE, step_text, token_usage
from app.simulator.tasks import Order
from app.simulator.wire import Json

MEDIA_TYPE = "text/event-stream;charset=UTF-8"
_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the pictures that it announces, and its data, given the links to them."""

    pictures: Sequence[int]
    data: Callable[[Sequence[str]], Json]


def plan_events(order: Order, request_id: str) -> Sequence[Event]:
    """Return the events of an answer: text in pieces and pictures one by one where they alternate, else a single one.

    Pieces of text are to be put together until a picture comes; usage counts everything up to its event.
    """
    if not order.interleave:
        pictures = range(order.made_count)
        return [Event(pictures, lambda links: wire.call_body(order, links, request_id=request_id))]
    events: list[Event] = []
    for number in range(1, order.made_count + 1):
        pieces = _WORD.findall(step_text(order, number))
        made = number - 1
        events += [
            _text_event(piece, _usage(order, made, pieces=count), request_id=request_id)
            for count, piece in enumerate(pieces, 1)
        ]
        events.append(_picture_event(made, order, request_id=request_id))
    return events


def frame(number: int, data: Json, *, event: str = "result", status: int = 200) -> bytes:
    r"""Return the bytes of event `number` (from 1).

    >>> frame(1, {"output": {}})
    b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"output":{}}\n\n'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"id:{number}\nevent:{event}\n:HTTP_STATUS/{status}\ndata:{text}\n\n".encode()


def error_frame(number: int, problem: Problem, *, request_id: str) -> bytes:
    """Return the bytes of an event that ends a stream with an error."""
    return frame(number, wire.problem_body(problem, request_id), event="error", status=problem.status)


def _text_event(piece: str, usage: Json, *, request_id: str) -> Event:
    return Event((), lambda links: _body([{"type": "text", "text": piece}], usage, request_id=request_id))


def _picture_event(index: int, order: Order, *, request_id: str) -> Event:
    usage = _usage(order, index + 1, pieces=0)
    is_last = index + 1 == order.made_count
    return Event(
        (index,),
        lambda links: _body([{"type": "image", "image": links[0]}], usage, request_id=request_id, is_last=is_last),
    )


def _body(content: list[Json], usage: Json, *, request_id: str, is_last: bool = False) -> Json:
    message = {"content": content, "role": "assistant"}
    choice = {"message": message, "finish_reason": "stop" if is_last else "null"}
    return {"output": {"choices": [choice], "finished": is_last}, "usage": usage, "request_id": request_id}


def _usage(order: Order, made: int, *, pieces: int) -> Json:
    return token_usage(order, images=made, tokens_out=TOKENS_PER_IMAGE * made + pieces)
