"""What goes wrong on purpose: faults that somebody scripted, and the dice of a hostile simulator.

Knows no HTTP: it only says which fault hits which operation. `exchange.py` carries it out, and `world.py` those that
hit a task's end instead of a request.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from app.simulator.options import Hostility


class Operation(StrEnum):
    """What a request is about. OTHER is what this simulator does not know; OUTCOME is no request but a task's end."""

    CREATE = "create"
    SYNC = "sync"
    STREAM = "stream"
    QUERY = "query"
    LIST = "list"
    CANCEL = "cancel"
    UPLOAD_POLICY = "upload_policy"
    UPLOAD = "upload"
    FILE = "file"
    OUTCOME = "outcome"
    OTHER = "other"


FAULTY_OPERATIONS = tuple(operation for operation in Operation if operation is not Operation.OTHER)
# The file host is asked without a key, and its requests name no model; those about tasks name none either.
FILE_HOST_OPERATIONS = (Operation.FILE, Operation.UPLOAD)
MODELLESS_OPERATIONS = (*FILE_HOST_OPERATIONS, Operation.QUERY, Operation.LIST, Operation.CANCEL)

# An answer that broke off, for whoever scripts GARBAGE and does not care which.
BROKEN_OFF = '{"output": {"task_status": "PEN'


class FaultKind(StrEnum):
    """ERROR is any refusal, GARBAGE any bytes; LOST_ANSWER closes the connection at once, HANG after a while.

    BREAK closes the connection in the middle of a stream, ERROR_EVENT ends one with an error.
    """

    THROTTLED = "429"
    UNAVAILABLE = "5xx"
    ERROR = "error"
    GARBAGE = "garbage"
    LOST_ANSWER = "lost_answer"
    HANG = "hang"
    BREAK = "break"
    ERROR_EVENT = "error_event"


_PROCESSED_KINDS = (FaultKind.LOST_ANSWER, FaultKind.HANG, FaultKind.BREAK, FaultKind.ERROR_EVENT)
_STREAM_KINDS = (FaultKind.BREAK, FaultKind.ERROR_EVENT)


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble for the next `times` requests of an operation.

    `processed` says whether the request takes effect first: a create makes its task although nobody is told.
    BREAK, ERROR_EVENT and HANG let a stream begin and send `after_events` events first; what these announced is billed
    and nothing else. After a LOST_ANSWER of a synchronous call or a stream everything is made and billed.
    `region`, `key` (a secret) and `model` say whom it hits, None means any. `status` is for 5xx, ERROR and GARBAGE;
    `code` and `message` are an ERROR's, `body` and `media_type` GARBAGE's; `seconds` (real ones) is how long a HANG
    lasts. An ERROR of OUTCOME lets the next `times` tasks end FAILED with its code, and synchronous calls with its
    status too.
    """

    operation: Operation
    kind: FaultKind
    processed: bool
    times: int = 1
    region: str | None = None
    key: str | None = None
    model: str | None = None
    status: int = 503
    code: str = ""
    message: str = ""
    body: str = BROKEN_OFF
    media_type: str = "application/json"
    seconds: float = 60.0
    after_events: int = 0


def make_fault(operation: str, kind: str, **details: Any) -> Fault:
    """Make a fault from plain words, as tests and the control port give them; `details` are the fields of `Fault`.

    Raises: `ValueError` for anything that makes no sense.
    """
    fault_kind = FaultKind(kind)
    details.setdefault("processed", fault_kind in _PROCESSED_KINDS)
    if fault_kind is FaultKind.GARBAGE:
        details.setdefault("status", 200)
    elif operation == Operation.OUTCOME:
        details.setdefault("status", 500)
    elif fault_kind is FaultKind.ERROR_EVENT:
        details = {"status": 500, "code": "InternalError", "message": "An internal error has occured.", **details}
    elif fault_kind is FaultKind.ERROR and "status" not in details:
        raise ValueError("an error needs its status")
    try:
        fault = Fault(operation=Operation(operation), kind=fault_kind, **details)
        _refuse_nonsense(fault)
    except TypeError as problem:  # an unknown detail, or one of the wrong type
        raise ValueError(str(problem)) from problem
    return fault


def _refuse_nonsense(fault: Fault) -> None:
    if fault.operation not in FAULTY_OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(FAULTY_OPERATIONS)}")
    if fault.kind is FaultKind.THROTTLED and fault.processed:
        raise ValueError("a 429 never takes effect")
    if fault.kind is FaultKind.LOST_ANSWER and not fault.processed:
        raise ValueError("a lost answer belongs to a request that took effect; use hang")
    if fault.kind is FaultKind.UNAVAILABLE and fault.status not in (500, 503):
        raise ValueError("status must be 500 or 503")
    if fault.times < 1 or fault.seconds < 0:
        raise ValueError("times must be 1 or more, seconds 0 or more")
    _refuse_senseless_answer(fault)
    _refuse_senseless_stream(fault)
    _refuse_senseless_target(fault)


def _refuse_senseless_answer(fault: Fault) -> None:
    if fault.kind is FaultKind.GARBAGE and not 200 <= fault.status <= 599:
        raise ValueError("status must be between 200 and 599")
    if not all(isinstance(text, str) for text in (fault.code, fault.message, fault.body, fault.media_type)):
        raise ValueError("code, message, body and media_type must be texts")
    if fault.kind in (FaultKind.ERROR, FaultKind.ERROR_EVENT):
        if not 400 <= fault.status <= 599 or not fault.code:
            raise ValueError("an error needs a code, and a status between 400 and 599")
        if fault.kind is FaultKind.ERROR and fault.processed and fault.status < 500:
            raise ValueError("a refusal below 500 never takes effect")


def _refuse_senseless_stream(fault: Fault) -> None:
    if fault.kind in _STREAM_KINDS and (fault.operation is not Operation.STREAM or not fault.processed):
        raise ValueError("only a stream that took effect can break or send an error")
    if fault.after_events < 0:
        raise ValueError("after_events must be 0 or more")
    if fault.after_events and not (
        fault.operation is Operation.STREAM and fault.kind in (*_STREAM_KINDS, FaultKind.HANG)
    ):
        raise ValueError("after_events belongs to a stream that breaks, hangs or sends an error")


def _refuse_senseless_target(fault: Fault) -> None:
    if fault.operation is Operation.OUTCOME and (fault.kind is not FaultKind.ERROR or fault.processed):
        raise ValueError("an outcome can only be an error, and is not processed")
    if fault.key is not None and fault.operation in FILE_HOST_OPERATIONS:
        raise ValueError("this operation carries no key")
    if fault.model is not None and fault.operation in MODELLESS_OPERATIONS:
        raise ValueError("this operation names no model")


class FaultBook:
    """The scripted faults that are still to come, in the order they were given."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Script a fault."""
        self._faults.append(fault)

    def clear(self) -> None:
        """Forget every fault that has not happened yet."""
        self._faults.clear()

    def waiting(self) -> Sequence[Fault]:
        """Return what is still to come."""
        return tuple(self._faults)

    def take(
        self, operation: Operation, region: str, *, key: str = "", model: Callable[[], str] = lambda: ""
    ) -> Fault | None:
        """Return the fault for this request and count it down, or None.

        `model` is called only where a fault wants to know: it costs the reading of a body.
        """
        for place, fault in enumerate(self._faults):
            hits = fault.operation is operation and fault.region in (None, region) and fault.key in (None, key)
            if hits and (fault.model is None or fault.model == model()):
                self._faults[place : place + 1] = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                return fault
        return None


def roll(hostility: Hostility, operation: Operation, *, dice: random.Random) -> Fault | None:
    """Let chance decide whether this request is refused before it takes effect."""
    match operation:
        case Operation.CREATE | Operation.SYNC | Operation.STREAM:
            throttle, unavailable = hostility.create_throttle_share, hostility.create_unavailable_share
        case Operation.QUERY | Operation.LIST:
            throttle, unavailable = hostility.query_throttle_share, hostility.query_unavailable_share
        case _:
            return None
    chance = dice.random()
    if chance < throttle:
        return Fault(operation, FaultKind.THROTTLED, processed=False)
    if chance < throttle + unavailable:
        return Fault(operation, FaultKind.UNAVAILABLE, processed=False)
    return None
