"""Work that goes on after whoever started it has left: started, counted, and waited for at the end.

A create whose client hangs up must still be sent and recorded. Knows nothing of what is going on in it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")


class Calls:
    """The calls under way in this process."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    def start(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin a call that nobody's leaving cuts off."""
        task = asyncio.ensure_future(call)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        return task

    async def drain(self, timeout_seconds: float) -> int:
        """Wait for the calls under way; return how many were still unfinished when time ran out."""
        if not self._under_way:
            return 0
        _, late = await asyncio.wait(self._under_way, timeout=timeout_seconds)
        return len(late)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call.failed", error=type(error).__name__, exc_info=error)
