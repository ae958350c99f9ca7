"""The whole provisioner over a cluster and a cloud in memory, on a clock that tests turn.

Time passes in ``run``, and whatever the provisioner does then is paid for from the budget that the scenario has stated
with ``allow``.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any, cast

from prometheus_client import CollectorRegistry
from tests.driven.cluster import MemoryInformer
from tests.driven.controller import DrivenController
from tests.driven.world import NEVER, DrivenWorld
from tests.unit.provisioner.budget import LAUNCH
from tests.unit.provisioner.memory_cloud import MemoryCloud, Pool

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeAPI, encode
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.backoff import Backoff
from kaito_hooks.provisioner.claim_kind import ClaimKind
from kaito_hooks.provisioner.cloud import State
from kaito_hooks.provisioner.lifecycle import Lifecycle
from kaito_hooks.provisioner.machine import Machine
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.provisioner.nodeclaim import NodeClaim
from kaito_hooks.provisioner.nodes import Nodes
from kaito_hooks.provisioner.phases.collection import Collection
from kaito_hooks.provisioner.phases.drain import Drains
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.settings import Settings
from kaito_hooks.runtime import ApiError, Client, Key, LeadershipLost, Obj, Result, format_time, parse_time

WORKSPACE = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "default", "apps": "phi-3"}


class Crash(Exception):
    """The process is gone."""


class Heard:
    """Events, remembered."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str, str]] = []

    def event(self, obj: Obj, type: str, reason: str, message: str) -> None:
        self.events.append((obj["metadata"]["name"], type, reason, message))

    def reasons(self) -> list[str]:
        return [reason for _, _, reason, _ in self.events]


class World(DrivenWorld):
    """One cluster, one cloud, one provisioner that may crash and start again."""

    def __init__(self, *, node_api: NodeAPI = "Machine", node_ready: bool = True, **settings: Any) -> None:
        super().__init__()
        self.cloud = MemoryCloud(self.clock)
        self.cloud.on_ready = self.boot
        self.cloud.on_gone = self.machine_gone
        self.cluster.on_removed = self._removed
        self.node_api: NodeAPI = node_api
        self.node_ready = node_ready
        self.settings = Settings(**settings)
        self.heard = Heard()
        self.released_with_pool: list[str] = []
        self.start()

    def requests(self) -> int:
        return len(self.cloud.requests)

    # The process

    def start(self) -> None:
        """A fresh process: full caches, empty memory."""
        self.cloud.start()
        self.registry = CollectorRegistry()
        self.node_cache = MemoryInformer(self.cluster, resources.NODE, nodes.indexes("agentpool"))
        self.claim_caches = {kind: MemoryInformer(self.cluster, r) for kind, r in resources.CLAIMS.items()}
        self.informers = [self.node_cache, *self.claim_caches.values()]
        self.env = self._environment()
        self.kinds: tuple[ClaimKind, ...] = (Machine(), NodeClaim(by_label=self.settings.manage_by_label))
        self.lifecycles = {
            kind.encoding.kind: Lifecycle(
                kind,
                self.env,
                self.claim_caches[kind.encoding.kind].get,
                adopts=kind.encoding.kind == self.node_api,
            )
            for kind in self.kinds
        }
        self.controllers = {kind: self._controller(kind) for kind in resources.CLAIMS}
        self.driven = list(self.controllers.values())
        self.collection = Collection(self.env, self.kinds, required=self.node_api)
        self.sync()

    def _environment(self) -> Environment:
        return Environment(
            cloud=self.cloud,
            client=cast(Client, self.cluster),
            nodes=Nodes(self.node_cache),
            clock=self.clock,
            events=cast(Any, self.heard),
            metrics=ProvisionerMetrics(self.registry),
            settings=self.settings,
            backoff=Backoff(self.clock, random.Random(1)),
            drains=Drains(),
        )

    def _controller(self, kind: str) -> DrivenController:
        """As the process wires it: woken by its claims, and by Nodes that carry a claim's name."""
        controller = DrivenController(
            kind, lambda key: self._lifecycle(kind, key), clock=self.clock, account=self.account
        )
        controller.watch(self.claim_caches[kind], lambda claim: [Key.of(claim)])
        controller.watch(self.node_cache, lambda node: nodes.claim_keys(node, self.cloud.node_label))
        return controller

    def _lifecycle(self, kind: str, key: Key) -> Result:
        with self.product():
            return self.lifecycles[kind].reconcile(key)

    def reconcile(self, name: str, *, sync: bool = True) -> None:
        """One reconcile out of turn, which is not paid for; without ``sync`` on caches as old as they are."""
        if sync:
            self.sync()
        with suppress(ApiError, LeadershipLost):
            self._lifecycle(self.node_api, Key("", name))

    def sweep(self) -> None:
        self.sync()
        with self.product():
            self.collection.sweep()

    def run(self, seconds: float, *, sweep: bool = False, **_: Any) -> None:
        """Let time pass, with sweeps or without."""
        super().run(seconds, every=(self.settings.gc_interval, self.sweep) if sweep else None)

    def surroundings(self) -> None:
        self.cloud.tick()
        self.kubelets()

    def next_of_surroundings(self) -> float:
        return min(self._next_pod_end(), self.cloud.next_moment())

    def _next_pod_end(self) -> float:
        ends = [pod["metadata"].get("deletionTimestamp") for pod in self.cluster.all(resources.POD)]
        moments = (self.clock.moment(parse_time(end)) for end in ends if end)
        return min((moment for moment in moments if moment > self.clock.monotonic()), default=NEVER)

    # The claims

    def ask(self, name: str = "ws000000001", *, kind: NodeAPI | None = None, **changes: Any) -> Obj:
        """Create a claim as the Workspace controller does."""
        spec = ClaimSpec(**{"name": name, "labels": WORKSPACE, "instance_type": "Standard_NC6s_v3"} | changes)
        obj = encode(spec, kind or self.node_api)
        return self.cluster.create(resources.CLAIMS[kind or self.node_api], obj)

    def claim(self, name: str = "ws000000001", kind: NodeAPI | None = None) -> Claim | None:
        found = self.cluster.find(resources.CLAIMS[kind or self.node_api], name)
        return Claim.read(found) if found else None

    def there(self, name: str = "ws000000001", kind: NodeAPI | None = None) -> Claim:
        found = self.claim(name, kind)
        assert found is not None
        return found

    def step_of(self, step: str, name: str = "ws000000001") -> tuple[str, str]:
        """Status and reason of a step's condition."""
        state = self.there(name).steps[cast(Any, step)]
        return state.status, state.reason

    def give_back(self, name: str = "ws000000001", kind: NodeAPI | None = None) -> None:
        self.cluster.delete(resources.CLAIMS[kind or self.node_api], name)

    def ready_claim(self, name: str = "ws000000001", **changes: Any) -> Claim:
        """A claim with its Node, initialized; what that costs is not the scenario's."""
        left = self.account.left
        self.allow(LAUNCH)
        self.ask(name, **changes)
        self.run(self.cloud.create_seconds + 25)
        self.allow(left)
        claim = self.there(name)
        assert claim.ready
        return claim

    # The machines

    def boot(self, pool: Pool) -> None:
        """A pool's Node joins."""
        if pool.order is None:
            return
        self.add_node(f"aks-{pool.name}-12345678-vmss000000", pool, provider_id=f"azure:///{pool.name}/{pool.etag}")

    def add_node(self, name: str, pool: Pool, *, provider_id: str) -> Obj:
        status = "True" if self.node_ready else "False"
        return self.cluster.put(
            resources.NODE,
            {
                "metadata": {
                    "name": name,
                    "labels": {
                        **pool.labels,
                        "agentpool": pool.name,
                        "kubernetes.io/hostname": name,
                        "kubernetes.io/arch": "amd64",
                        "kubernetes.io/os": "linux",
                        "node.kubernetes.io/instance-type": pool.order.instance_type if pool.order else "x",
                        "topology.kubernetes.io/zone": "eastus-1",
                    },
                },
                "spec": {"providerID": provider_id},
                "status": {
                    "capacity": {"cpu": "6"},
                    "allocatable": {"cpu": "6"},
                    "conditions": [
                        {"type": "Ready", "status": status, "lastTransitionTime": format_time(self.clock.now())}
                    ],
                },
            },
        )

    def node_of(self, name: str = "ws000000001") -> Obj | None:
        return self.cluster.find(resources.NODE, f"aks-{name}-12345678-vmss000000")

    def set_ready(self, status: str, name: str = "ws000000001") -> None:
        node = self.node_of(name)
        assert node is not None
        node["status"]["conditions"] = [
            {"type": "Ready", "status": status, "lastTransitionTime": format_time(self.clock.now())}
        ]
        self.cluster.put(resources.NODE, node)

    def machine_gone(self, pool: Pool) -> None:
        """The cloud controller deletes the Node object of a machine that is gone; finalizers hold it."""
        node = self.node_of(pool.name)
        if node is not None:
            self.cluster.delete(resources.NODE, node["metadata"]["name"])

    def add_pod(self, name: str, node: str, **spec: Any) -> Obj:
        metadata = {"name": name, "namespace": "default", **spec.pop("metadata", {})}
        return self.cluster.put(
            resources.POD, {"metadata": metadata, "spec": {"nodeName": node, **spec}, "status": {"phase": "Running"}}
        )

    def kubelets(self) -> None:
        """Pods whose time is over end, on Nodes that work."""
        for pod in self.cluster.all(resources.POD):
            deleted = pod["metadata"].get("deletionTimestamp")
            node = self.cluster.find(resources.NODE, pod["spec"]["nodeName"])
            if deleted and parse_time(deleted) <= self.clock.now() and node is not None and nodes.is_ready(node):
                self.cluster.drop(resources.POD, pod["metadata"]["name"], "default")

    # What must never happen

    def _removed(self, obj: Obj) -> None:
        """S4: when a claim of ours that held a machine goes, its pool is gone."""
        if obj["kind"] in resources.CLAIMS:
            claim = Claim.read(obj)
            pool = self.cloud.pools.get(claim.name)
            if pool is not None and pool.labels.get("kaito.sh/claim-uid") == claim.uid:
                self.released_with_pool.append(claim.name)

    def billing(self) -> list[str]:
        """Names of our pools that bill."""
        return [p.name for p in self.cloud.pools.values() if p.order is not None and p.state is not State.DELETING]
