"""A step, repeated: the dumb loop around every worker step, and several things done at once within one.

Runs a step until it says there is nothing to do, then waits for a wake-up, the idle time or the stop, whichever comes
first. Knows nothing of what the step does; a step that raises is logged and tried again later, so that one bad row
cannot take the worker down.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar, cast

import structlog

log = structlog.get_logger()

T = TypeVar("T")

ERROR_PAUSE_SECONDS = 2.0


async def run_loop(
    name: str, step: Callable[[], Awaitable[int]], *, idle_seconds: float, wake: asyncio.Event, stop: asyncio.Event
) -> None:
    """Repeat `step` until `stop` is set. A step under way is finished, not cut off."""
    while not stop.is_set():
        pause = 0.0
        wake.clear()
        try:
            if await step() == 0:
                pause = idle_seconds
        except Exception:
            # Expected: the database away, a bug met by one row. The step's own rows stay due.
            log.exception("loop.failed", loop=name)
            pause = ERROR_PAUSE_SECONDS
        if pause:
            await _first_of(wake, stop, timeout_seconds=pause)


async def side_by_side(works: Iterable[Awaitable[T]]) -> list[T]:
    """Do several things at once and wait for all of them; then raise the first error, if there was one.

    Unlike a bare gather, nothing is left running behind the caller's back when one of them fails.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[T], results)


async def _first_of(*events: asyncio.Event, timeout_seconds: float) -> None:
    """Wait until one of the events is set, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
