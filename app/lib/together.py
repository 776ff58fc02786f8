"""Questions that come at the same time, asked together: one query for all of them. Knows no noun.

While one query is under way the next questions gather; so a quiet process asks at once, and a busy one asks for many
at a time instead of queueing for connections.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Load = Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]


class Together(Generic[K, V]):
    """Gathers keys and hands them to one loader; a key that the loader does not return is None."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def get(self, key: K, load: Load[K, V]) -> V | None:
        """Return what the loader says of a key; all callers pass the same loader.

        Raises:
            Exception: whatever the loader raised, to everybody who asked with it.
        """
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._ask_all(load))
        return await asyncio.shield(future)

    async def _ask_all(self, load: Load[K, V]) -> None:
        """Ask for what has gathered until nothing has."""
        try:
            while self._waiting:
                keys = list(self._waiting)[: self._most]
                futures = {key: self._waiting.pop(key) for key in keys}
                try:
                    found = await load(keys)
                except Exception as error:  # noqa: BLE001 -- the askers' to handle, each on its own
                    _tell(futures, error)
                else:
                    for key, future in futures.items():
                        if not future.done():
                            future.set_result(found.get(key))
        finally:
            self._asking = None


def _tell(futures: Mapping[K, "asyncio.Future[V | None]"], error: Exception) -> None:
    for future in futures.values():
        if not future.done():
            future.set_exception(error)
            future.exception()  # an asker that left must not make it an unheard one
