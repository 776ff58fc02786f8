"""What the gateway logs, for tests, from debug up: as events, before they are written, or as they are written."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from structlog.testing import LogCapture

from app.lib.logs import set_up_logs

LEVELS = ("debug", "info", "warning", "error", "critical")


class Heard:
    """The events of a process, in order."""

    def __init__(self, capture: LogCapture) -> None:
        self._capture = capture

    def take(self) -> list[dict[str, Any]]:
        """Return what was logged since this was last asked."""
        taken, self._capture.entries = self._capture.entries, []
        return [dict(entry) for entry in taken]

    def events(self, *, least: str = "info") -> list[tuple[str, str]]:
        """Return what was logged since, as pairs of level and event."""
        wanted = LEVELS[LEVELS.index(least) :]
        return [(entry["log_level"], entry["event"]) for entry in self.take() if entry["log_level"] in wanted]


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Listen to everything that is logged while the block runs."""
    capture, ours = LogCapture(), structlog.get_config()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    try:
        yield Heard(capture)
    finally:
        structlog.configure(**ours)


@contextlib.contextmanager
def written() -> Iterator[Callable[[], str]]:
    """Lend what tells everything that is logged while the block runs, as it is written."""
    ours, handlers = structlog.get_config(), list(logging.root.handlers)
    lines = io.StringIO()
    with contextlib.redirect_stdout(lines):
        set_up_logs("debug")
    try:
        yield lines.getvalue
    finally:
        structlog.configure(**ours)
        logging.root.handlers[:] = handlers
