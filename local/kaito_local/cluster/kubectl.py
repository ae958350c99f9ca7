"""kubectl and helm as a cluster's users run them: the folder for PATH, what they need to know, what kubectl prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from kaito_local.errors import CommandError
from kaito_local.nodes.cluster import recorded_network

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


def run_kubectl(
    program: Path, *arguments: str, environment: Mapping[str, str], input: str | None = None, timeout: float
) -> str:
    """What kubectl prints; raises CommandError with what it says on stderr."""
    try:
        done = subprocess.run(
            [program, *arguments],
            env=os.environ | environment,
            input=input,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise CommandError(f"kubectl {' '.join(arguments)} is not done after {timeout:.0f} s") from None
    if done.returncode != 0:
        raise CommandError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def kubectl_environment(directory: Path) -> dict[str, str]:
    """What kubectl and helm need to know of the cluster in ``directory``, where their caches lie, too."""
    variables = {"KUBECONFIG": str(directory / "kubeconfig"), "KUBECACHEDIR": str(directory / "kubectl-cache")}
    if any(os.environ.get(name) for name in _PROXIES):
        with suppress(FileNotFoundError):
            variables |= recorded_network(directory).without_proxy(os.environ)
    return variables


def link_programs(folder: Path, programs: Mapping[str, Path]) -> None:
    """kubectl, helm and `kaito` itself, which may lie in a virtual environment, in one folder, for PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: programs[name] for name in ("kubectl", "helm") if name in programs}
    for name, program in {**wanted, "kaito": Path(sys.executable).parent / "kaito"}.items():
        partial = folder / f".{name}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(program)
        partial.rename(folder / name)
