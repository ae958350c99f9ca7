"""The Ray Serve deployment: one replica is one process with one copy of the model and its HTTP application.

Ray Serve places replicas, gives them their GPUs, checks and replaces them. Requests do not go through it: a replica
answers HTTP on a socket of its own, behind this server's HAProxy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray import serve

from kaito_serving.options import Options
from kaito_serving.run.folder import ServerFolder

if TYPE_CHECKING:
    from kaito_serving.run.replica import Replica

_DEPLOYMENT = "model"


class ModelServer:
    """The replica. It loads in the background: HAProxy sends it requests when its /health says that it answers."""

    def __init__(self, options: Options, folder: ServerFolder) -> None:
        # prometheus_client chooses by it when it is imported. Ray's own processes must not: they count, too.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.metrics)
        from kaito_serving.run.replica import Replica

        name = f"replica {serve.get_replica_context().rank.rank}" if options.replicas > 1 else ""
        self._replica: Replica = Replica(options, folder, name=name)
        self._replica.start()

    async def check_health(self) -> None:
        """Called by Ray Serve every second; raising has this replica replaced."""
        await self._replica.check()

    def __del__(self) -> None:
        """Called by Ray Serve before it ends this process: what runs may finish."""
        if hasattr(self, "_replica"):
            self._replica.stop()


def application(options: Options, *, gpus_per_replica: float, cpus_per_replica: int, folder: ServerFolder) -> Any:
    """The bound deployment for Ray Serve, with as many replicas as `options` say."""
    deployment = serve.deployment(
        ModelServer,
        name=_DEPLOYMENT,
        num_replicas=options.replicas,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=options.request_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": cpus_per_replica, "num_gpus": gpus_per_replica},
    )
    return deployment.bind(options, folder)
