"""`kaito env`: shell lines for eval."""

from __future__ import annotations

import argparse
import shlex

from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.cluster.state import State
from kaito_local.errors import UsageError


def run(options: argparse.Namespace, cluster: LocalCluster, given: list[str]) -> int:
    """Prints `export` lines; raises UsageError for a cluster that was never up."""
    print(shell_lines(cluster), end="")
    return 0


def shell_lines(cluster: LocalCluster) -> str:
    """KUBECONFIG; kubectl, helm and kaito first on PATH; addresses and credentials, as a POSIX shell reads them."""
    if State.load(cluster.directory) is None or not cluster.kubeconfig.exists():
        raise UsageError(f"there is no cluster {cluster.name}; start it with: kaito up --name {cluster.name}")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in cluster.environment().items()]
    folder = shlex.quote(str(cluster.directory / "bin"))
    # Once only, however often it is evaluated.
    lines.append(f'case ":$PATH:" in *:{folder}:*) ;; *) PATH={folder}:"$PATH" ;; esac')
    lines.append('export PATH="$PATH"')
    return "\n".join(lines) + "\n"
