"""What the upstream may answer, as values. The steps are one `match` over these."""

from dataclasses import dataclass, field
from datetime import datetime
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


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """A place for input files, as the upstream opened it (dashscope-api.md 7.1). Its repr shows no credential."""

    upload_host: str
    upload_dir: str
    oss_access_key_id: str = field(repr=False)
    policy: str = field(repr=False)
    signature: str = field(repr=False)
    x_oss_object_acl: str
    x_oss_forbid_overwrite: str
    expire_in_seconds: int
    max_file_size_mb: int
    capacity_limit_mb: int


@dataclass(frozen=True, slots=True)
class CancelHeard:
    """The upstream took a cancel. Not an ending: only a look says what became of the task."""


@dataclass(frozen=True, slots=True)
class CancelRefused:
    """The upstream does not cancel the task: it does not wait there any more."""

    code: str


Cancel = CancelHeard | CancelRefused


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as the list shows it: without results, errors or prompts. `word` is its status, in the upstream's words.

    What the answer does not say, or says in no way we can read, is "" or None. `request_id` is that of its create.
    """

    task_id: str
    word: str
    model: str
    request_id: str
    api_key_id: str
    caller_id: str  # the main account, as far as it is told
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One page of the list: its rows, how many rows all pages have, how large a page is and how many there are."""

    rows: tuple[TaskRow, ...]
    total: int
    page_size: int
    pages: int
