"""What a machine must have before anything is started on it; each check that fails says so in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaito_local.errors import MissingPrerequisite
from kaito_local.images.build import DEBIAN_PACKAGES
from kaito_local.machine.folders import free_bytes
from kaito_local.machine.memory import available_gib
from kaito_local.machine.progress import Progress

# Program on PATH: the Debian package that brings it. A program that is there already, from whatever source, is used.
NODE_PACKAGES: Mapping[str, str] = {
    **DEBIAN_PACKAGES,
    "ip": "iproute2",
    "containerd": "containerd",
    "runc": "runc",
    "conntrack": "conntrack",
    "socat": "socat",
    "ebtables": "ebtables",
    "ethtool": "ethtool",
    "ipset": "ipset",
    "iptables": "iptables",
    "curl": "curl",
}
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_CNI_PACKAGE = "containernetworking-plugins"
# Debian keeps what root runs in folders that a plain user's PATH, and sudo's on some machines, leaves out.
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_KEPT_UNDER_SUDO = (
    *("HOME", "PATH", "KAITO_HOME", "XDG_CACHE_HOME", "KAITO_WHEELS", "TORCH_INDEX", "KUBEBUILDER_ASSETS"),
    *("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE", "GOPROXY", "GOSUMDB", "GOTOOLCHAIN", "GOCACHE", "GOMODCACHE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)

MEMORY_GIB = 4.0
# What is still to be made needs so much, at its peak (docs/benchmarks.md).
DISK_GIB_PROGRAMS = 5.0
DISK_GIB_IMAGES = 7.0
DISK_GIB_CUDA = 15.0
DISK_GIB_STATE = 1.0


def become_root(arguments: Sequence[str]) -> None:
    """Returns as root; otherwise replaces this process by itself under sudo, where that asks nothing.

    Raises MissingPrerequisite where it would ask.
    """
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None or subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode != 0:
        raise MissingPrerequisite(
            "nodes need root: run it with sudo -E (without nodes it needs none: kaito up --control-plane-only)"
        )
    kept = ",".join(_KEPT_UNDER_SUDO)
    os.execv(sudo, [sudo, "-n", f"--preserve-env={kept}", sys.executable, "-m", "kaito_local.commands", *arguments])


def complete_path() -> None:
    """Makes the system's own folders part of PATH, for this process and those that it starts."""
    parts = os.environ.get("PATH", "").split(":")
    os.environ["PATH"] = ":".join([*filter(None, parts), *(p for p in _SYSTEM_PATH.split(":") if p not in parts)])


def require_packages(installer: Path, *, progress: Progress) -> None:
    """Installs Debian packages of which a program is missing; raises MissingPrerequisite where that fails."""
    missing = sorted({package for program, package in NODE_PACKAGES.items() if shutil.which(program) is None})
    if not any((folder / "bridge").exists() for folder in _CNI_FOLDERS):
        missing.append(_CNI_PACKAGE)
    if not missing:
        return
    with progress.step("installing Debian packages") as step:
        step.at(0, detail=" ".join(missing))
        # apt puts a terminal that is its standard input into raw mode, in which nothing else can be shown.
        done = subprocess.run(
            [installer, *missing], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MissingPrerequisite(f"cannot install the packages {' '.join(missing)}: {said}")


def require_memory(*, gib: float = MEMORY_GIB, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Raises MissingPrerequisite when less memory than ``gib`` is free."""
    available = available_gib(meminfo)
    if available < gib:
        raise MissingPrerequisite(
            f"a cluster with a model needs {gib:.0f} GiB of free memory, this machine has {available:.1f}; "
            "stop something else first"
        )


def require_disk(folder: Path, *, gib: float) -> float:
    """The GiB that the file system of ``folder`` has left; raises MissingPrerequisite for less than ``gib``."""
    free = free_bytes(folder) / 2**30
    if free < gib:
        raise MissingPrerequisite(
            f"{folder} needs {gib:.0f} GiB of free disk, its file system has {free:.1f}; make room there"
        )
    return free
