"""Programs that need not be built because this machine has them.

``KUBEBUILDER_ASSETS`` (the convention of controller-runtime's envtest) names a folder whose etcd, kube-apiserver and
kubectl are taken as they are: it is the user's explicit wish. What ``PATH`` has is taken if it is exactly the pinned
version: components of a cluster are tested with one another in one version, and a patch release already changes what
the tests see. CoreDNS and the registry are never taken from ``PATH``: ours lack what we do not use, and CoreDNS goes
into an image and must be static.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from kaito_local.machine.folders import cache_folder

_ENVTEST_PROGRAMS = frozenset({"etcd", "kube-apiserver", "kubectl"})
_VERSION_ARGUMENTS = {
    "etcd": ("--version",),
    "kube-apiserver": ("--version",),
    "kube-controller-manager": ("--version",),
    "kube-scheduler": ("--version",),
    "kube-proxy": ("--version",),
    "kubelet": ("--version",),
    "kubectl": ("version", "--client"),
    "helm": ("version", "--template", "{{.Version}}"),
    "ct": ("version",),
    "kubeconform": ("-v",),
    "kwok": ("--version",),
}


def envtest_binary(name: str) -> Path | None:
    """The program of this name in ``KUBEBUILDER_ASSETS``."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder or name not in _ENVTEST_PROGRAMS:
        return None
    path = Path(folder) / name
    return path if os.access(path, os.X_OK) else None


def on_path(name: str, version: str, *, within: float = 5.0) -> Path | None:
    """The program of this name on ``PATH`` if it says, ``within`` seconds, that it is of ``version`` (v1.34.4)."""
    found = shutil.which(name) if name in _VERSION_ARGUMENTS else None
    # `kaito env` puts a folder on PATH whose links lead to programs that were built here, perhaps for another version.
    if found is None or Path(found).resolve().is_relative_to(cache_folder().resolve()):
        return None
    try:
        answer = subprocess.run(
            [found, *_VERSION_ARGUMENTS[name]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r"(?<![\w.])v?(\d+\.\d+\.\d+[^\s\"',;]*)", answer.stdout)
    if answer.returncode != 0 or said is None or said[1] != version.removeprefix("v"):
        return None
    return Path(found).absolute()
