"""A cluster of real nodes without the `kaito` command: control plane, mirror registry, two tiny images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.eventually import eventually

from kaito_local.cluster import dns
from kaito_local.cluster.controlplane import ControlPlane, Ports, Settings
from kaito_local.cluster.registry import Registry
from kaito_local.images.oci import LAYER_TYPE, Layout
from kaito_local.images.product import COREDNS_IMAGE
from kaito_local.machine.supervisor import Program
from kaito_local.nodes.cluster import Cluster, reserve_network
from kaito_local.nodes.node import SYSTEM_NODE_INDEX, Node, NodeSource, NodeSpec

ROOT = Path(__file__).parents[2]
PAUSE = "registry.k8s.io/pause:3.10"
# CoreDNS is a web server too: its plugin `health` answers OK on a port of its own.
WEB_PORT = 8080


@dataclass(frozen=True)
class NodeCluster:
    """A running cluster; nodes are made from `source`."""

    cluster: Cluster
    plane: ControlPlane
    source: NodeSource

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.plane.kubectl(*arguments, input=stdin)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def exists(self, *arguments: str) -> bool:
        return bool(self.kubectl("get", *arguments, "--ignore-not-found", "-o", "name").strip())

    def add_node(self, name: str, **more: Any) -> Node:
        labels = {"agentpool": name, **more.pop("labels", {})}
        spec = NodeSpec(name=name, provider_id=f"azure:///test/{name}", labels=labels, **more)
        node = Node.add(self.cluster, spec, source=self.source)
        node.wait_ready(seconds=60)
        return node

    def add_system_node(self) -> Node:
        spec = NodeSpec(name="system", provider_id="azure:///test/system", labels={"agentpool": "system"})
        node = Node.add(self.cluster, spec, source=self.source, index=SYSTEM_NODE_INDEX)
        node.wait_ready(seconds=60)
        self.kubectl("apply", "-f", "-", stdin=dns.manifests(self.cluster.network))
        self.kubectl("rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=60s")
        return node

    def run_web(self, name: str, *, pool: str, gpus: int = 0, replicas: int = 1) -> str:
        """A web server on the nodes of a pool; its Service's cluster IP, once it is ready."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(_web(name, pool=pool, gpus=gpus, replicas=replicas)))
        self.kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
        return str(self.get("service", name)["spec"]["clusterIP"])


def bring_up(directory: Path, *, programs: Mapping[str, Path]) -> NodeCluster:
    """Starts (or finds) the cluster of this folder and waits for its API server."""
    network = reserve_network(directory)
    settings = Settings(
        address=network.gateway,
        ports=Ports(),
        service_network=network.service_cidr,
        node_grace=10.0,
        eviction_after=5.0,
    )
    plane = ControlPlane(directory, programs=programs, settings=settings, ports=Ports())
    after = {"kube-apiserver": "127.0.0.1:2379"}
    members = [
        Program(child.name, child.command, str(child.log), after=after.get(child.name, f"{network.gateway}:6443"))
        if child.name != "etcd"
        else Program(child.name, child.command, str(child.log))
        for child in plane.children
    ]
    registry = Registry(directory, address=network.gateway)
    members += registry.programs(programs["registry"])
    layout = Layout.open(directory.parent / "images")
    digests = {
        PAUSE: _image(layout, PAUSE, program=programs["pause"]),
        COREDNS_IMAGE: _image(layout, COREDNS_IMAGE, program=programs["coredns"]),
    }
    registry.publish(layout, digests)
    for child in plane.children:
        child.log.parent.mkdir(parents=True, exist_ok=True)
    cluster = Cluster.start(directory, network=network, programs=members)
    eventually(plane.ready, every=0.1)
    source = NodeSource(programs=programs, mirror=f"http://{registry.mirror}", sandbox_image=PAUSE)
    ready = NodeCluster(cluster=cluster, plane=plane, source=source)
    eventually(lambda: ready.exists("serviceaccount", "default"))
    return ready


def _image(layout: Layout, name: str, *, program: Path) -> str:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as content:
            archive.addfile(entry, content)
    layer = layout.add_bytes(packed.getvalue(), media_type=LAYER_TYPE)
    return layout.add_image(name, [layer], config={"Entrypoint": [f"/{program.name}"]}).digest


def _web(name: str, *, pool: str, gpus: int, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    container = {
        "name": "web",
        "image": COREDNS_IMAGE,
        "args": ["-conf", "/web/Corefile"],
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)} if gpus else {}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": WEB_PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "web", "mountPath": "/web"}],
    }
    pod = {
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": {"agentpool": pool},
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "web", "configMap": {"name": name}}],
    }
    corefile = f".:5353 {{\n  errors\n  health :{WEB_PORT}\n}}\n"
    deployment = {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": WEB_PORT}]}
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"Corefile": corefile}},
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": deployment},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service},
        ],
    }
