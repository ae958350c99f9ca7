"""One process per GPU: starts them, passes SIGTERM on to each, and ends with what the job as a whole came to.

The processes find each other through RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as with torchrun
(torch.distributed, "environment variable initialization"). torchrun itself is not used: it kills processes 30 seconds
after a SIGTERM, which a checkpoint may need longer for, and loses their exit codes.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kaito_tuning.process import killed
from kaito_tuning.process.stop import StopRequest

PROCESSES = "PROCESSES"
TERMINATION_LOG = "TERMINATION_LOG"
SHARED_FOLDER = "SHARED_FOLDER"
GRACE_SECONDS = 30.0
"""For the others to end after one has: they may be writing the same checkpoint, or wait for the lost one forever."""
_POLL_SECONDS = 0.2


def processes(environment: Mapping[str, str], *, gpus: Callable[[], int]) -> int:
    """How many to start: PROCESSES, else one per GPU, else one. Raises ValueError for what is no number."""
    given = environment.get(PROCESSES, "")
    if not given:
        return max(1, gpus())
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{PROCESSES} must be the number of processes to train with, 1 or more, got {given!r}")
    return int(given)


def is_worker(environment: Mapping[str, str]) -> bool:
    """Whether this process was started by another's ``run``."""
    return "RANK" in environment


def environments(environment: Mapping[str, str], count: int, *, port: int, folder: Path) -> list[dict[str, str]]:
    """Each process's own. ``folder`` takes the sentence that each ends with, and what they share."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return [
        {
            "OMP_NUM_THREADS": threads,
            **environment,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            TERMINATION_LOG: str(folder / f"termination-{rank}"),
            SHARED_FOLDER: str(folder),
        }
        for rank in range(count)
    ]


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]], stop: StopRequest) -> tuple[int, int]:
    """Runs one process per environment; returns the job's exit code and the rank that it comes from.

    That of the first process that failed; the others, which would wait for it, are ended. ``stop`` must be deferred.
    """
    for environment in environments:
        Path(environment[TERMINATION_LOG]).touch()
    running = {
        rank: subprocess.Popen(command, env=dict(environment), stdout=sys.stdout, stderr=sys.stderr)
        for rank, environment in enumerate(environments)
    }
    failed: tuple[int, int] | None = None
    told = False
    deadline = float("inf")
    try:
        while running:
            if stop.asked and not told:
                told = True
                for process in running.values():
                    process.terminate()
            for rank, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[rank]
                if code and failed is None:
                    failed = (code if code > 0 else 128 - code, rank)
                    deadline = time.monotonic() + GRACE_SECONDS
                    for other in () if told else running.values():
                        other.terminate()
            if time.monotonic() > deadline:
                for process in running.values():
                    process.kill()
            time.sleep(_POLL_SECONDS)
    finally:
        for process in running.values():
            process.kill()
    return failed or (0, 0)


def sentence(code: int, rank: int, environments: Sequence[Mapping[str, str]]) -> str:
    """What a job ends with whose process ``rank`` ended with this code: its own words, or that it was killed."""
    said = Path(environments[rank][TERMINATION_LOG]).read_text()
    if said or code != 128 + signal.SIGKILL:
        return said
    return f"TrainingFailed: process {rank} was killed without a word; where that is for memory, {killed.WAY_OUT}"


def free_port() -> int:
    """A TCP port of this machine that nobody listens on, below those of outgoing connections: it stays free."""
    while True:
        port = 20000 + secrets.randbelow(9000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port
