"""Machines that are Node objects and nothing more, for tests of controllers on a control plane without nodes.

Each Node appears as kubelet would register it, then becomes Ready, then has GPUs, and renews its Lease so that the node
controller takes it for alive. What is still to happen lies in an annotation on the Node: a new process goes on with it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from kaito_local.aks.clock import Agenda, Clock, format_time
from kaito_local.aks.machines.machines import MachineSpec
from kaito_local.errors import StartError

_log = logging.getLogger(__name__)
_PLAN = "kaito.local/plan"
_LEASES = "kube-node-lease"
_HEARTBEAT_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_TIMEOUT = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """When a Node changes, in seconds since 1970 of the cloud's clock; None = never."""

    pool: str
    gpus: int
    ready_at: float | None
    gpu_at: float
    not_ready_at: float | None


class BareNodes:
    """`Machines` over the API server of ``kubeconfig``; ``ready_delay`` is the time from start to Ready."""

    def __init__(self, kubeconfig: Path, *, clock: Clock, agenda: Agenda, ready_delay: float = 0.5) -> None:
        api = config.new_client_from_config(str(kubeconfig))
        self._core = client.CoreV1Api(api)
        self._leases = client.CoordinationV1Api(api)
        self._clock = clock
        self._agenda = agenda
        self._ready_delay = ready_delay
        self._lock = threading.Lock()
        self._alive: set[str] = set()
        self._plans: dict[str, _Plan] = {}
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="node heartbeats", daemon=True)
        self._resume()
        self._heart.start()

    def start(self, spec: MachineSpec) -> None:
        """Registers the Node. Raises ApiException or a connection's error.

        A Node that is being deleted is taken over as kubelet does it: the machine works, and has no Node once whoever
        holds that one lets go.
        """
        plan = self._plan(spec)
        try:
            self._core.create_node(_node(spec, plan), _request_timeout=_TIMEOUT)
        except ApiException as error:
            if error.status != 409:
                raise
            found = self._find(spec.node_name)
            if found is None or found.metadata.deletion_timestamp is None:
                return
        if not spec.ready:
            self._set_ready(spec.node_name, False)
        self._follow(spec.node_name, plan)

    def remove(self, pool: str, node_name: str) -> None:
        """Cordons and deletes the Node. Raises ApiException or a connection's error."""
        cordoned = {"spec": {"unschedulable": True}}
        _ignoring_absence(partial(self._core.patch_node, node_name, cordoned, _request_timeout=_TIMEOUT))
        self._delete(node_name)

    def reimage(self, spec: MachineSpec) -> None:
        """The Node loses Ready and its GPUs, then gets them again. Raises ApiException or a connection's error."""
        self._forget(spec.node_name)
        if self._find(spec.node_name) is None:
            self.start(spec)
            return
        plan = self._plan(spec)
        noted = {"metadata": {"annotations": {_PLAN: json.dumps(dataclasses.asdict(plan))}}}
        self._core.patch_node(spec.node_name, noted, _request_timeout=_TIMEOUT)
        self._set_ready(spec.node_name, False)
        if spec.gpu_count:
            self._set_gpus(spec.node_name, 0)
        self._follow(spec.node_name, plan)

    def relabel(self, node_name: str, labels: Mapping[str, str | None]) -> None:
        """Patches the Node. Raises ApiException or a connection's error."""
        body = {"metadata": {"labels": dict(labels)}}
        _ignoring_absence(partial(self._core.patch_node, node_name, body, _request_timeout=_TIMEOUT))

    def stop(self, pool: str) -> None:
        """Deletes the pool's Nodes. Raises ApiException or a connection's error."""
        nodes = self._core.list_node(label_selector=f"agentpool={pool}", _request_timeout=_TIMEOUT)
        for node in nodes.items:
            if _PLAN in (node.metadata.annotations or {}):
                self._delete(node.metadata.name)

    def close(self) -> None:
        """Ends the heartbeats; the Nodes stay and will be taken for dead."""
        self._closed.set()

    def kill(self, node: str) -> None:
        """The machine dies without a word: its Node turns NotReady at once and stays."""
        self._forget(node)
        self._set_ready(node, False)

    def _plan(self, spec: MachineSpec) -> _Plan:
        now = self._clock.now()
        return _Plan(
            pool=spec.pool,
            gpus=spec.gpu_count,
            ready_at=now + self._ready_delay if spec.ready else None,
            gpu_at=now + self._ready_delay + spec.gpu_delay_seconds,
            not_ready_at=None if spec.not_ready_after_seconds is None else now + spec.not_ready_after_seconds,
        )

    def _find(self, name: str) -> Any:
        """The Node; None if it does not exist."""
        try:
            return self._core.read_node(name, _request_timeout=_TIMEOUT)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _delete(self, name: str) -> None:
        self._forget(name)
        _ignoring_absence(partial(self._core.delete_node, name, _request_timeout=_TIMEOUT))
        _ignoring_absence(partial(self._leases.delete_namespaced_lease, name, _LEASES, _request_timeout=_TIMEOUT))

    def _forget(self, name: str) -> None:
        """The machine is off: no heartbeats, and nothing of what was planned for it happens."""
        with self._lock:
            self._alive.discard(name)
            self._plans.pop(name, None)

    def _resume(self) -> None:
        try:
            nodes = self._core.list_node(label_selector="agentpool", _request_timeout=_TIMEOUT).items
        except Exception as error:
            raise StartError(f"the emulator cannot list the cluster's nodes: {error}") from error
        for node in nodes:
            plan = (node.metadata.annotations or {}).get(_PLAN)
            if plan and node.metadata.deletion_timestamp is None:
                self._follow(node.metadata.name, _Plan(**json.loads(plan)))

    def _follow(self, name: str, plan: _Plan) -> None:
        def at(due: float, change: Callable[[], None]) -> None:
            self._agenda.at(due, lambda _: self._apply(name, plan, change))

        with self._lock:
            self._plans[name] = plan
        if plan.ready_at is not None:
            with self._lock:
                self._alive.add(name)
            at(plan.ready_at, lambda: self._set_ready(name, True))
        if plan.gpus:
            at(plan.gpu_at, lambda: self._set_gpus(name, plan.gpus))
        if plan.not_ready_at is not None:
            at(plan.not_ready_at, lambda: self.kill(name))

    def _apply(self, name: str, plan: _Plan, change: Callable[[], None]) -> None:
        """Makes a change that is still planned; a Node that is gone needs none, an API server that is away is asked
        again.
        """
        with self._lock:
            if self._plans.get(name) is not plan:
                return
        try:
            _ignoring_absence(change)
        except Exception as error:
            _log.warning("cannot change a node, trying again: %s", error)
            if not self._closed.is_set():
                timer = threading.Timer(_RETRY_SECONDS, self._apply, (name, plan, change))
                timer.daemon = True
                timer.start()

    def _set_ready(self, name: str, ready: bool) -> None:
        now = _real_time()
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "KubeletReady" if ready else "KubeletNotReady",
            "message": "kubelet is posting ready status" if ready else "kubelet stopped",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        self._core.patch_node_status(name, {"status": {"conditions": [condition]}}, _request_timeout=_TIMEOUT)

    def _set_gpus(self, name: str, count: int) -> None:
        amount = {"nvidia.com/gpu": str(count)}
        body = {"status": {"capacity": amount, "allocatable": amount}}
        self._core.patch_node_status(name, body, _request_timeout=_TIMEOUT)

    def _beat(self) -> None:
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            with self._lock:
                names = sorted(self._alive)
            for name in names:
                try:
                    self._renew(name)
                except Exception as error:
                    _log.warning("cannot renew the lease of node %s: %s", name, error)

    def _renew(self, name: str) -> None:
        now = _real_time()
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}
        try:
            self._leases.patch_namespaced_lease(name, _LEASES, {"spec": spec}, _request_timeout=_TIMEOUT)
        except ApiException as error:
            if error.status != 404:
                raise
            body = {"metadata": {"name": name, "namespace": _LEASES}, "spec": spec}
            self._leases.create_namespaced_lease(_LEASES, body, _request_timeout=_TIMEOUT)


def _node(spec: MachineSpec, plan: _Plan) -> dict[str, Any]:
    now = _real_time()
    resources = {"cpu": "6", "memory": "112Gi", "ephemeral-storage": "125Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": spec.node_name,
            "labels": {
                **spec.labels,
                "node.kubernetes.io/instance-type": spec.vm_size,
                "kubernetes.io/hostname": spec.node_name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
            "annotations": {_PLAN: json.dumps(dataclasses.asdict(plan))},
        },
        "spec": {
            **({"providerID": spec.provider_id} if spec.provider_id else {}),
            "taints": [_taint(taint) for taint in spec.taints],
        },
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "nodeInfo": {
                "architecture": "amd64",
                "operatingSystem": "linux",
                "kubeletVersion": "v1.34.4",
                "kubeProxyVersion": "",
                "containerRuntimeVersion": "none://0",
                "osImage": "none",
                "kernelVersion": "none",
                "machineID": spec.node_name,
                "systemUUID": spec.node_name,
                "bootID": spec.node_name,
            },
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "KubeletNotReady",
                    "message": "kubelet is starting",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
            ],
        },
    }


def _taint(text: str) -> dict[str, str]:
    pair, _, effect = text.rpartition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "value": value, "effect": effect} if value else {"key": key, "effect": effect}


def _real_time() -> str:
    """The API server's idea of now: Nodes live by the real clock."""
    return format_time(datetime.now(UTC).timestamp())


def _ignoring_absence(change: Callable[[], Any]) -> None:
    try:
        change()
    except ApiException as error:
        if error.status != 404:
            raise
