"""The nouns of a task: what was ordered, what is drawn, how it ends. Knows no HTTP, no clock and no queue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from app.simulator.drawing import draw_png
from app.simulator.options import SimulatorKey


class Status(StrEnum):
    """DashScope's words. UNKNOWN is never a state of a task: it is the answer for one that is not there."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Order:
    """A create as the upstream understood it: prompt cut, defaults filled in, size rounded."""

    model: str
    prompt: str
    width: int
    height: int
    image_count: int
    interleave: bool

    @property
    def size(self) -> str:
        """The picture's size in DashScope's notation."""
        return f"{self.width}*{self.height}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task fails, shown inside its `output`."""

    code: str
    message: str


@dataclass(frozen=True)
class Picture:
    """One generated file. Its bytes follow from its fields, so they are drawn when somebody looks, and always equal."""

    task_id: str
    index: int
    order: Order
    path: str
    query: str

    def png(self) -> bytes:
        """Draw the file."""
        caption = f"{self.task_id} · {self.index}"
        return draw_png(self.order.width, self.order.height, prompt=self.order.prompt, caption=caption)

    @cached_property
    def sha256(self) -> str:
        """The hash of the file's bytes, in hex."""
        return self._fingerprint[0]

    @cached_property
    def size_bytes(self) -> int:
        """The length of the file."""
        return self._fingerprint[1]

    @cached_property
    def _fingerprint(self) -> tuple[str, int]:
        png = self.png()
        return hashlib.sha256(png).hexdigest(), len(png)


@dataclass(slots=True)
class Task:
    """One asynchronous task. `task_queue.py` alone moves it; instants are simulated epoch seconds."""

    id: str
    request_id: str
    key: SimulatorKey
    order: Order
    created_at: float
    duration_seconds: float
    failure: Failure | None = None
    status: Status = Status.PENDING
    scheduled_at: float | None = None
    ended_at: float | None = None
    pictures: Sequence[Picture] = field(default_factory=tuple)

    @property
    def region(self) -> str:
        """Where the task lives."""
        return self.key.region

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return self.order.model

    @property
    def prompt(self) -> str:
        """The text that was drawn, after the silent cut."""
        return self.order.prompt

    @property
    def billed_images(self) -> int:
        """How many pictures were made: only a SUCCEEDED task has any."""
        return len(self.pictures)
