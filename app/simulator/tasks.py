"""The nouns of a task: what was ordered, what is drawn, how it ends. Knows no HTTP, no clock and no queue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import cached_property

from app.simulator.files import MEDIA_TYPES, make_file
from app.simulator.options import SimulatorKey

IMAGE_GENERATION = "aigc/image-generation/generation"
PARTIAL_WORD = "[[partial]]"

Units = dict[str, Decimal]


class Status(StrEnum):
    """DashScope's words. UNKNOWN is never a state of a task: it is the answer for one that is not there."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class Order:
    """A create or a call as the upstream understood it: prompt cut, defaults filled in, size rounded.

    `image_count` is what was asked for, 0 where no pictures are counted. `shape` and `usage` say what the answer looks
    like, see `shapes.py`. `seconds` are those that are billed, `inputs` what else the answer has to speak of:
    recordings to read, reference videos. `billed_inputs` counts input pictures that cost money.
    """

    model: str
    prompt: str
    width: int
    height: int
    image_count: int
    interleave: bool = False
    service: str = IMAGE_GENERATION
    shape: str = "choices"
    usage: str = "size_and_tokens"
    seconds: Decimal = Decimal(0)
    inputs: tuple[str, ...] = ()
    billed_inputs: int = 0

    @property
    def size(self) -> str:
        """The picture's size in DashScope's notation."""
        return f"{self.width}*{self.height}"

    @property
    def made_count(self) -> int:
        """How many pictures come out, if any do: a prompt with `PARTIAL_WORD` in it loses the last of several."""
        return self.image_count - (self.image_count > 1 and PARTIAL_WORD in self.prompt)

    @property
    def units(self) -> Units:
        """What a success costs, by unit; nothing is counted as nought."""
        second = "audio_second" if self.usage == "heard" else "video_second"
        counted = {"image": Decimal(self.made_count), "input_image": Decimal(self.billed_inputs), second: self.seconds}
        return {unit: quantity for unit, quantity in counted.items() if quantity}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task fails, shown inside its `output`; `status` is the HTTP status of a synchronous call that fails so."""

    code: str
    message: str
    status: int = 500


@dataclass(frozen=True)
class Picture:
    """One generated file, mostly a picture. Its bytes follow from its fields: made when somebody looks, always equal.

    `task_id` is the id of the task or call that made it.
    """

    task_id: str
    index: int
    order: Order
    path: str
    query: str

    @property
    def media_type(self) -> str:
        """What the file host says it is."""
        return MEDIA_TYPES[self._ending]

    def content(self) -> bytes:
        """Make the file."""
        caption = f"{self.task_id} · {self.index}"
        size = (self.order.width, self.order.height)
        subject = self.order.inputs[self.index] if self._ending == "json" else self.order.prompt
        return make_file(self._ending, size=size, prompt=subject, caption=caption)

    @property
    def _ending(self) -> str:
        return self.path.rpartition(".")[2]

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
        content = self.content()
        return hashlib.sha256(content).hexdigest(), len(content)


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
    def units(self) -> Units:
        """What is billed, by unit: only a SUCCEEDED task costs anything."""
        return self.order.units if self.status is Status.SUCCEEDED else {}

    @property
    def billed_images(self) -> int:
        """How many pictures were made and are billed."""
        return int(self.units.get("image", 0))
