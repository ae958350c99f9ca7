"""The whole Workspace controller over a cluster in memory: a provisioner, kubelets and a scheduler act around it.

Time passes in ``run``; requests to the API server are what it is charged for, besides its reconciles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, cast

from tests.driven.budget import Budget
from tests.driven.cluster import MemoryInformer
from tests.driven.controller import DrivenController
from tests.driven.world import DrivenWorld
from tests.unit.workspace.worlds import CATALOG_OBJECT, node_object, uncounted, workspace_object

from kaito_hooks.api.conditions import find
from kaito_hooks.runtime import Client, Controller, Informer, Key, Obj, Resource, Result, format_time, parse_time
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.observe import Observer
from kaito_hooks.workspace.reconcile import Reconciler
from kaito_hooks.workspace.status.poller import ProgressPoller
from kaito_hooks.workspace.world import World

KEY = Key("models", "phi")
TERMINATION = "karpenter.sh/termination"
AWAITED = "AgentPoolCreating"
"""Why a claim has no node yet that nobody refuses."""
EVICTION = 300.0
"""Seconds that a Pod stays bound to a node that is not Ready."""

START = Budget(reconciles=10, requests=11)
"""Adoption, a revision, a claim, its children and what is said of each step, until the workload is ready."""
LOOK = Budget(reconciles=1, requests=1)
"""Something has changed or is due, and the status says so."""


class RunningWorld(DrivenWorld):
    """``objects``: what is applied at the start.

    A claim becomes a node after ``create_seconds``, unless ``refusals`` has its name: then it says why and is deleted
    at once, as a Karpenter does. A claim that is deleted goes with its node after ``delete_seconds``, and a claim whose
    node was not Ready for ``repair_seconds`` is deleted. ``no_pods``: why the API server refuses Pods. ``purchases``
    and ``vanished``: when which claim was bought, and when which one went that was refused; ``given_back_in_use``: what
    the controller deleted although its node served or was repaired.
    """

    def __init__(
        self,
        *objects: Obj,
        settings: Settings | None = None,
        create_seconds: float = 180.0,
        delete_seconds: float = 60.0,
        repair_seconds: float = 600.0,
    ) -> None:
        super().__init__()
        self.settings = settings or Settings()
        self.create_seconds, self.delete_seconds = create_seconds, delete_seconds
        self.repair_seconds = repair_seconds
        self.refusals: dict[str, tuple[str, str]] = {}
        self.no_pods = ""
        self.purchases: list[tuple[float, str]] = []
        self.vanished: list[tuple[str, float]] = []
        self.events: list[tuple[str, str, str]] = []
        self.metrics = uncounted()
        self.given_back_in_use: list[str] = []
        self.cluster.touch = self._note
        self.cluster.put(resources.CATALOG, CATALOG_OBJECT)
        self.start()
        for obj in objects:
            self.apply(obj)

    # The process

    def start(self) -> None:
        """A fresh process: full caches, empty memory."""
        self.informers = []
        memories, client = Memories(), cast(Client, self.cluster)
        self.caches = World.over(client, self.settings.node_api, follow=self._follow)
        # Not connected: there is no Pod to ask.
        observer = Observer(
            self.caches,
            client=client,
            memories=memories,
            poller=ProgressPoller(),
            settings=self.settings,
            clock=self.clock,
        )
        executor = Executor(
            client,
            recorder=cast(Any, self),
            memories=memories,
            metrics=self.metrics,
            clock=self.clock,
            refusal_pause=self.settings.timeouts.buy_backoff_min,
        )
        self._reconciler = Reconciler(observer, executor)
        self.controller = DrivenController("workspace", self._reconcile, clock=self.clock, account=self.account)
        self.driven = [self.controller]
        self.caches.wire(cast(Controller, self.controller), memories)

    def _follow(self, client: Client, resource: Resource, **selection: Any) -> Informer:
        self.informers.append(MemoryInformer(self.cluster, resource, **selection))
        return cast(Informer, self.informers[-1])

    def _reconcile(self, key: Key) -> Result:
        with self.product():
            return self._reconciler(key)

    def event(self, obj: Obj, type: str, reason: str, message: str, *, alone: bool = False) -> None:
        """As a recorder of Events."""
        self.events.append((obj["metadata"]["name"], reason, message))

    def _note(self, what: str, after: bool) -> None:
        verb, *_, kind, name = what.split()
        if kind not in resources.CLAIM_RESOURCES:
            return
        if after and verb == "create":
            self.purchases.append((self.clock.monotonic(), name))
        if not after and verb == "delete" and self._is_in_use(f"node-{name}"):
            self.given_back_in_use.append(name)

    def _is_in_use(self, node: str) -> bool:
        """Whether the node of a claim serves, or is repaired."""
        found = self.cluster.find(resources.NODE, node)
        return bool(self.pods_on(node)) or (found is not None and _away_since(found) is not None)

    # What users do

    def apply(self, obj: Obj, **metadata_of_before: str) -> Obj:
        """Create a Workspace, or change its specification; ``creationTimestamp`` may be an earlier one."""
        metadata = obj["metadata"]
        found = self.cluster.find(resources.WORKSPACE, metadata["name"], metadata["namespace"])
        if found is None:
            bare = {k: v for k, v in metadata.items() if k not in ("resourceVersion", "creationTimestamp")}
            return self.cluster.put(resources.WORKSPACE, {**obj, "metadata": bare | metadata_of_before})
        changed = {**found, **{k: v for k, v in obj.items() if k not in ("metadata", "status")}}
        changed["metadata"]["generation"] += 1
        return self.cluster.put(resources.WORKSPACE, changed)

    def delete(self, name: str = "phi") -> None:
        self.cluster.delete(resources.WORKSPACE, name, namespace="models")

    def delete_claim(self, name: str) -> None:
        self.cluster.delete(resources.MACHINE, name)

    def bring_node(self, name: str, **changes: Any) -> Obj:
        """A node of the user's own, Ready from this moment on."""
        return self.cluster.put(resources.NODE, self._since_now(node_object(name, **changes)))

    def set_ready(self, node: str, ready: bool) -> None:
        found = self.cluster.find(resources.NODE, node)
        assert found is not None
        fresh = node_object(node, ready=ready)["status"]["conditions"]
        self.cluster.put(resources.NODE, self._since_now({**found, "status": {**found["status"], "conditions": fresh}}))

    def remove_node(self, name: str) -> None:
        self.cluster.drop(resources.NODE, name)

    def _since_now(self, node: Obj) -> Obj:
        for condition in node["status"]["conditions"]:
            condition["lastTransitionTime"] = format_time(self.clock.now())
        return node

    # What there is

    def workspace(self, name: str = "phi") -> Obj:
        found = self.cluster.find(resources.WORKSPACE, name, "models")
        assert found is not None
        return found

    def told(self, condition: str = "WorkspaceReady", *, of: str = "phi") -> tuple[str, str]:
        """Status and message of a condition."""
        found = find((self.workspace(of).get("status") or {}).get("conditions"), condition) or {}
        return found.get("status", ""), found.get("message", "")

    def worker_nodes(self, name: str = "phi") -> list[str]:
        return list((self.workspace(name).get("status") or {}).get("workerNodes") or ())

    def claims(self) -> list[str]:
        return sorted(claim["metadata"]["name"] for claim in self._claims())

    def staying_claims(self) -> list[str]:
        """Claims that nobody has given back."""
        return sorted(c["metadata"]["name"] for c in self._claims() if not c["metadata"].get("deletionTimestamp"))

    def _claims(self) -> list[Obj]:
        return [claim for resource in resources.CLAIM_RESOURCES.values() for claim in self.cluster.all(resource)]

    def deployments(self) -> list[str]:
        return [deployment["metadata"]["name"] for deployment in self.cluster.all(resources.DEPLOYMENT)]

    def pods_on(self, node: str) -> list[str]:
        """Workspaces of which a Pod is bound to that node."""
        return [_workspace_of(pod) for pod in self._pods() if pod["spec"].get("nodeName") == node]

    def _pods(self) -> list[Obj]:
        return self.cluster.all(resources.POD)

    # What others do

    def surroundings(self) -> None:
        for claim in self._claims():
            self._provision(claim)
        self._run_pods()

    def next_of_surroundings(self) -> float:
        moments = [*self._moments_of_claims(), *self._moments_of_nodes()]
        return min((m for m in moments if m > self.clock.monotonic()), default=float("inf"))

    def _moments_of_claims(self) -> Iterable[float]:
        for claim in self._claims():
            metadata = claim["metadata"]
            yield self._moment(metadata["creationTimestamp"], self.create_seconds)
            if metadata.get("deletionTimestamp"):
                yield self._moment(metadata["deletionTimestamp"], self.delete_seconds)

    def _moments_of_nodes(self) -> Iterable[float]:
        for node in self.cluster.all(resources.NODE):
            if (since := _away_since(node)) is not None:
                yield self._moment(since, EVICTION)
                yield self._moment(since, self.repair_seconds)

    def _moment(self, stamp: str, after: float) -> float:
        return self.clock.moment(parse_time(stamp) + timedelta(seconds=after))

    def _is_due(self, stamp: str, after: float) -> bool:
        return self.clock.now() >= parse_time(stamp) + timedelta(seconds=after)

    def _provision(self, claim: Obj) -> None:
        resource, metadata = resources.CLAIM_RESOURCES[claim["kind"]], claim["metadata"]
        name, node = metadata["name"], f"node-{metadata['name']}"
        if metadata.get("deletionTimestamp"):
            if self._is_due(metadata["deletionTimestamp"], self.delete_seconds):
                self.cluster.drop(resources.NODE, node)
                self.cluster.drop(resource, name)
                if any(c.get("reason") not in (None, AWAITED) for c in claim["status"]["conditions"]):
                    self.vanished.append((name, self.clock.monotonic()))
            return
        if not metadata.get("finalizers"):
            metadata["finalizers"] = [TERMINATION]
            claim["status"] = {"conditions": [_step(AWAITED, "the pool is made")]}
            self.cluster.put(resource, claim)
        if name in self.refusals and not claim["status"].get("nodeName"):
            claim["status"] = {"conditions": [_step(*self.refusals[name])]}
            self.cluster.put(resource, claim)
            self.cluster.delete(resource, name)
        elif not claim["status"].get("nodeName") and self._is_due(metadata["creationTimestamp"], self.create_seconds):
            requirements = {r["key"]: r.get("values") for r in claim["spec"]["requirements"]}
            key = "node.kubernetes.io/instance-type"
            self.bring_node(node, labels={**metadata["labels"], key: requirements[key][0]})
            claim["status"] = {"nodeName": node, "conditions": [{"type": "Ready", "status": "True"}]}
            self.cluster.put(resource, claim)
        elif found := self.cluster.find(resources.NODE, node):
            since = _away_since(found)
            if since is not None and self._is_due(since, self.repair_seconds):
                self.cluster.delete(resource, name)

    def _run_pods(self) -> None:
        nodes = {node["metadata"]["name"]: node for node in self.cluster.all(resources.NODE)}
        for pod in self._pods():
            node = nodes.get(pod["spec"].get("nodeName", ""))
            since = _away_since(node) if node is not None else None
            gone = pod["spec"].get("nodeName") and node is None
            if gone or (since is not None and self._is_due(since, EVICTION)):
                self.cluster.drop(resources.POD, pod["metadata"]["name"], "models")
        for workload in (*self.cluster.all(resources.DEPLOYMENT), *self.cluster.all(resources.STATEFUL_SET)):
            self._keep_pods(workload)
        for pod in self._pods():
            self._run_pod(pod, nodes)
        for resource in (resources.DEPLOYMENT, resources.STATEFUL_SET):
            for workload in self.cluster.all(resource):
                self._report(resource, workload)

    def _keep_pods(self, workload: Obj) -> None:
        metadata, spec = workload["metadata"], workload["spec"]
        names = [f"{metadata['name']}-{number}" for number in range(spec["replicas"])]
        affinity = spec["template"]["spec"]["affinity"]
        for name in names:
            found = self.cluster.find(resources.POD, name, "models")
            # Of a template that changes, Pods that run stay here, and others are replaced.
            if found is None and self.no_pods:
                continue
            if found is None or (not found["spec"].get("nodeName") and found["spec"]["affinity"] != affinity):
                owner = {"kind": workload["kind"], "name": metadata["name"], "uid": metadata["uid"], "controller": True}
                marks = {"kaito.sh/workspace": metadata["name"]}
                named = {"name": name, "namespace": "models", "labels": marks, "ownerReferences": [owner]}
                pod = {"metadata": named, "spec": {"affinity": affinity}, "status": {"phase": "Pending"}}
                self.cluster.put(resources.POD, pod)

    def _run_pod(self, pod: Obj, nodes: Mapping[str, Obj]) -> None:
        if not pod["spec"].get("nodeName"):
            used = {other["spec"].get("nodeName") for other in self._pods()}
            free = (name for name, n in sorted(nodes.items()) if name not in used and accepts(n, pod["spec"]))
            pod["spec"]["nodeName"] = next(free, "")
        node = nodes.get(pod["spec"]["nodeName"])
        runs = node is not None and _away_since(node) is None
        pod["status"] = {
            "phase": "Running" if pod["spec"]["nodeName"] else "Pending",
            "conditions": [{"type": "Ready", "status": "True" if runs else "False"}],
        }
        self.cluster.put(resources.POD, pod)

    def _report(self, resource: Resource, workload: Obj) -> None:
        name = workload["metadata"]["name"]
        ready = [
            pod
            for pod in self._pods()
            if _workspace_of(pod) == name and pod["status"]["conditions"][0]["status"] == "True"
        ]
        status: Obj = {
            "observedGeneration": workload["metadata"]["generation"],
            "readyReplicas": len(ready),
            "updatedReplicas": workload["spec"]["replicas"],
        }
        if self.no_pods and not any(_workspace_of(pod) == name for pod in self._pods()):
            status["conditions"] = [{"type": "ReplicaFailure", "status": "True", "message": self.no_pods}]
        self.cluster.put(resource, {**workload, "status": status})


def one(**changes: Any) -> Obj:
    """A Workspace of one node; ``name`` and ``count`` may be others."""
    name, count = changes.pop("name", "phi"), changes.pop("count", 1)
    resource = {**workspace_object()["resource"], "count": count}
    return workspace_object(metadata={"name": name, "uid": f"uid-{name}"}, **{"resource": resource, **changes})


def _step(reason: str, message: str) -> Obj:
    return {"type": "MachineLaunched", "status": "False", "reason": reason, "message": message}


def _away_since(node: Obj) -> str | None:
    [ready] = node["status"]["conditions"]
    return None if ready["status"] == "True" else str(ready["lastTransitionTime"])


def _workspace_of(pod: Obj) -> str:
    return str(pod["metadata"]["labels"]["kaito.sh/workspace"])


def accepts(node: Obj, pod: Obj) -> bool:
    """Whether a scheduler would bind a Pod of that spec to a node that nobody uses."""
    marks = node["metadata"]["labels"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return _away_since(node) is None and any(
        all(
            marks.get(rule["key"]) in rule["values"] if rule["operator"] == "In" else rule["key"] not in marks
            for rule in term["matchExpressions"]
        )
        and all(node["metadata"]["name"] in rule["values"] for rule in term.get("matchFields", ()))
        for term in terms
    )
