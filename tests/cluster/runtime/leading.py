"""A process that writes a ledger while it leads: one ConfigMap per write, named after the process.

    python -m tests.cluster.runtime.leading KUBECONFIG NAMESPACE IDENTITY LEASE_DURATION RENEW_DEADLINE RETRY_PERIOD

It prints its health port once it serves it. It does what a hasty controller might: its writes come from threads of
their own and know nothing of leadership.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time

from tests.cluster.runtime.objects import CONFIG_MAP, config_map
from tests.eventually import PATIENCE

from kaito_hooks.runtime import (
    ApiError,
    Client,
    Controller,
    Informer,
    Key,
    LeaderElection,
    LeadershipLost,
    Manager,
    Metrics,
    Result,
    configure_logging,
    run_until_signal,
)


def main() -> int:
    kubeconfig, namespace, identity, *times = sys.argv[1:]
    configure_logging("info")
    duration, deadline, period = map(float, times)
    manager = Manager(
        Client.load(kubeconfig=kubeconfig, user_agent=identity),
        name="ledger",
        identity=identity,
        leader_election=LeaderElection(namespace, "ledger", duration, deadline, period),
        health_port=0,
        metrics_port=0,
        bind_address="127.0.0.1",
        registry=Metrics(),
        drain=PATIENCE,
    )
    numbers = itertools.count()

    def write() -> None:
        entry = config_map(namespace, f"entry-{identity}-{next(numbers)}", writer=identity)
        entry["metadata"]["labels"] = {"ledger": "entry"}
        manager.client.create(CONFIG_MAP, entry)

    def write_forever() -> None:
        while True:
            with contextlib.suppress(ApiError, LeadershipLost):
                write()
            time.sleep(0.05)

    slow = threading.Event()

    def reconcile(key: Key) -> Result:
        if key.name == "slow" and not slow.is_set():
            slow.set()
            manager.client.create(CONFIG_MAP, config_map(namespace, "slow-begun"))
            time.sleep(2.0)
            manager.client.create(CONFIG_MAP, config_map(namespace, "slow-done"))
        return Result()

    informer = Informer(manager.client, CONFIG_MAP, namespace=namespace, label_selector="!ledger")
    controller = Controller("slow", reconcile=reconcile)
    controller.watch(informer)
    manager.add_controller(controller)
    threading.Thread(target=write_forever, daemon=True).start()
    return run_until_signal(manager)


if __name__ == "__main__":
    sys.exit(main())
