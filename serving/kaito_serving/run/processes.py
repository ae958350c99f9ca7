"""The processes below this one: adopted when their parent dies, collected when they end, killed at the end."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Container
from contextlib import suppress

import psutil

from kaito_serving.engine.vllm.flags import CHILD_MARK


def adopt_orphans() -> None:
    """Have processes whose parent dies become children of this one, as they do in a container, so that none is lost.

    prctl(2), PR_SET_CHILD_SUBREAPER = 36.
    """
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def collect_orphans(*, but: Container[int]) -> None:
    """Collect children that have ended; those with the process ids `but` are collected by whoever started them.

    A vLLM whose replica has died is ended: the next one needs its GPUs.
    """
    for child in psutil.Process().children():
        if child.pid in but:
            continue
        if not alive(child):
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)
        elif _belongs_to_vllm(child):
            with suppress(psutil.NoSuchProcess):
                child.kill()


def _belongs_to_vllm(process: psutil.Process) -> bool:
    try:
        return CHILD_MARK in process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def alive(process: psutil.Process) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_below() -> None:
    """Kill whatever is left below this process."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=5.0)
