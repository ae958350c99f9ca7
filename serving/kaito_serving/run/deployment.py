"""The Ray Serve deployment: one replica is one process with one copy of the model and its HTTP application."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from ray import serve

from kaito_serving.engine.base import Engine
from kaito_serving.http.app import build
from kaito_serving.http.chat import Chat
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.run import host
from kaito_serving.run.options import Options, api_keys
from kaito_serving.run.service import ModelService

NAME = "model"


class ModelServer:
    """The replica. Its constructor returns at once and the model loads in the background, so that health can answer."""

    def __init__(self, options: Options) -> None:
        _configure_logging(debug=options.debug)
        metrics = ServingMetrics(model=options.served_model_name, version=_version())
        self._service = ModelService(options, load=_assemble, metrics=metrics, monotonic=time.monotonic)
        self._api_keys = api_keys(options)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self._service, api_keys=self._api_keys, hardware=host.as_metrics)

    async def check_health(self) -> None:
        """Called by Serve every few seconds; raising has this replica replaced."""
        self._service.check()

    async def startup(self) -> dict[str, Any]:
        """How far the start is, and which process says so."""
        return {**asdict(self._service.startup), "pid": os.getpid()}


def application(options: Options, *, replicas: int, gpus_per_replica: float, cpus_per_replica: int) -> Any:
    """The bound deployment for `serve.run`."""
    deployment = serve.deployment(
        serve.ingress()(ModelServer),
        name=NAME,
        num_replicas=replicas,
        # The engine queues by itself and says 429; Serve's own limit of 5 would hold requests back from the batch.
        max_ongoing_requests=100_000,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=max(20.0, min(options.request_timeout_s, 120.0)),
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": cpus_per_replica, "num_gpus": gpus_per_replica},
        logging_config={"enable_access_log": options.debug},
    )
    return deployment.bind(options)


def _version() -> str:
    try:
        return metadata.version("kaito")
    except metadata.PackageNotFoundError:
        return "unknown"


def _assemble(options: Options, metrics: ServingMetrics) -> tuple[Engine, Chat]:
    from kaito_serving.run.assembly import assemble  # torch: only where the model is, some 300 MiB less elsewhere

    return assemble(options, metrics)


def _configure_logging(*, debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("kaito_serving")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
    # transformers' loop logs token ids of prompts when it refuses one.
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
