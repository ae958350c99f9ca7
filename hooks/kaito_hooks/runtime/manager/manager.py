"""One process: informers always, controllers only while it leads, an orderly end.

Order of a start: endpoints, informers, caches full, leadership, controllers. A standby therefore has warm caches and is
ready. Order of an end: controllers finish what they hold while the lease is still renewed, Events are written, the
lease is released.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType
from typing import Protocol

from kaito_hooks.runtime.client.client import Client
from kaito_hooks.runtime.client.events import EventRecorder
from kaito_hooks.runtime.client.informer import Informer
from kaito_hooks.runtime.clock import Clock, SystemClock
from kaito_hooks.runtime.controller import Controller
from kaito_hooks.runtime.manager.endpoints import Check, Endpoints, Route, health_page, metrics_page
from kaito_hooks.runtime.manager.leader import Elector, LeaderElection
from kaito_hooks.runtime.manager.periodic import Periodic
from kaito_hooks.runtime.metrics import Metrics

logger = logging.getLogger(__name__)

_POLL = 0.05
_EVENTS_GRACE = 3.0


class _Work(Protocol):
    """What only the leader does."""

    name: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, timeout: float) -> bool: ...
    def stuck(self) -> str | None: ...


class Manager:
    """Runs informers, controllers and periodic work in one process.

    ``identity`` is who holds the lease (default: host name and a random part; a Pod may give its own name, which lets a
    restarted container go on at once). Without ``leader_election`` the process always leads. Ports: 0 takes a free one
    (``health_port``, ``metrics_port`` tell), equal ones share a server. No ``bind_address`` is all.
    ``drain`` is how many seconds reconciles in progress may take at the end.
    """

    def __init__(
        self,
        client: Client,
        *,
        name: str,
        identity: str | None = None,
        leader_election: LeaderElection | None,
        health_port: int,
        metrics_port: int,
        bind_address: str = "",
        registry: Metrics,
        clock: Clock | None = None,
        drain: float = 20.0,
    ) -> None:
        self.name = name
        self.identity = identity or f"{socket.gethostname()}_{uuid.uuid4()}"
        self.metrics = registry
        self._clock = clock or SystemClock()
        self._ports = (health_port, metrics_port)
        self._address = bind_address
        self._drain = drain
        self._elector: Elector | None = None
        self._client = client
        if leader_election is not None:
            self._elector = Elector(client, leader_election, identity=self.identity, clock=self._clock)
            self._client = client.fenced(self._elector.fence)
        client.observe(registry.observe_request)
        self._informers: list[Informer] = []
        self._controllers: list[Controller] = []
        self._periodics: list[Periodic] = []
        self._recorders: list[EventRecorder] = []
        self._ready_checks: dict[str, Check] = {}
        self._endpoints: list[Endpoints] = []
        self._leading = threading.Event()
        self.health_port = health_port
        self.metrics_port = metrics_port

    @property
    def client(self) -> Client:
        """The client for reconciles: writes raise LeadershipLost when this process does not lead."""
        return self._client

    def fence(self) -> float:
        """Seconds for which this process may still write; LeadershipLost when it may not.

        ``client`` asks by itself; this is for writes that go elsewhere, such as to a cloud.
        """
        return self._elector.fence() if self._elector is not None else float("inf")

    @property
    def leading(self) -> bool:
        """Whether the controllers run."""
        return self._leading.is_set()

    def recorder(self, component: str, *, gather: float = 0.0) -> EventRecorder:
        """An EventRecorder over the fenced client that is flushed at the end; what it gathers yields to controllers."""
        recorder = EventRecorder(
            self._client,
            component=component,
            gather=gather,
            busy=lambda: any(controller.backlog for controller in self._controllers),
            clock=self._clock,
            metrics=self.metrics,
        )
        self._recorders.append(recorder)
        return recorder

    def add_informer(self, informer: Informer) -> None:
        """Follows the informer, leading or not. Those that an added controller watches come by themselves."""
        if informer not in self._informers:
            informer.instrument(self.metrics)
            self._informers.append(informer)

    def add_controller(self, controller: Controller) -> None:
        """Runs the controller while this process leads."""
        controller.instrument(self.metrics)
        self._controllers.append(controller)

    def add_periodic(self, name: str, every: float, run: Callable[[], None]) -> None:
        """Calls ``run`` every ``every`` seconds while this process leads."""
        self._periodics.append(Periodic(name, every=every, run=run, clock=self._clock))

    def add_ready_check(self, name: str, check: Callable[[], str | None]) -> None:
        """The process is not ready while ``check`` says why."""
        self._ready_checks[name] = check

    def run(self, stop: threading.Event) -> int:
        """Blocks until ``stop`` (0) or until leadership is lost or a port is taken (1). Once per Manager.

        After a loss nothing is waited for: the caller should end the process.
        """
        for controller in self._controllers:
            for informer in controller.informers:
                self.add_informer(informer)
        try:
            self._serve()
        except OSError as error:
            logger.error("%s cannot listen on %s, ports %s and %s: %s", self.name, self._address, *self._ports, error)
            self._close_endpoints()
            return 1
        try:
            for informer in self._informers:
                informer.start()
            if not self._wait_synced(stop):
                return 0
            return self._lead(stop)
        finally:
            for informer in self._informers:
                informer.stop(timeout=0.0)
            self._close_endpoints()

    def _wait_synced(self, stop: threading.Event) -> bool:
        for informer in self._informers:
            while not informer.wait_synced(_POLL):
                if stop.is_set():
                    return False
        logger.info(
            "%s has full caches", self.name, extra={"informers": [informer.name for informer in self._informers]}
        )
        return True

    def _lead(self, stop: threading.Event) -> int:
        master = self.metrics.leader.labels(self.name)
        master.set(0)
        if self._elector is None:
            self._start_work(master.set)
            stop.wait()
            self._finish_work()
            return 0
        elector = self._elector
        if not elector.acquire(stop):
            return 0
        resign = threading.Event()
        lost = threading.Event()
        either = threading.Event()

        def renew() -> None:
            try:
                elector.hold(resign)
            finally:
                if not resign.is_set():
                    lost.set()
                    either.set()

        def wait_for_stop() -> None:
            stop.wait()
            either.set()

        renewing = threading.Thread(target=renew, name="leader election", daemon=True)
        renewing.start()
        threading.Thread(target=wait_for_stop, name="stop", daemon=True).start()
        self._start_work(master.set)
        either.wait()
        if not lost.is_set():
            self._finish_work()
        master.set(0)
        self._leading.clear()
        if lost.is_set():
            for work in self._work():
                work.stop()
            logger.error("%s lost its leadership and ends", self.name)
            return 1
        resign.set()
        renewing.join(30.0)
        elector.release()
        return 0

    def _start_work(self, set_master: Callable[[float], None]) -> None:
        set_master(1)
        self._leading.set()
        for work in self._work():
            work.start()

    def _finish_work(self) -> None:
        logger.info("%s stops", self.name)
        for work in self._work():
            work.stop()
        deadline = self._clock.monotonic() + self._drain
        for work in self._work():
            if not work.join(max(0.0, deadline - self._clock.monotonic())):
                logger.warning("%s did not finish in time", work.name)
        for recorder in self._recorders:
            recorder.close(_EVENTS_GRACE)
        self._leading.clear()

    def _work(self) -> list[_Work]:
        return [*self._controllers, *self._periodics]

    def _serve(self) -> None:
        health: dict[str, Route] = {
            "/healthz": health_page(self._liveness),
            "/livez": health_page(self._liveness),
            "/readyz": health_page(self._readiness),
        }
        metrics: dict[str, Route] = {"/metrics": metrics_page(self.metrics.registry)}
        health_port, metrics_port = self._ports
        if health_port == metrics_port and health_port != 0:
            self._endpoints.append(Endpoints(self._address, health_port, health | metrics))
            return
        self._endpoints.append(Endpoints(self._address, health_port, health))
        self.health_port = self._endpoints[-1].port
        self._endpoints.append(Endpoints(self._address, metrics_port, metrics))
        self.metrics_port = self._endpoints[-1].port

    def _close_endpoints(self) -> None:
        for endpoints in self._endpoints:
            endpoints.close()

    def _liveness(self) -> dict[str, Check]:
        checks: dict[str, Check] = {f"informer {informer.name}": informer.deaf for informer in self._informers}
        return checks | {work.name: work.stuck for work in self._work()}

    def _readiness(self) -> dict[str, Check]:
        return {f"informer {informer.name}": informer.out_of_touch for informer in self._informers} | self._ready_checks


def run_until_signal(manager: Manager) -> int:
    """Runs the manager until SIGTERM or SIGINT, then stops it in order; a second signal ends the process at once.

    Returns the process's exit code. Only from the main thread.
    """
    stop = threading.Event()
    # A handler may interrupt this thread while it holds the event's lock, and itself; a SimpleQueue bears that.
    received: SimpleQueue[int] = SimpleQueue()
    asked = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise SystemExit(128 + number)
        asked = True
        received.put(number)

    def pass_on() -> None:
        received.get()
        stop.set()

    threading.Thread(target=pass_on, name="signals", daemon=True).start()
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return manager.run(stop)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
