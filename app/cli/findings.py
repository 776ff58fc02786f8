"""What `doctor` and the lists of its checks share: a check is a name and an async function that returns a finding."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.resources import Resources


class Level(StrEnum):
    """`failed`: something does not work, and doctor exits with 1."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in words that say what to do."""

    level: Level
    text: str


Check = tuple[str, Callable[["Resources"], Awaitable[Finding]]]
