"""Real servers: `python -m kaito_serving` as a process of its own, with Ray Serve, on the loopback address."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from tests.eventually import PATIENCE, eventually
from tests.tiny_model import tiny_model

READY_WITHIN = 120.0  # seconds; 10 on an idle machine


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to clients."""
    while True:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        return port


@dataclass
class Server:
    """A running server: its process, where it writes and how it is asked."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    seen: set[int] = field(default_factory=set)

    @property
    def termination_message(self) -> str:
        file = self.folder / "termination-log"
        return file.read_text() if file.exists() else ""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def chat(self, body: object, *, timeout: float = 60.0) -> httpx.Response:
        return httpx.post(f"{self.url}/chat", json=body, timeout=timeout)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=PATIENCE)

    def series(self, name: str) -> float:
        """The sum of a Prometheus series over all of its labels."""
        lines = self.get("/metrics/prometheus").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

    def titled(self, title: str) -> list[psutil.Process]:
        """The processes whose command line holds `title`."""
        found = []
        for process in self.processes():
            try:
                if title in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def wait_healthy(self, within: float = READY_WITHIN) -> float:
        """Seconds until the server was healthy."""
        began = time.monotonic()

        def healthy() -> bool:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log[-3000:]}"
            return self.healthy()

        eventually(healthy, timeout=within, every=0.1, what=lambda: f"not healthy in time:\n{self.log[-3000:]}")
        return time.monotonic() - began

    def processes(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        try:
            main = psutil.Process(self.process.pid)
            found = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self.seen |= {process.pid for process in found}
        return found

    def only(self, title: str) -> psutil.Process:
        """The one process whose command line holds `title`; a predecessor that still drains may take its time."""

        def alone() -> psutil.Process | None:
            found = self.titled(title)
            return found[0] if len(found) == 1 else None

        return eventually(alone, what=f"not one process of {title}")


class Gate:
    """A chat template that replicas wait for while they load, until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def open(self) -> None:
        """Let go whoever waits, and whoever comes later."""
        template = self.path.with_suffix(".jinja")
        template.write_text("{{ messages[0]['content'] }}")
        with self.path.open("w", encoding="utf-8") as gate:
            gate.write(template.read_text())
        template.rename(self.path)


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return tiny_model()


@pytest.fixture(scope="module")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts servers; they and all of their processes are gone afterwards."""
    servers: list[Server] = []

    def start(
        *arguments: str, weights: Path, environment: dict[str, str] | None = None, folder: Path | None = None
    ) -> Server:
        # Ray puts sockets there, whose paths may have 107 bytes: pytest's own folders are too deep.
        folder = folder or Path(tempfile.mkdtemp(prefix="ks-", dir="/tmp"))
        port = free_port()
        command = [sys.executable, "-m", "kaito_serving", "--pretrained_model_name_or_path", str(weights)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--drain_s", "1"]
        command += ["--termination_log", str(folder / "termination-log"), "--adapters_dir", str(folder / "adapters")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "RAY_TMPDIR": str(folder), "HOME": str(folder), **(environment or {})},
            )
        servers.append(Server(process, f"http://127.0.0.1:{port}", folder))
        return servers[-1]

    yield start
    for server in servers:
        left = server.processes()
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        for process in left[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left[1:], timeout=PATIENCE)
        shutil.rmtree(server.folder, ignore_errors=True)
