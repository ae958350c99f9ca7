"""The life of the server: checks, a Ray of its own, the door, the deployment, waiting, and an orderly end.

One Ray per Pod: nothing outside can reach or lose it. It is started on the loopback address with token authentication
and a token that only this process tree knows, without dashboard and usage reports. Ray Serve replaces a dead replica
by itself, and this process a dead HAProxy; when Ray's own processes (gcs_server, raylet) die, this process ends with 1
and the kubelet starts the container again. That end is a thread's: whatever the main thread asks of a dead Ray, its
exit handlers included, may take minutes to return.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from kaito_serving.errors import ServerFailed
from kaito_serving.model.folder import fits_one_gpu, inspect
from kaito_serving.options import Options, api_keys
from kaito_serving.run import host, log, processes
from kaito_serving.run.folder import ServerFolder, server_folder
from kaito_serving.run.signals import Signals

_LOG = logging.getLogger(__name__)

APPLICATION = "kaito"
_OBJECT_STORE = 80 * 1024 * 1024  # bytes, Ray's minimum is 75 MiB; Serve keeps nothing large there
_RAY_STARTS = 3
_GUARD_EVERY = 0.5  # seconds
_MOST_HTTP_THREADS = 4


def environment(given: Mapping[str, str], *, debug: bool = False) -> dict[str, str]:
    """What must stand in the environment before Ray is imported; values that the user has set win."""
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp",
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # A Ray of one node, on the loopback address: on other systems Ray's default.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_SERVE_LOG_TO_STDERR": "1" if debug else "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    result = {name: given.get(name, value) for name, value in wanted.items()}
    if result["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in given:
        result["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return result


def check_folders(options: Options) -> None:
    """What can be found wrong in a second, before Ray starts; StartupError with a sentence."""
    api_keys(options)
    if not options.allow_remote_files:
        inspect(Path(options.weights))


def run(options: Options, *, die: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT; raises StartupError or ServerFailed when it ends otherwise.

    ``die`` ends this process with a sentence at once; a thread calls it when Ray itself has died.
    """
    began = time.monotonic()
    stopping = Signals()
    stopping.listen()
    check_folders(options)
    processes.adopt_orphans()
    os.environ.update(environment(os.environ, debug=options.debug))
    if options.allow_remote_files:
        os.environ["HF_HUB_OFFLINE"] = "0"
    _LOG.info("Starting Ray")
    import ray
    from ray import serve

    processors = host.processors()
    with ExitStack() as stack:
        if not options.debug:
            # Ray prints there what its raylet writes into its own log, too; nothing of ours goes there.
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
        stack.callback(processes.kill_below)
        stack.callback(ray.shutdown)
        _start_ray(ray, processors=max(processors, options.replicas or len(host.gpus())), debug=options.debug)
        stopping.listen()  # ray.init puts its own handlers there
        started = psutil.Process().children()
        vital = [child for child in started if child.name() in ("gcs_server", "raylet")]
        over = threading.Event()
        stack.callback(over.set)
        threading.Thread(target=_guard, args=(vital, over, die), name="guard", daemon=True).start()

        folder = stack.enter_context(server_folder(Path(os.environ["RAY_TMPDIR"])))
        # prometheus_client chooses by it when it is imported. Ray's own processes count, too: they started without it.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder.metrics)
        from kaito_serving.run.front import Front
        from kaito_serving.run.supervision import watch

        gpus = int(ray.cluster_resources().get("GPU", 0))
        options = replace(options, replicas=_replicas(options, gpus))
        front = stack.enter_context(Front(options, folder, threads=min(processors, _MOST_HTTP_THREADS)))
        stack.callback(serve.shutdown)
        try:
            if not stopping.reason:
                _deploy(serve, options, gpus=gpus, processors=processors, folder=folder)
                stopping.listen()
                watch(serve, front, stopping, own=[child.pid for child in started], began=began)
        finally:
            _LOG.info("Stopping (%s)", stopping.reason or "failed")
            if stopping.reason:
                front.drain()
                time.sleep(options.drain_s)
                front.door.stop_listening()
                _end_replicas(serve, within=options.request_timeout_s)


def _guard(vital: Sequence[psutil.Process], over: threading.Event, die: Callable[[str], object]) -> None:
    while not over.wait(_GUARD_EVERY):
        dead = [child.name() for child in vital if not processes.alive(child)]
        if dead and not over.is_set():
            processes.kill_below()
            die(f"Ray's process {dead[0]} died.")
            return


def _start_ray(ray: Any, *, processors: int, debug: bool) -> None:
    """Start Ray below this process; `processors` is how many it may give away, at least one for each replica.

    It gives up after 30 s, which a busy machine may need: it is tried again.
    """
    for attempt in range(_RAY_STARTS):
        try:
            ray.init(
                address="local",
                namespace=APPLICATION,
                num_cpus=processors + 1,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                logging_level=logging.INFO if debug else logging.ERROR,
                log_to_driver=debug,
                _node_ip_address="127.0.0.1",
                _memory=host.memory_limit(),
            )
            return
        except Exception as error:  # Ray raises bare Exceptions here
            _LOG.debug("Ray did not start", exc_info=True)
            _LOG.warning("Ray did not start (attempt %d of %d): %s", attempt + 1, _RAY_STARTS, error)
            ray.shutdown()
            processes.kill_below()
    raise ServerFailed("Ray does not start in this container; it may need more processor time or memory.")


def _deploy(serve: Any, options: Options, *, gpus: int, processors: int, folder: ServerFolder) -> None:
    """Hand the application to Serve, which starts it beside."""
    from ray.exceptions import RayError

    from kaito_serving.run.deployment import application

    count = options.replicas
    _LOG.info("Starting %s", "the model" if count == 1 else f"{count} replicas of the model")
    _LOG.info("Ray's own log files are in %s/ray/session_latest/logs", os.environ["RAY_TMPDIR"])
    share = gpus / count
    target = application(
        options,
        gpus_per_replica=share if share < 1 else int(share),
        # Ray sets the number of computing threads by this. HTTP and Ray itself take little, and from all of them.
        cpus_per_replica=max(1, processors // count),
        folder=folder,
    )
    try:
        log.quiet_ray(debug=options.debug)
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
        log.quiet_ray(debug=options.debug)
        serve.run_many(
            [serve.RunTarget(target, name=APPLICATION, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except (RayError, RuntimeError, TimeoutError) as error:
        _LOG.debug("Ray Serve did not start", exc_info=True)
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ServerFailed(f"Ray Serve did not start: {last[0]}") from error


def _end_replicas(serve: Any, *, within: float) -> None:
    """Have Serve end them, and wait for the answers that run."""
    until = time.monotonic() + within
    try:
        serve.delete(APPLICATION)
    except TimeoutError:  # it waits for a minute
        while APPLICATION in serve.status().applications and time.monotonic() < until:
            time.sleep(_GUARD_EVERY)


def replica_count(options: Options, *, gpus: int, memory: float, weights: float) -> int:
    """How many replicas there are on `gpus` GPUs of which the smallest has `memory` bytes, for `weights` bytes.

    One per GPU when the weights, and half as much for their cache, fit into one; else one over all.
    """
    if options.replicas or gpus < 2:
        return options.replicas or 1
    if options.uses_vllm or options.allow_runtime_adapters:  # one vLLM serves all; an adapter would come to one replica
        return 1
    return gpus if fits_one_gpu(weights, memory) else 1


def _replicas(options: Options, gpus: int) -> int:
    memory = min((gpu.memory_total for gpu in host.gpus()), default=0)
    weights = float("inf") if options.allow_remote_files else inspect(Path(options.weights)).tensor_bytes
    return replica_count(options, gpus=gpus, memory=memory, weights=weights)
