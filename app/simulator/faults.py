"""What goes wrong on purpose: faults that somebody scripted, and the dice of a hostile simulator.

Knows no HTTP: it only says which fault hits which operation. `exchange.py` carries it out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from app.simulator.options import Hostility


class Operation(StrEnum):
    """What a request is about. OTHER is everything this simulator does not know."""

    CREATE = "create"
    QUERY = "query"
    LIST = "list"
    CANCEL = "cancel"
    FILE = "file"
    OTHER = "other"


FAULTY_OPERATIONS = (Operation.CREATE, Operation.QUERY, Operation.LIST, Operation.FILE)


class FaultKind(StrEnum):
    """LOST_ANSWER closes the connection at once, HANG after a while; both give no answer."""

    THROTTLED = "429"
    UNAVAILABLE = "5xx"
    LOST_ANSWER = "lost_answer"
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble for the next `times` requests of an operation.

    `processed` says whether the request takes effect first: a create makes its task although nobody is told.
    `region` None means any; `status` is for 5xx only; `seconds` (real ones) is how long a HANG lasts.
    """

    operation: Operation
    kind: FaultKind
    processed: bool
    times: int = 1
    region: str | None = None
    status: int = 503
    seconds: float = 60.0


def make_fault(operation: str, kind: str, **details: Any) -> Fault:
    """Make a fault from plain words, as tests and the control port give them; `details` are the fields of `Fault`.

    Raises: `ValueError` for anything that makes no sense.
    """
    fault_kind = FaultKind(kind)
    details.setdefault("processed", fault_kind in {FaultKind.LOST_ANSWER, FaultKind.HANG})
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
    if fault.status not in (500, 503):
        raise ValueError("status must be 500 or 503")
    if fault.times < 1 or fault.seconds < 0:
        raise ValueError("times must be 1 or more, seconds 0 or more")


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

    def take(self, operation: Operation, region: str) -> Fault | None:
        """Return the fault for this request and count it down, or None."""
        for place, fault in enumerate(self._faults):
            if fault.operation is operation and fault.region in (None, region):
                self._faults[place : place + 1] = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                return fault
        return None


def roll(hostility: Hostility, operation: Operation, *, dice: random.Random) -> Fault | None:
    """Let chance decide whether this request is refused before it takes effect."""
    match operation:
        case Operation.CREATE:
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
