"""Values that may be a few seconds old: one load at a time per key, bounded in number. Knows no noun."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TtlCache(Generic[K, V]):
    """A cache in this process. `None` is kept like any value: a missing thing is asked for once per life, too."""

    def __init__(self, *, life_seconds: float, most: int, monotonic: Callable[[], float]) -> None:
        self._life_seconds = life_seconds
        self._most = most
        self._monotonic = monotonic
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._loading: dict[K, asyncio.Task[V]] = {}
        self._cleared = 0

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return the value, loading it when none is fresh; callers that come meanwhile share the load."""
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._monotonic():
            return kept[1]
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.ensure_future(self._load(key, load))
            self._loading[key] = loading
        return await asyncio.shield(loading)

    def find_fresh(self, key: K) -> V | None:
        """Return the value if one is fresh, without loading."""
        kept = self._kept.get(key)
        return kept[1] if kept is not None and kept[0] > self._monotonic() else None

    def put(self, key: K, value: V) -> None:
        """Keep a value from now on; the oldest goes when there are too many."""
        self._keep(key, value, since=self._monotonic())

    def _keep(self, key: K, value: V, *, since: float) -> None:
        self._kept[key] = (since + self._life_seconds, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget everything, also what is being loaded, as after a change made by this very process."""
        self._cleared += 1
        self._kept.clear()
        self._loading.clear()

    async def _load(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Load a value; it lives from the beginning of the load, since that is how old it may be."""
        began, cleared = self._monotonic(), self._cleared
        try:
            value = await load()
            if cleared == self._cleared:
                self._keep(key, value, since=began)
            return value
        finally:
            if cleared == self._cleared:
                self._loading.pop(key, None)
