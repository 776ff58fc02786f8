"""What the upstream may answer, as values. The steps are one `match` over these."""

from dataclasses import dataclass
from typing import Any

from app.upstream.faults import Fault


@dataclass(frozen=True, slots=True)
class Accepted:
    """A create was taken: the receipt."""

    task_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A call was refused: certain that nothing was taken. `body` is the upstream's, byte for byte."""

    status: int
    code: str
    message: str
    request_id: str
    body: bytes
    fault: Fault
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """The task waits upstream (PENDING, SUSPENDED, or a word we do not know: then never an ending)."""

    word: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Running:
    """The upstream works on the task."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task made something. `answer` is the whole answer, parsed; `body` the bytes it was parsed from."""

    request_id: str
    answer: dict[str, Any]
    body: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The task failed upstream; it costs nothing."""

    request_id: str
    code: str
    message: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Canceled:
    """The task was cancelled upstream; it costs nothing."""

    request_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """UNKNOWN: the upstream has forgotten the task, or never had it. Not an ending by itself."""

    request_id: str


Look = Pending | Running | Succeeded | Failed | Canceled | Gone
