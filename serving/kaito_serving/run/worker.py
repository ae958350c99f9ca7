"""A node that computes a part of a model which another node serves: vLLM without a server, and its health.

Kubernetes ends all Pods of a StatefulSet at the same time, but node 0 answers what it has begun: the others go on
until it is gone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException

from kaito_serving.engine.base import State
from kaito_serving.engine.vllm.child import Child
from kaito_serving.errors import ServerFailed
from kaito_serving.http.contract import Progress
from kaito_serving.model.folder import inspect
from kaito_serving.options import Options
from kaito_serving.run import host, vllm
from kaito_serving.run.signals import Signals

_LOG = logging.getLogger(__name__)

_LOOK_EVERY = 0.5  # seconds
_SILENT_FOR = 5  # looks at node 0 without an answer, after which it is gone


def run(options: Options) -> None:
    """Compute until SIGTERM or SIGINT and the end of node 0; ServerFailed when vLLM ends by itself."""
    stopping = Signals()
    stopping.listen()
    folder = inspect(Path(options.weights))
    rank = vllm.lora_rank(vllm.deployed(options), options)
    child, _ = vllm.start(vllm.settings(options, folder, gpus=host.gpus(), lora_rank=rank))
    # In a thread of its own uvicorn leaves the signals alone.
    server = uvicorn.Server(uvicorn.Config(_application(child), host=options.host, port=options.port, log_config=None))
    threading.Thread(target=server.run, name="http", daemon=True).start()
    _LOG.info("Node %d of %d computes for %s.", options.node_rank, options.nnodes, options.master_addr)
    try:
        while not stopping.within(_LOOK_EVERY):
            failure = child.failure()
            if failure is not None:
                raise ServerFailed(failure)
        _LOG.info("Stopping when node 0 has.")
        _wait_for_the_first(child, options, monotonic=time.monotonic)
    finally:
        child.stop()
        server.should_exit = True


def _wait_for_the_first(child: Child, options: Options, *, monotonic: Callable[[], float]) -> None:
    """Return when node 0 does not listen any more, or vLLM has noticed that itself."""
    end = monotonic() + options.drain_s + options.request_timeout_s
    silent = 0
    while child.failure() is None and silent < _SILENT_FOR and monotonic() < end:
        try:
            socket.create_connection((options.master_addr, options.port), timeout=_LOOK_EVERY).close()
            silent = 0
        except OSError:
            silent += 1
        time.sleep(_LOOK_EVERY)


def _application(child: Child) -> FastAPI:
    """What the kubelet and the controller ask."""
    app = FastAPI(title="kaito-serving", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        failure = child.failure()
        if failure is not None:
            raise HTTPException(status_code=500, detail=failure)
        return {"status": "Healthy"}

    @app.get("/progress")
    def progress() -> Progress:
        failure = child.failure()
        if failure is not None:
            return Progress(state=State.FAILED, message=failure)
        return Progress(state=State.READY, message="computing for node 0")

    return app
