"""The Ray Serve deployment: one replica is one process with one copy of the model and its HTTP application."""

from __future__ import annotations

import logging
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from kaito_serving.http.app import Surfaces, build
from kaito_serving.http.metrics import ServingMetrics
from kaito_serving.options import Options, api_keys
from kaito_serving.run import host
from kaito_serving.run.service import ModelService
from kaito_serving.run.startup import Report

NAME = "model"


class ModelServer:
    """The replica.

    With `at_once` the model loads in the constructor, so that Serve sends requests to replicas that can answer them;
    otherwise in the background, so that the only replica can say meanwhile how it is.
    """

    def __init__(self, options: Options, *, at_once: bool, report: Path) -> None:
        _configure_logging(debug=options.debug)
        self._options = options
        self._service = ModelService(
            load=partial(_assemble, options),
            metrics=ServingMetrics(model=options.served_model_name[0], version=_version()),
            monotonic=time.monotonic,
            report=Report(report),
        )
        if at_once:
            self._service.load()

    def __serve_build_asgi_app__(self) -> FastAPI:
        options = self._options
        return build(
            self._service,
            api_keys=api_keys(options),
            hardware=host.Hardware(monotonic=time.monotonic),
            request_timeout=options.request_timeout_s,
            runtime_adapters=options.adapters_dir if options.allow_runtime_adapters else None,
            passing=options.uses_vllm,
        )

    async def check_health(self) -> None:
        """Called by Serve every second; raising has this replica replaced."""
        self._service.check()


def application(
    options: Options, *, replicas: int, gpus_per_replica: float, cpus_per_replica: int, report: Path
) -> Any:
    """The bound deployment for Serve; `report` is the folder in which the replicas tell how far they are."""
    deployment = serve.deployment(
        serve.ingress()(ModelServer),
        name=NAME,
        num_replicas=replicas,
        # The engine queues by itself and says 429; Serve's own limit of 5 would hold requests back from the batch.
        max_ongoing_requests=100_000,
        health_check_period_s=1.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=options.request_timeout_s,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": cpus_per_replica, "num_gpus": gpus_per_replica},
        logging_config={"enable_access_log": options.debug},
    )
    return deployment.bind(options, at_once=replicas > 1, report=report)


def _version() -> str:
    try:
        return metadata.version("kaito")
    except metadata.PackageNotFoundError:
        return "unknown"


def _assemble(options: Options, metrics: ServingMetrics) -> Surfaces:
    if options.uses_vllm:
        from kaito_serving.run import vllm

        return vllm.assemble(options)
    from kaito_serving.run.assembly import assemble  # torch: only where the model is, some 300 MiB less elsewhere

    return assemble(options, metrics)


def _configure_logging(*, debug: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("kaito_serving")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(logging.DEBUG if debug else logging.INFO)
