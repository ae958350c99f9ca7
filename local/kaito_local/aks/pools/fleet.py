"""Boots and ends the machines of pools, beside the operations: a slow machine delays no answer and no other pool."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from kaito_local.aks.clock import Agenda
from kaito_local.aks.faults import FaultBook, MachineFault
from kaito_local.aks.machines.machines import Machines, MachineSpec
from kaito_local.aks.pools.pool import Pool
from kaito_local.aks.settings import Settings, sizes

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 2.0
_WORKERS = 8
_NO_FAULT = MachineFault()


class Fleet:
    """``wanted(pool)``: whether that very pool still is to have machines. A failed start or stop is tried again."""

    def __init__(
        self,
        machines: Machines,
        *,
        settings: Settings,
        agenda: Agenda,
        faults: FaultBook,
        wanted: Callable[[Pool], bool],
    ) -> None:
        self._machines = machines
        self._settings = settings
        self._agenda = agenda
        self._faults = faults
        self._wanted = wanted
        self._workers = ThreadPoolExecutor(max_workers=_WORKERS, thread_name_prefix="machines")
        self._pool_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False

    def boot(self, pool: Pool, *, at: float, then: Callable[[], None]) -> None:
        """Starts a new pool's machines, or lets a fault have them; ``then`` once they were started, or never will be.

        ``at`` is when the pool is Succeeded: the time from which a late machine counts.
        """
        taken = self._faults.take("machine", pool=pool.name)
        fault = (taken.machine if taken else None) or _NO_FAULT
        if fault.never:
            then()
        elif fault.late:
            self._agenda.at(at + fault.late, lambda _: self._submit(lambda: self._boot(pool, fault, then)))
        else:
            self._submit(lambda: self._boot(pool, fault, then))

    def start(self, pool: Pool, indexes: Iterable[int], *, then: Callable[[], None]) -> None:
        """Starts the pool's machines of those numbers; calls ``then`` once they were started."""
        specs = self.specs(pool, indexes)
        self._submit(lambda: self._start(pool, specs, then))

    def remove(self, pool: Pool, indexes: Iterable[int], *, then: Callable[[], None]) -> None:
        """Ends machines of the pool and deletes their Nodes; calls ``then`` when that is done."""
        names = [pool.node_name(self._settings, index) for index in indexes]
        self._submit(
            lambda: self._each(pool, [partial(self._machines.remove, pool.name, name) for name in names], then)
        )

    def relabel(self, pool: Pool, *, removed: Iterable[str], then: Callable[[], None]) -> None:
        """Puts the pool's labels on its Nodes and takes the ``removed`` ones off; calls ``then`` when that is done."""
        labels = {**dict.fromkeys(removed), **pool.labels}
        names = [pool.node_name(self._settings, index) for index in pool.members]
        self._submit(lambda: self._each(pool, [partial(self._machines.relabel, name, labels) for name in names], then))

    def reimage(self, pool: Pool, *, then: Callable[[], None]) -> None:
        """Reimages the pool's machines; their Nodes stay. Calls ``then`` when they boot again."""
        specs = self.specs(pool, pool.members)
        self._submit(lambda: self._each(pool, [partial(self._machines.reimage, spec) for spec in specs], then))

    def end(self, pool: Pool, *, then: Callable[[], None]) -> None:
        """Ends the pool's machines for good; calls ``then`` when none is left."""
        self._submit(lambda: self._each(pool, [partial(self._machines.stop, pool.name)], then))

    def settle(self, *, seconds: float = 30.0) -> None:
        """Waits until no machine is being started or ended; TimeoutError after that many real seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._running == 0, timeout=seconds):
                raise TimeoutError("machines are still being started or ended")

    def close(self) -> None:
        """Lets running starts and stops finish and begins no more; machines stay as they are."""
        self._closed = True
        self._workers.shutdown(cancel_futures=True)

    def specs(self, pool: Pool, indexes: Iterable[int], fault: MachineFault = _NO_FAULT) -> list[MachineSpec]:
        """The pool's machines of those numbers."""
        size = sizes()[pool.size.lower()]
        return [
            MachineSpec(
                pool=pool.name,
                node_name=pool.node_name(self._settings, index),
                provider_id=pool.provider_id(self._settings, index) if fault.provider_id else "",
                vm_size=pool.size,
                labels=self._labels(pool, gpu=size.gpus > 0),
                taints=tuple(pool.properties.get("nodeTaints") or ()),
                gpu_count=size.gpus if fault.gpu and _has_driver(pool) else 0,
                gpu_delay_seconds=self._settings.durations.gpu_delay,
                ready=fault.ready,
                not_ready_after_seconds=fault.not_ready_after,
            )
            for index in indexes
        ]

    def _labels(self, pool: Pool, *, gpu: bool) -> dict[str, str]:
        zones = pool.properties.get("availabilityZones")
        labels = {
            **pool.labels,
            "agentpool": pool.name,
            "kubernetes.azure.com/agentpool": pool.name,
            "kubernetes.azure.com/cluster": self._settings.cluster_label,
            "kubernetes.azure.com/mode": str(pool.properties.get("mode", "User")).lower(),
            "kubernetes.azure.com/node-image-version": pool.image_version,
            "kubernetes.azure.com/os-sku": str(pool.properties.get("osSKU", "Ubuntu")),
            "node.kubernetes.io/instance-type": pool.size,
            "topology.kubernetes.io/region": self._settings.location,
            "topology.kubernetes.io/zone": f"{self._settings.location}-{zones[0]}" if zones else self._settings.zone,
        }
        if pool.properties.get("scaleSetPriority") == "Spot":
            labels["kubernetes.azure.com/scalesetpriority"] = "spot"
        if gpu:
            labels |= {"accelerator": "nvidia", "kubernetes.azure.com/accelerator": "nvidia"}
        return labels

    def _boot(self, pool: Pool, fault: MachineFault, then: Callable[[], None]) -> None:
        indexes = range(pool.first, pool.first + pool.count * fault.count)
        self._start(pool, self.specs(pool, indexes, fault), then)

    def _start(self, pool: Pool, specs: Sequence[MachineSpec], then: Callable[[], None]) -> None:
        self._each(pool, [partial(self._machines.start, spec) for spec in specs], then, only_if=self._wanted)

    def _each(
        self,
        pool: Pool,
        actions: Sequence[Callable[[], None]],
        then: Callable[[], None],
        *,
        only_if: Callable[[Pool], bool] = lambda pool: True,
    ) -> None:
        """Does all of it, again from the beginning if one fails; nothing more if ``only_if`` says no by then."""
        with self._pool_locks[pool.name]:
            if not only_if(pool):
                return
            try:
                for action in actions:
                    action()
            except Exception:
                _log.exception("cannot change the machines of pool %s; trying again", pool.name)
                self._later(lambda: self._each(pool, actions, then, only_if=only_if))
                return
        then()

    def _later(self, task: Callable[[], None]) -> None:
        timer = threading.Timer(_RETRY_SECONDS, lambda: self._submit(task))
        timer.daemon = True
        timer.start()

    def _submit(self, task: Callable[[], None]) -> None:
        if self._closed:
            return
        with self._changed:
            self._running += 1

        def run() -> None:
            try:
                task()
            except Exception:
                _log.exception("the emulator failed at a machine")
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

        try:
            self._workers.submit(run)
        except RuntimeError:
            # The pool of workers was closed between the look and the call.
            with self._changed:
                self._running -= 1


def _has_driver(pool: Pool) -> bool:
    """Without AKS's driver no GPU shows up until somebody installs one, which nobody does here."""
    return bool((pool.properties.get("gpuProfile") or {}).get("driver") != "None")
