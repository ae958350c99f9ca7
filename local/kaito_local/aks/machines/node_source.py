"""The configuration key ``nodes``: where real nodes come from (``machines: nodes``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaito_local.aks.machines.machines import Machines
from kaito_local.aks.settings import build


@dataclass(frozen=True, slots=True)
class Nodes:
    """The fields of `kaito_local.nodes.node.NodeSource` and the cluster's folder.

    ``programs``: paths of kubelet and kube-proxy.
    """

    cluster_directory: Path
    programs: Mapping[str, str]
    mirror: str
    mirrored: tuple[str, ...] = ()
    plain_http: tuple[str, ...] = ()
    golden: Path | None = None
    sandbox_image: str = "registry.k8s.io/pause:3.10"
    memory_gib: int | None = 220


def node_machines(configuration: Mapping[str, Any]) -> Machines:
    """Machines that boot nodes of a local cluster. Raises UsageError, StartError."""
    # Only who wants real nodes loads what they need.
    from kaito_local.aks.machines.node_machines import NodeMachines
    from kaito_local.nodes.node import NodeSource

    nodes: Nodes = build(Nodes, configuration, where="nodes")
    source = NodeSource(
        programs={name: Path(path) for name, path in nodes.programs.items()},
        mirror=nodes.mirror,
        mirrored=nodes.mirrored,
        plain_http=nodes.plain_http,
        golden=nodes.golden,
        sandbox_image=nodes.sandbox_image,
    )
    return NodeMachines(nodes.cluster_directory, source=source, memory_gib=nodes.memory_gib)
