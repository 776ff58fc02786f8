"""The noun of a synchronous call: begun, answered whole or event by event, billed. No task: the list never shows it.

Knows no HTTP and no clock. `world.py` alone moves calls; instants are simulated epoch seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from app.simulator.options import SimulatorKey
from app.simulator.tasks import Failure, Order, Picture, Units


class CallState(StrEnum):
    """RUNNING until the upstream has done its work; BROKEN is a stream that ended before its last event."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    BROKEN = "BROKEN"


@dataclass(slots=True)
class Call:
    """One synchronous call; `id` is the `request_id` of its answer.

    Answered whole, it goes on to its end and is billed although nobody may listen any more. `streamed`, a picture is
    made, and billed, when its event is sent, and none after the stream has broken. `hung_up` says that the client left
    before it had everything.
    """

    id: str
    key: SimulatorKey
    order: Order
    begun_at: float
    duration_seconds: float
    streamed: bool = False
    failure: Failure | None = None
    state: CallState = CallState.RUNNING
    ended_at: float | None = None
    hung_up: bool = False
    pictures: Sequence[Picture] = ()

    @property
    def region(self) -> str:
        """Where the call was made."""
        return self.key.region

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return self.order.model

    @property
    def prompt(self) -> str:
        """The text that was drawn."""
        return self.order.prompt

    @property
    def ends_at(self) -> float:
        """When the answer, or the last event of it, is due."""
        return self.begun_at + self.duration_seconds

    @property
    def units(self) -> Units:
        """What is billed, by unit: the pictures made so far and what goes with them."""
        return {**self.order.units, "image": Decimal(len(self.pictures))} if self.pictures else {}

    @property
    def billed_images(self) -> int:
        """How many pictures were made and are billed."""
        return len(self.pictures)

    def event_due_at(self, number: int, count: int) -> float:
        """Return when event `number` (from 0) of `count` is due: the first one at once, the last one at the end.

        >>> call = Call("r", SimulatorKey("k", "cn-beijing"), None, begun_at=100, duration_seconds=10)
        >>> [call.event_due_at(number, 3) for number in range(3)], call.event_due_at(0, 1)
        ([100.0, 105.0, 110.0], 110.0)
        """
        share = number / (count - 1) if count > 1 else 1.0
        return self.begun_at + self.duration_seconds * share
