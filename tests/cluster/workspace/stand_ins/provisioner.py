"""A stand-in for the provisioner and the cloud behind it: bare Nodes for claims of either kind."""

from __future__ import annotations

import contextlib
import threading

from tests.cluster.workspace.stand_ins.following import Follower, Later, Obj, condition, let_go

from kaito_hooks.runtime import Client, NotFound, SystemClock, now_rfc3339
from kaito_hooks.workspace.resources import MACHINE, NODE, NODE_CLAIM

STEPS = {
    "Machine": ("MachineLaunched", "MachineRegistered", "MachineInitialized"),
    "NodeClaim": ("Launched", "Registered", "Initialized"),
}
GPUS = {"Standard_NC12s_v3": 2, "Standard_NC48ads_A100_v4": 2}
"""Of instance types that have more than one."""
QUOTA = "ErrCode_InsufficientVCPUQuota: 6 more cores of standardNCSv3Family are needed in westus2"
_RESOURCES = {"Machine": MACHINE, "NodeClaim": NODE_CLAIM}


class Provisioner(Follower):
    """Makes each claim Ready ``delay`` seconds after it was seen, with a bare Node; takes both away again.

    How a claim is treated is written in its label ``test/provisioner``, which a Workspace's labelSelector puts there:
    ``prompt`` (default), ``deaf``, ``quota`` or ``no-gpu``.

    ``labelled``: Nodes carry ``accelerator=nvidia``, as AKS's have it from the start. Without ``gives_back`` it makes
    half the requests: no claim has a finalizer, and Nodes stay. ``made``: every claim that ever was, by uid, with the
    Workspace (namespace, name) that it is for. A Node is named after its Workspace and claim.
    """

    def __init__(
        self, client: Client, later: Later, *, delay: float = 0.0, labelled: bool = False, gives_back: bool = True
    ) -> None:
        super().__init__(client, *_RESOURCES.values())
        self._later, self._delay, self._labelled, self._gives_back = later, delay, labelled, gives_back
        self.made: dict[str, tuple[str, str]] = {}
        self._ended: set[str] = set()
        # A claim that is deleted while its Node is being made must not leave it behind.
        self._order = threading.Lock() if gives_back else contextlib.nullcontext()

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            return
        metadata = new["metadata"]
        if metadata.get("deletionTimestamp"):
            if self._gives_back:
                self._later.call(0.0, lambda: self._end(new))
        elif metadata["uid"] not in self.made:
            marks = metadata.get("labels") or {}
            place = marks.get("kaito.sh/workspacenamespace", ""), marks.get("kaito.sh/workspace", "")
            self.made[metadata["uid"]] = place
            self._later.call(self._delay, lambda: self._treat(new))

    def _treat(self, claim: Obj) -> None:
        mode = (claim["metadata"].get("labels") or {}).get("test/provisioner", "prompt")
        if mode == "deaf":
            return
        with self._order:
            if claim["metadata"]["uid"] in self._ended:
                return
            if self._gives_back:
                finalizers = {"metadata": {"finalizers": ["karpenter.sh/termination"]}}
                self.client.patch(_RESOURCES[claim["kind"]], claim["metadata"]["name"], finalizers)
            steps = STEPS[claim["kind"]]
            if mode == "quota":
                self._status(claim, {"conditions": [condition(steps[0], "False", "QuotaExceeded", QUOTA)]})
                return
            node = self._node_name(claim)
            self._boot(node, claim, gpus=mode != "no-gpu")
            done = [condition(step, "True", step) for step in (*steps, "Ready")]
            self._status(claim, {"conditions": done, "nodeName": node, "providerID": f"azure:///{node}"})

    def _end(self, claim: Obj) -> None:
        with self._order:
            self._ended.add(claim["metadata"]["uid"])
            with contextlib.suppress(NotFound):
                self.client.delete(NODE, self._node_name(claim), grace_period_seconds=0)
            let_go(self.client, _RESOURCES[claim["kind"]], claim)

    def _node_name(self, claim: Obj) -> str:
        namespace, owner = self.made.get(claim["metadata"]["uid"], ("", ""))
        return ".".join(part for part in (namespace, owner, claim["metadata"]["name"]) if part)

    def _status(self, claim: Obj, status: Obj) -> None:
        resource = _RESOURCES[claim["kind"]]
        self.client.patch(resource, claim["metadata"]["name"], {"status": status}, subresource="status")

    def _boot(self, name: str, claim: Obj, *, gpus: bool) -> None:
        requirements = {r["key"]: r.get("values") for r in claim["spec"]["requirements"]}
        instance_type = requirements["node.kubernetes.io/instance-type"][0]
        labels = {**claim["metadata"]["labels"], **({"accelerator": "nvidia"} if self._labelled else {})}
        offered = GPUS.get(instance_type, 1) if gpus else 0
        add_node(self.client, name, labels, instance_type=instance_type, gpus=offered)


def add_node(client: Client, name: str, labels: dict[str, str], *, instance_type: str, gpus: int) -> None:
    """A bare Node that is Ready and offers GPUs, as a kubelet would report it."""
    marks = {
        **labels,
        "node.kubernetes.io/instance-type": instance_type,
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    taints = [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}]
    node = {
        "metadata": {"name": name, "labels": marks},
        "spec": {"taints": taints},
        "status": _status(gpus, ready=True),
    }
    client.create(NODE, node)


def add_node_without_gpu(client: Client, name: str) -> None:
    """A bare Node that anything may run on, and that no Workspace asks for."""
    marks = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    client.create(NODE, {"metadata": {"name": name, "labels": marks}, "status": _status(0, ready=True)})


def set_gpus(client: Client, name: str, gpus: int, *, ready: bool = True) -> None:
    """What the node's kubelet reports."""
    client.patch(NODE, name, {"status": _status(gpus, ready=ready)}, subresource="status")


def _status(gpus: int, *, ready: bool) -> Obj:
    room: Obj = {"cpu": "8", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
    said = condition("Ready", "True" if ready else "False", "KubeletReady")
    said["lastHeartbeatTime"] = now_rfc3339(SystemClock())
    return {"capacity": room, "allocatable": room, "conditions": [said]}
