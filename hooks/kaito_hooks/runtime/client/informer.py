"""A cached list and watch of one resource.

List, then watch from the list's resourceVersion. A watch that the server ends in order goes on from the last
resourceVersion seen (bookmarks keep it fresh); after any other end the truth is unknown and the informer lists again,
compares with its cache and reports the differences. A stream that falls silent for longer than the server's bookmarks
allow is dead, whatever TCP believes.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping

from kaito_hooks.runtime.backoff import Backoff
from kaito_hooks.runtime.client.cache import Cache
from kaito_hooks.runtime.client.client import Client
from kaito_hooks.runtime.client.resource import Key, Obj, Resource
from kaito_hooks.runtime.client.watch import WatchStream
from kaito_hooks.runtime.clock import Clock, SystemClock
from kaito_hooks.runtime.errors import ApiError, Gone, NotFound
from kaito_hooks.runtime.metrics import Metrics
from kaito_hooks.runtime.threads import SupervisedThread

logger = logging.getLogger(__name__)

Handler = Callable[[Obj | None, Obj | None], None]

_SHORT_WATCH = 5.0
_GRACE = 60.0


def drop_managed_fields(obj: Obj) -> Obj:
    """The default transform: managedFields are a large part of an object and no controller reads them."""
    obj["metadata"].pop("managedFields", None)
    return obj


class Informer:
    """Follows one resource, optionally of one namespace or selection, and tells its subscribers what changed.

    Reads are from memory and may be a moment old. Objects are shared between all readers: never mutate them.

    ``indexes`` name functions from an object to the values under which ``by_index`` finds it. ``transform`` may shrink
    an object before it is kept (default: without managedFields). An ``optional`` resource need not be served: the
    informer is then synced and empty and looks again with back-off. ``silence`` is the longest time in seconds without
    a word on a watch; the server sends a bookmark about once a minute.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
        indexes: Mapping[str, Callable[[Obj], Iterable[str]]] | None = None,
        transform: Callable[[Obj], Obj] | None = None,
        optional: bool = False,
        metrics: Metrics | None = None,
        clock: Clock | None = None,
        silence: float = 90.0,
        watch_timeout: float = 600.0,
        page_size: int = 500,
        backoff: Backoff | None = None,
        unserved_backoff: Backoff | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.resource = resource
        # With the field selector, as two informers may follow different objects of one resource.
        self.name = (
            f"{resource}{f' with {field_selector}' if field_selector else ''}{f' in {namespace}' if namespace else ''}"
        )
        self._client = client
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._transform = transform or drop_managed_fields
        self._optional = optional
        self._metrics = metrics
        self._clock = clock or SystemClock()
        self._silence = silence
        self._watch_timeout = watch_timeout
        self._page_size = page_size
        self._backoff = backoff or Backoff(minimum=0.2, maximum=10.0)
        self._unserved_backoff = unserved_backoff or Backoff(minimum=2.0, maximum=30.0)
        self._rng = rng or random.Random()
        self._cache = Cache(indexes or {})
        self._handlers: list[Handler] = []
        self._dispatch = threading.RLock()
        self._stop = threading.Event()
        self._synced = threading.Event()
        self._served = True
        self._version: str | None = None
        self._stream: WatchStream | None = None
        self._thread = SupervisedThread(f"informer {self.name}", self._follow, stop=self._stop)
        self._started = False
        self._progress = self._contact = self._clock.monotonic()
        self._watching_since: float | None = None
        self._bookmarks = False

    @property
    def synced(self) -> bool:
        """Whether the cache has once held everything that the server had."""
        return self._synced.is_set()

    @property
    def served(self) -> bool:
        """Whether the API server served the resource when the informer last asked."""
        return self._served

    def get(self, key: Key) -> Obj | None:
        """The object, or None."""
        return self._cache.get(key)

    def by_index(self, index: str, value: str) -> list[Obj]:
        """The objects that the index function ``index`` maps to ``value``, in no order."""
        return self._cache.by_index(index, value)

    def list(self) -> list[Obj]:
        """All objects, in no order."""
        return self._cache.list()

    def subscribe(self, handler: Handler) -> None:
        """Calls ``handler(old, new)`` for every change, in order.

        (None, new) is a new object, (old, None) one that is gone. What is in the cache already is reported at once as
        new. Handlers run in the informer's thread and must not block.
        """
        with self._dispatch:
            self._handlers.append(handler)
            for obj in self._cache.list():
                self._call(handler, None, obj)

    def start(self) -> None:
        """Starts following; again is a no-op."""
        if not self._started:
            self._started = True
            self._progress = self._contact = self._clock.monotonic()
            if self._metrics is not None:
                self._metrics.informer_objects.labels(self.name).set_function(lambda: float(len(self._cache)))
            self._thread.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """Stops following; whether the thread ended within ``timeout`` seconds. The cache stays readable."""
        self._stop.set()
        stream = self._stream
        if stream is not None:
            stream.close()
        return self._thread.join(timeout) if self._started else True

    def wait_synced(self, timeout: float) -> bool:
        """Waits for ``synced``; whether it came within ``timeout`` seconds."""
        return self._synced.wait(timeout)

    def instrument(self, metrics: Metrics) -> None:
        """Publishes this informer's series, unless it has some already; before ``start``."""
        self._metrics = self._metrics or metrics

    def deaf(self) -> str | None:
        """Why this informer cannot hear any more although it should, or None.

        An idle informer gets bookmarks, one without an API server keeps trying; both make progress. A deaf one does
        not: its thread is dead or stuck.
        """
        if not self._started or self._stop.is_set():
            return None
        if not self._thread.alive:
            return f"the informer of {self.name} has no thread"
        still = self._clock.monotonic() - self._progress
        if still > self._silence + _GRACE:
            return f"the informer of {self.name} has made no progress for {still:.0f} s"
        return None

    def out_of_touch(self) -> str | None:
        """Why the cache may be old, or None: nothing was heard for longer than a watch may be silent."""
        if not self.synced:
            return f"the informer of {self.name} has not listed yet"
        unheard = self._clock.monotonic() - self._contact
        if unheard > self._silence + _GRACE:
            return f"the informer of {self.name} has not heard from the API server for {unheard:.0f} s"
        return None

    def _follow(self) -> None:
        self._version = None
        failures = 0
        unserved = 0
        while not self._stop.is_set():
            self._progress = self._clock.monotonic()
            self._watching_since = None
            try:
                if self._version is None:
                    self._version = self._relist()
                    unserved = 0
                self._watch()
                problem: ApiError | None = None
            except NotFound as error:
                self._version = None
                if self._optional:
                    unserved += 1
                    self._withdraw()
                    self._pause(self._unserved_backoff.delay(unserved))
                    continue
                problem = error
            except ApiError as error:
                self._version = None
                problem = error
            if self._stop.is_set():
                return
            since = self._watching_since
            lasted = since is not None and self._clock.monotonic() - since >= _SHORT_WATCH
            failures = 0 if lasted else failures + 1
            if problem is not None:
                self._count_failure(problem)
            elif lasted:
                continue
            retry_after = min(problem.retry_after or 0.0, _GRACE) if problem is not None else None
            self._pause(self._backoff.delay(max(failures, 1), at_least=retry_after))

    def _relist(self) -> str:
        if self._metrics is not None:
            self._metrics.informer_lists.labels(self.name).inc()
        found = self._client.list(
            self.resource,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            page_size=self._page_size,
            on_page=self._heard,
        )
        self._served = True
        gone = self._cache.keys()
        for obj in found.items:
            gone.discard(Key.of(obj))
            self._store(obj)
        for key in gone:
            self._remove(key)
        self._synced.set()
        return found.resource_version

    def _watch(self) -> None:
        """Follows one watch to its orderly end, keeping ``_version`` up to date."""
        assert self._version is not None
        if self._metrics is not None:
            self._metrics.informer_watches.labels(self.name).inc()
            events = self._metrics.informer_events.labels(self.name)
        stream = self._client.watch(
            self.resource,
            namespace=self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            resource_version=self._version,
            timeout_seconds=self._timeout_seconds(),
            silence=self._silence,
        )
        self._stream = stream
        try:
            if self._stop.is_set():
                return
            self._heard()
            self._watching_since = self._clock.monotonic()
            for kind, obj in stream:
                if self._stop.is_set():
                    return
                self._heard()
                if self._metrics is not None:
                    events.inc()
                version = obj["metadata"]["resourceVersion"]
                if kind == "DELETED":
                    self._remove(Key.of(obj))
                elif kind == "BOOKMARK":
                    self._bookmarks = True
                else:
                    self._store(obj)
                self._version = version
            self._heard()
        finally:
            self._stream = None
            stream.close()

    def _timeout_seconds(self) -> int:
        """How long the server may keep the watch, with jitter so that the watches of informers do not end together.

        Some resources have no bookmarks (Events do not): until one is seen, a watch ends before its silence would mean
        that it is dead.
        """
        longest = self._watch_timeout if self._bookmarks else min(self._watch_timeout, self._silence * 0.8)
        return max(1, int(self._rng.uniform(0.5, 1.0) * longest))

    def _store(self, obj: Obj) -> None:
        key = Key.of(obj)
        try:
            kept = self._transform(obj)
        except Exception:
            logger.exception(
                "the transform of the informer of %s failed for %s; the object is kept as it is", self.name, key
            )
            kept = obj
        with self._dispatch:
            old = self._cache.put(key, kept)
            if old is None or old["metadata"].get("uid") == kept["metadata"].get("uid"):
                if old is None or old["metadata"].get("resourceVersion") != kept["metadata"].get("resourceVersion"):
                    self._notify(old, kept)
                return
            # Deleted and made again while nobody watched: two objects of one name.
            self._notify(old, None)
            self._notify(None, kept)

    def _remove(self, key: Key) -> None:
        with self._dispatch:
            old = self._cache.remove(key)
            if old is not None:
                self._notify(old, None)

    def _withdraw(self) -> None:
        """The resource is not served: everything cached is gone, and that is a known state."""
        self._heard()
        if self._served:
            logger.info("%s is not served; the informer looks again from time to time", self.resource)
        self._served = False
        for obj in self._cache.list():
            self._remove(Key.of(obj))
        self._synced.set()

    def _notify(self, old: Obj | None, new: Obj | None) -> None:
        for handler in self._handlers:
            self._call(handler, old, new)

    def _call(self, handler: Handler, old: Obj | None, new: Obj | None) -> None:
        try:
            handler(old, new)
        except Exception:
            logger.exception("a subscriber of the informer of %s failed", self.name)

    def _heard(self) -> None:
        self._progress = self._contact = self._clock.monotonic()

    def _count_failure(self, problem: ApiError) -> None:
        if self._metrics is not None:
            self._metrics.informer_failures.labels(self.name).inc()
        level = logging.INFO if isinstance(problem, Gone) or self.synced else logging.WARNING
        logger.log(level, "the informer of %s lists again: %s", self.name, problem)

    def _pause(self, seconds: float) -> None:
        self._progress = self._clock.monotonic()
        self._stop.wait(seconds)
