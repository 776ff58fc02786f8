"""What the simulator was asked: one entry per received request, oldest forgotten first. Keys are masked."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CAPACITY = 100_000
# Data URIs reach 10 MB; a journal of them would eat the machine.
LONGEST_STRING = 4000


@dataclass(slots=True)
class Entry:
    """One request. `status` stays None when no answer was given; `received_monotonic` is real time, `at` simulated."""

    seq: int
    at: float
    received_monotonic: float
    region: str
    operation: str
    method: str
    path: str
    key: str
    status: int | None = None
    task_id: str | None = None
    fault: str | None = None
    body: Any = None


class Journal:
    """The entries in order of arrival; `seq` grows by one and never starts again."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=CAPACITY)
        self._last_seq = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def write(self, **facts: Any) -> Entry:
        """Add an entry for a request that has just arrived; its outcome is filled in later."""
        self._last_seq += 1
        entry = Entry(seq=self._last_seq, **facts)
        self._entries.append(entry)
        return entry

    def read(self, *, operation: str | None = None, since: int = 0) -> list[Entry]:
        """Return the entries of one operation, or of all, whose `seq` is greater than `since`."""
        return [entry for entry in self if entry.seq > since and operation in (None, entry.operation)]

    def clear(self) -> None:
        """Forget all entries; the numbering goes on."""
        self._entries.clear()


def mask_key(secret: str) -> str:
    """Show enough of a key to recognise it, never all of it.

    >>> mask_key("sk-sim-beijing")
    'sk-sim-b…'
    """
    return f"{secret[: min(8, len(secret) // 2 + 1)]}…" if secret else ""


def shortened(body: Any) -> Any:
    """Return a JSON value with its long strings cut."""
    match body:
        case dict():
            return {name: shortened(value) for name, value in body.items()}
        case list():
            return [shortened(value) for value in body]
        case str() if len(body) > LONGEST_STRING:
            return f"{body[:100]}… ({len(body)} characters)"
        case _:
            return body
