"""Objects by key, with indexes that follow them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping

from kaito_hooks.runtime.client.resource import Key, Obj

logger = logging.getLogger(__name__)

IndexFunction = Callable[[Obj], Iterable[str]]


class Cache:
    """A thread-safe map of objects. What it returns is shared: never mutate it."""

    def __init__(self, indexes: Mapping[str, IndexFunction]) -> None:
        self._functions = dict(indexes)
        self._objects: dict[Key, Obj] = {}
        self._indexes: dict[str, dict[str, dict[Key, Obj]]] = {name: {} for name in indexes}
        self._values: dict[str, dict[Key, tuple[str, ...]]] = {name: {} for name in indexes}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: Key) -> Obj | None:
        """The object, or None."""
        return self._objects.get(key)

    def keys(self) -> set[Key]:
        """All keys."""
        with self._lock:
            return set(self._objects)

    def by_index(self, index: str, value: str) -> list[Obj]:
        """The objects for which that index function gave that value; KeyError for an index that does not exist."""
        with self._lock:
            return list(self._indexes[index].get(value, {}).values())

    def list(self) -> list[Obj]:
        """All objects, in no order."""
        with self._lock:
            return list(self._objects.values())

    def put(self, key: Key, obj: Obj) -> Obj | None:
        """Stores the object and returns the one that it replaces."""
        values = {name: self._evaluate(name, key, obj) for name in self._functions}
        with self._lock:
            old = self._objects.get(key)
            self._objects[key] = obj
            for name, now in values.items():
                self._unindex(name, key)
                if now:
                    self._values[name][key] = now
                for value in now:
                    self._indexes[name].setdefault(value, {})[key] = obj
            return old

    def remove(self, key: Key) -> Obj | None:
        """Drops the object and returns it."""
        with self._lock:
            for name in self._functions:
                self._unindex(name, key)
            return self._objects.pop(key, None)

    def _evaluate(self, name: str, key: Key, obj: Obj) -> tuple[str, ...]:
        try:
            return tuple(self._functions[name](obj))
        except Exception:
            # One odd object must not stop the cache from following all others.
            logger.exception("index %s failed for %s; the object is not in that index", name, key)
            return ()

    def _unindex(self, name: str, key: Key) -> None:
        index = self._indexes[name]
        for value in self._values[name].pop(key, ()):
            holders = index.get(value)
            if holders is not None:
                holders.pop(key, None)
                if not holders:
                    del index[value]
