"""The life of the server: checks, a Ray of its own, the deployment, waiting, and an orderly end.

One Ray per Pod: nothing outside can reach or lose it. It is started on the loopback address with token authentication
and a token that only this process tree knows, without dashboard and usage reports. Ray Serve replaces a dead replica
or proxy by itself; when Ray's own processes (gcs_server, raylet) die, this process ends with 1 and the kubelet starts
the container again. That end is a thread's: whatever the main thread asks of a dead Ray, its exit handlers included,
may take minutes to return.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

import psutil

from kaito_serving.engine.vllm.flags import CHILD_MARK
from kaito_serving.errors import ServerFailed, StartupError
from kaito_serving.model.folder import fits_one_gpu, inspect
from kaito_serving.options import Options
from kaito_serving.run import host
from kaito_serving.run.startup import read

_LOG = logging.getLogger(__name__)

APPLICATION = "kaito"
_OBJECT_STORE = 80 * 1024 * 1024  # bytes, Ray's minimum is 75 MiB; Serve keeps nothing large there
_MOST_DEATHS = 2  # of a replica while it loads, before the start counts as failed
_KEEP_ALIVE = 75  # seconds; load balancers give idle connections up after 60, and must be the first to do so
_RAY_STARTS = 3
_LOOK_EVERY = 0.5  # seconds
_ASK_SERVE = 20  # looks; Serve itself says when replicas cannot be placed at all


def environment(given: Mapping[str, str], *, drain: float, longest: float) -> dict[str, str]:
    """What must stand in the environment before Ray is imported; values that the user has set win.

    `drain` is how long a part that ends still takes requests, `longest` how long an answer may take; seconds.
    """
    base = given.get("RAY_TMPDIR", "/tmp")
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": base,
        "RAY_worker_niceness": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{base}/ha/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{base}/ha/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{base}/ha",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{base}/ha/server-state",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": f"{math.ceil(drain + longest)}",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": f"{drain:g}",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{drain:g}",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    # HAProxy's folder has a short name: Serve adds 56 characters, and the path of a socket may have 97.
    result = {name: given.get(name, value) for name, value in wanted.items()}
    if result["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in given:
        result["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return result


def check_folders(options: Options) -> None:
    """What can be found wrong in a second, before Ray starts; StartupError with a sentence."""
    if not options.allow_remote_files:
        inspect(Path(options.weights))


def run(options: Options, *, die: Callable[[str], object]) -> None:
    """Serve until SIGTERM or SIGINT; raises StartupError or ServerFailed when it ends otherwise.

    ``die`` ends this process with a sentence at once; a thread calls it when Ray itself has died.
    """
    over = threading.Event()
    # A handler may interrupt this thread while it holds an Event's lock; a SimpleQueue bears that.
    asked: SimpleQueue[int] = SimpleQueue()
    reasons: list[str] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        reasons.append(signal.Signals(number).name)
        asked.put(number)

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    listen()
    check_folders(options)
    _adopt_orphans()
    os.environ.update(environment(os.environ, drain=options.drain_s, longest=options.request_timeout_s))
    if options.allow_remote_files:
        os.environ["HF_HUB_OFFLINE"] = "0"
    import ray
    from ray import serve

    processors = host.processors()
    _start_ray(ray, processors=processors)
    listen()  # ray.init puts its own handlers there
    started = psutil.Process().children()
    vital = [child for child in started if child.name() in ("gcs_server", "raylet")]
    threading.Thread(target=_guard, args=(vital, over, die), name="guard", daemon=True).start()
    deployed = False
    report = Path(os.environ["RAY_TMPDIR"]) / f"kaito-serving-{os.getpid()}"
    try:
        if not reasons:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            replicas = _deploy(serve, options, gpus=gpus, processors=processors, report=report)
            deployed = True
            listen()
            _watch(serve, report, asked, replicas=replicas, started=started)
    finally:
        _LOG.info("Stopping (%s).", ", ".join(reasons) or "failed")
        if deployed and reasons:
            _drain(serve, options.drain_s)
        serve.shutdown()
        over.set()
        ray.shutdown()
        _end_processes()
        shutil.rmtree(report, ignore_errors=True)


def _guard(vital: Sequence[psutil.Process], over: threading.Event, die: Callable[[str], object]) -> None:
    while not over.wait(_LOOK_EVERY):
        dead = [child.name() for child in vital if not _alive(child)]
        if dead and not over.is_set():
            _end_processes()
            die(f"Ray's process {dead[0]} died.")
            return


def _start_ray(ray: Any, *, processors: int) -> None:
    """Start Ray below this process. It gives up after 30 s, which a busy machine may need: it is tried again."""
    for attempt in range(_RAY_STARTS):
        try:
            ray.init(
                address="local",
                namespace=APPLICATION,
                num_cpus=processors + 1,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
                _memory=host.memory_limit(),
            )
            return
        except Exception as error:  # Ray raises bare Exceptions here
            _LOG.debug("Ray did not start", exc_info=True)
            _LOG.warning("Ray did not start (attempt %d of %d): %s", attempt + 1, _RAY_STARTS, error)
            ray.shutdown()
            _end_processes()
    raise ServerFailed("Ray does not start in this container; it may need more processor time or memory.")


def _deploy(serve: Any, options: Options, *, gpus: int, processors: int, report: Path) -> int:
    """Hand the application to Serve, which starts it beside; how many replicas it will have."""
    from ray.exceptions import RayError

    from kaito_serving.run.deployment import application

    replicas = _replicas(options, gpus)
    target = application(
        options,
        replicas=replicas,
        gpus_per_replica=gpus / replicas,
        # One processor is left to HTTP and Ray; Ray sets the number of computing threads by this.
        cpus_per_replica=max(1, (processors - 1) // replicas),
        report=report,
    )
    http = {"host": _listen_on(options.host), "port": options.port, "keep_alive_timeout_s": _KEEP_ALIVE}
    try:
        serve.start(http_options=http, logging_config={"enable_access_log": False})
        serve.run_many(
            [serve.RunTarget(target, name=APPLICATION, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        return replicas
    except (RayError, RuntimeError, TimeoutError) as error:
        _LOG.debug("Ray Serve did not start", exc_info=True)
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ServerFailed(f"Ray Serve did not start on {options.host}:{options.port}: {last[0]}") from error


def _listen_on(host: str) -> str:
    """Serve's HAProxy reaches the replicas at Ray's node address, which is loopback: they must listen there, too."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_loopback:
        return host
    return "::" if address.version == 6 else "0.0.0.0"


def _drain(serve: Any, seconds: float) -> None:
    """Go on answering until clients know that this server ends, then let the running answers finish.

    The proxy keeps connections of an application that is being deleted, but `serve.shutdown` alone cuts them.
    """
    time.sleep(seconds)
    serve.delete(APPLICATION)


def _replicas(options: Options, gpus: int) -> int:
    """One replica per GPU when the weights, and half as much for their cache, fit into one; else one over all."""
    if gpus < 2:
        return 1
    if options.allow_remote_files or options.uses_vllm:  # one vLLM serves all GPUs
        return 1
    memory = [gpu.memory_total for gpu in host.gpus()]
    return gpus if fits_one_gpu(inspect(Path(options.weights)), memory) else 1


def _watch(
    serve: Any, report: Path, asked: SimpleQueue[int], *, replicas: int, started: Sequence[psutil.Process]
) -> None:
    """Returns after a signal; StartupError or ServerFailed when the model cannot be served."""
    ready = False
    looks = 0
    while not _came(asked, within=_LOOK_EVERY):
        _bury_orphans(started)
        told = list(read(report))
        failed = [each.startup for each in told if each.startup.phase == "failed"]
        if failed and (failed[-1].final or not ready):
            raise (StartupError if failed[-1].final else ServerFailed)(failed[-1].reason)
        died = sum(not each.alive and each.startup.phase == "loading" for each in told)
        if died > _MOST_DEATHS * replicas:
            raise ServerFailed("The model's process died several times while it loaded; it may need more memory.")
        looks += 1
        if not ready and looks % _ASK_SERVE == 0:
            application = serve.status().applications.get(APPLICATION)
            if application is not None and application.status == "DEPLOY_FAILED":
                raise ServerFailed(f"Ray Serve cannot start the model: {application.message.strip().splitlines()[-1]}")
        if not ready and sum(each.alive and each.startup.phase == "ready" for each in told) >= replicas:
            ready = True
            _LOG.info("The model answers.")


def _came(asked: SimpleQueue[int], *, within: float) -> bool:
    try:
        asked.get(timeout=within)
    except Empty:
        return False
    return True


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _adopt_orphans() -> None:
    """Have processes whose parent dies become children of this one, as they do in a container, so that none is lost.

    prctl(2), PR_SET_CHILD_SUBREAPER = 36.
    """
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def _bury_orphans(started: Sequence[psutil.Process]) -> None:
    """Collect adopted processes that have ended; those that Ray started here are Ray's to collect.

    A vLLM whose replica has died is ended: the next one needs its GPUs.
    """
    for child in psutil.Process().children():
        if child in started:
            continue
        if _alive(child):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if CHILD_MARK in child.environ():
                    child.kill()
        else:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


def _end_processes() -> None:
    """Kill whatever is left below this process: a proxy whose parent died would hold the port."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=5.0)
