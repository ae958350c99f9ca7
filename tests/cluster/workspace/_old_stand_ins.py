"""Stand-ins for what this room's tests do not bring: a provisioner with bare Nodes, and kubelets.

They act on the API server as the real ones would. How the provisioner treats a claim is written in the claim's label
``test/provisioner``, which a Workspace's labelSelector puts there: ``prompt`` (default), ``deaf``, ``quota``,
``no-gpu``, ``slow``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from kaito_hooks.runtime import ApiError, Client, NotFound, SystemClock, now_rfc3339
from kaito_hooks.workspace.resources import MACHINE, NODE, NODE_CLAIM, POD

Obj = dict[str, Any]
logger = logging.getLogger(__name__)
STEPS = {
    "Machine": ("MachineLaunched", "MachineRegistered", "MachineInitialized"),
    "NodeClaim": ("Launched", "Registered", "Initialized"),
}
GPUS = {"Standard_NC12s_v3": 2}
"""Of instance types that have more than one."""
QUOTA = "ErrCode_InsufficientVCPUQuota: 6 more cores of standardNCSv3Family are needed in westus2"


def condition(kind: str, status: str, reason: str, message: str = "") -> Obj:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": now_rfc3339(SystemClock()),
    }


class StandIn:
    """A thread that looks at everything again and again; ends with its ``with`` block."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):  # type: ignore[no-untyped-def]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                self.look()
            except ApiError as error:
                logger.debug("%s: %s", type(self).__name__, error)

    def look(self) -> None:
        raise NotImplementedError


class Provisioner(StandIn):
    """Makes claims Ready and bare Nodes appear; takes both away again."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.created: list[str] = []

    def look(self) -> None:
        for resource in (MACHINE, NODE_CLAIM):
            try:
                claims = self.client.list(resource).items
            except NotFound:
                continue
            for claim in claims:
                try:
                    self._treat(resource, claim)
                except ApiError as error:
                    logger.debug("%s", error)

    def _treat(self, resource: Any, claim: Obj) -> None:
        name, marks = claim["metadata"]["name"], claim["metadata"].get("labels") or {}
        mode = marks.get("test/provisioner", "prompt")
        node = f"node-{name}"
        if claim["metadata"].get("deletionTimestamp"):
            with contextlib.suppress(NotFound):
                self.client.delete(NODE, node, grace_period_seconds=0)
            self.client.patch(resource, name, {"metadata": {"finalizers": None}})
            return
        if mode in ("deaf", "slow"):
            return
        if not claim["metadata"].get("finalizers"):
            self.created.append(claim["metadata"]["uid"])
            self.client.patch(resource, name, {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
        if mode == "quota":
            self._status(resource, claim, condition(STEPS[claim["kind"]][0], "False", "QuotaExceeded", QUOTA))
            return
        if not any(c["type"] == "Ready" for c in (claim.get("status") or {}).get("conditions") or ()):
            self.boot(node, claim, gpus=mode != "no-gpu")
            done = [condition(step, "True", step) for step in (*STEPS[claim["kind"]], "Ready")]
            self._status(resource, claim, *done, node=node)

    def _status(self, resource: Any, claim: Obj, *conditions: Obj, node: str = "") -> None:
        have = (claim.get("status") or {}).get("conditions") or []
        if [c["type"] for c in have] == [c["type"] for c in conditions]:
            return
        status: Obj = {"conditions": list(conditions)}
        if node:
            status |= {"nodeName": node, "providerID": f"azure:///{node}"}
        self.client.patch(resource, claim["metadata"]["name"], {"status": status}, subresource="status")

    def boot(self, name: str, claim: Obj, *, gpus: bool) -> None:
        requirements = {r["key"]: r.get("values") for r in claim["spec"]["requirements"]}
        instance_type = requirements["node.kubernetes.io/instance-type"][0]
        offered = GPUS.get(instance_type, 1) if gpus else 0
        add_node(self.client, name, claim["metadata"]["labels"], instance_type=instance_type, gpus=offered)


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
    client.create(NODE, {"metadata": {"name": name, "labels": marks}, "spec": {"taints": taints}})
    set_gpus(client, name, gpus)


def set_gpus(client: Client, name: str, gpus: int, *, ready: bool = True) -> None:
    """What the node's kubelet reports."""
    room: Obj = {"cpu": "8", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
    status = {
        "capacity": room,
        "allocatable": room,
        "conditions": [
            {
                **condition("Ready", "True" if ready else "False", "KubeletReady"),
                "lastHeartbeatTime": now_rfc3339(SystemClock()),
            }
        ],
    }
    client.patch(NODE, name, {"status": status}, subresource="status")


class Kubelet(StandIn):
    """Reports states of Pods that are scheduled: by default Ready; tests hand in other states by namespace."""

    def __init__(self, client: Client) -> None:
        super().__init__(client)
        self.states: dict[str, Callable[[Obj], Obj]] = {}

    def look(self) -> None:
        for pod in self.client.list(POD).items:
            metadata = pod["metadata"]
            if metadata.get("deletionTimestamp"):
                self._remove(pod)
                continue
            if not (pod.get("spec") or {}).get("nodeName"):
                continue
            if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                continue
            state = self.states.get(metadata["namespace"], running)(pod)
            if state and not _has(pod.get("status") or {}, state):
                self.client.patch(
                    POD, metadata["name"], {"status": state}, namespace=metadata["namespace"], subresource="status"
                )

    def _remove(self, pod: Obj) -> None:
        metadata = pod["metadata"]
        with contextlib.suppress(NotFound):
            self.client.delete(POD, metadata["name"], namespace=metadata["namespace"], grace_period_seconds=0)


def running(pod: Obj) -> Obj:
    """All containers run and the Pod is Ready."""
    return {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True"},
            {"type": "ContainersReady", "status": "True"},
        ],
    }


def failing_weights(message: str) -> Callable[[Obj], Obj]:
    """The init container ``weights`` ended with that sentence and is waiting to be restarted."""

    def state(pod: Obj) -> Obj:
        return {
            "phase": "Pending",
            "initContainerStatuses": [
                {
                    "name": "weights",
                    "image": "kaito-hooks",
                    "imageID": "",
                    "ready": False,
                    "restartCount": 2,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
                    "lastState": {"terminated": {"exitCode": 2, "reason": "Error", "message": message}},
                }
            ],
        }

    return state


JOB_STEPS = ("check", "weights", "data", "tune", "push")


def at_step(step: str, state: Obj, *, ip: str = "127.0.0.1") -> Callable[[Obj], Obj]:
    """A tuning Job's Pod with that step in that state, those before it done; other Pods are Ready."""

    def of(name: str) -> Obj:
        if name == step:
            found = state
        elif JOB_STEPS.index(name) < JOB_STEPS.index(step):
            found = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        else:
            found = {"waiting": {"reason": "PodInitializing"}}
        return {"name": name, "image": name, "imageID": "", "ready": False, "restartCount": 0, "state": found}

    def report(pod: Obj) -> Obj:
        if not any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences") or ()):
            return running(pod)
        statuses = [of(name) for name in JOB_STEPS]
        done = step == "push" and (state.get("terminated") or {}).get("exitCode") == 0
        return {
            "phase": "Succeeded" if done else "Running" if step == "push" else "Pending",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "initContainerStatuses": statuses[:-1],
            "containerStatuses": statuses[-1:],
        }

    return report


def _has(status: Obj, state: Obj) -> bool:
    kinds = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    wanted = {c["type"]: c["status"] for c in state.get("conditions") or ()}
    return (
        status.get("phase") == state.get("phase")
        and wanted.items() <= kinds.items()
        and _stages(status) == _stages(state)
    )


def _stages(status: Obj) -> list[tuple[str, list[str]]]:
    """Every container with the kind of state that it is in."""
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return [(c["name"], sorted(c.get("state") or {})) for c in found]
