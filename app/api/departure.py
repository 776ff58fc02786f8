"""Departure: whether the client of a request is still there. One look at the connection, or one watch over it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from app.tasks.leaving import Leaving


@contextlib.asynccontextmanager
async def watched(request: Request) -> AsyncIterator[Leaving]:
    """Lend an event that is set when the client hangs up. The body must have been read."""
    left = Leaving()
    watching = asyncio.ensure_future(_watch(request, left))
    try:
        yield left
    finally:
        watching.cancel()


async def _watch(request: Request, left: Leaving) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    left.set()
