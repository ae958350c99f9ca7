"""The caches of this controller: one informer per resource, and which Workspaces an object concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import match_labels
from kaito_hooks.runtime import Client, Controller, Informer, Key, Obj, Resource
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import NodeAPISetting
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.status import missing_secrets, pod_refusals

BY_LABEL = "label"
BY_OWNER = "owner"
BY_WORKSPACE = "workspace"
BY_WORKER_NODE = "worker node"
BY_NAMED_NODE = "named node"
BY_WANTED_LABEL = "wanted label"
BY_POD = "pod"
BY_INVOLVED = "involved object"
BY_CLAIM_NAME = "claim name"
BY_UID = "uid"
ANY_LABEL = "*"

ToKeys = Callable[[Obj], Iterable[Key]]


def workspace_of_claim(claim: Obj) -> Key | None:
    """The Workspace that a claim or a bought Node names in its labels."""
    marks = claim["metadata"].get("labels") or {}
    name, namespace = marks.get(labels.WORKSPACE), marks.get(labels.WORKSPACE_NAMESPACE)
    return Key(namespace, name) if name and namespace else None


def _labels_for_anybody(node: Obj) -> list[str]:
    """The labels under which any Workspace finds the Node; one that was bought is its owner's alone."""
    if workspace_of_claim(node) is not None:
        return []
    marks = node["metadata"].get("labels") or {}
    return [ANY_LABEL, *(f"{key}={value}" for key, value in marks.items())]


def _wanted_labels(workspace: Obj) -> list[str]:
    """The first label of a Workspace that has too few nodes."""
    count = (workspace.get("resource") or {}).get("count", 1)
    return [first_label(workspace)] if len(_worker_nodes(workspace)) < count else []


def first_label(workspace: Obj) -> str:
    """One of the labels that the Workspace's nodes must have, always the same; ``ANY_LABEL`` if there is none."""
    wanted, _ = match_labels((workspace.get("resource") or {}).get("labelSelector"))
    return min((f"{key}={value}" for key, value in wanted.items()), default=ANY_LABEL)


def _worker_nodes(workspace: Obj) -> list[str]:
    return list((workspace.get("status") or {}).get("workerNodes") or ())


def _named_nodes(workspace: Obj) -> list[str]:
    return _worker_nodes(workspace) + list((workspace.get("resource") or {}).get("preferredNodes") or ())


def _slim_node(node: Obj) -> Obj:
    """A Node without what changes often or is large and never read here."""
    node["metadata"].pop("managedFields", None)
    for part in ("images", "volumesAttached", "volumesInUse", "nodeInfo"):
        (node.get("status") or {}).pop(part, None)
    return node


@dataclass(frozen=True, slots=True)
class World:
    """All informers. Claims, and on some clusters the Catalog, need not be served."""

    workspaces: Informer
    catalogs: Informer
    machines: Informer
    node_claims: Informer
    nodes: Informer
    claim_events: Informer
    pods: Informer
    pod_events: Informer
    pull_secret_events: Informer
    refusal_events: Informer
    deployments: Informer
    stateful_sets: Informer
    services: Informer
    network_policies: Informer
    jobs: Informer
    revisions: Informer

    @classmethod
    def over(cls, client: Client, node_api: NodeAPISetting, *, follow: Callable[..., Informer] = Informer) -> World:
        """Informers that read with this client; none is started. ``node_api``: the kind of claims that are bought.

        ``follow``: what makes an informer, with the parameters of Informer.
        """

        def labelled(resource: Resource) -> Informer:
            return follow(
                client,
                resource,
                label_selector=labels.WORKSPACE,
                indexes={BY_WORKSPACE: _index(_keys(labels.WORKSPACE))},
            )

        def of_pods(reason: str) -> Informer:
            return follow(
                client,
                resources.EVENT,
                field_selector=f"involvedObject.kind=Pod,reason={reason}",
                indexes={BY_POD: lambda event: [str((event.get("involvedObject") or {}).get("uid", ""))]},
            )

        def claims(resource: Resource) -> Informer:
            return follow(
                client,
                resource,
                label_selector=labels.WORKSPACE,
                indexes={BY_WORKSPACE: _index(_claim_keys)},
                optional=True,
            )

        return cls(
            workspaces=follow(
                client,
                resources.WORKSPACE,
                indexes={
                    BY_WORKER_NODE: _worker_nodes,
                    BY_NAMED_NODE: _named_nodes,
                    BY_WANTED_LABEL: _wanted_labels,
                    BY_UID: lambda workspace: [str(workspace["metadata"]["uid"])],
                },
            ),
            catalogs=follow(client, resources.CATALOG, optional=True),
            machines=claims(resources.MACHINE),
            node_claims=claims(resources.NODE_CLAIM),
            nodes=follow(
                client,
                resources.NODE,
                indexes={BY_LABEL: _labels_for_anybody, BY_OWNER: _index(_claim_keys)},
                transform=_slim_node,
            ),
            claim_events=follow(
                client,
                resources.EVENT,
                field_selector=f"involvedObject.kind={node_api},type=Warning",
                indexes={BY_CLAIM_NAME: lambda event: [str((event.get("involvedObject") or {}).get("name", ""))]},
            ),
            pods=labelled(resources.POD),
            pod_events=of_pods("FailedMount"),
            pull_secret_events=of_pods(missing_secrets.PULL_REASON),
            refusal_events=follow(
                client,
                resources.EVENT,
                field_selector=f"reason={pod_refusals.REASON},type=Warning",
                indexes={BY_INVOLVED: lambda event: [str((event.get("involvedObject") or {}).get("uid", ""))]},
            ),
            deployments=labelled(resources.DEPLOYMENT),
            stateful_sets=labelled(resources.STATEFUL_SET),
            services=labelled(resources.SERVICE),
            network_policies=labelled(resources.NETWORK_POLICY),
            jobs=labelled(resources.JOB),
            revisions=follow(
                client,
                resources.CONTROLLER_REVISION,
                label_selector=labels.REVISION_NAME,
                indexes={BY_WORKSPACE: _index(_keys(labels.REVISION_NAME))},
            ),
        )

    @property
    def children(self) -> dict[str, Informer]:
        """The informers of children that have a name of their own, by kind."""
        return {
            "Deployment": self.deployments,
            "StatefulSet": self.stateful_sets,
            "Service": self.services,
            "NetworkPolicy": self.network_policies,
            "Job": self.jobs,
        }

    def claims_of(self, key: Key) -> list[Obj]:
        """Machines and NodeClaims with the two labels of that Workspace."""
        return [
            claim
            for informer in (self.machines, self.node_claims)
            for claim in informer.by_index(BY_WORKSPACE, str(key))
        ]

    def wire(self, controller: Controller, memories: Memories) -> None:
        """Have the controller look at every Workspace that a change concerns."""
        for field in fields(self):
            informer: Informer = getattr(self, field.name)
            controller.watch(informer, self._mapping(field.name, memories))
        self.workspaces.subscribe(lambda old, new: self._tell_neighbours(controller, old, new))

    def _mapping(self, name: str, memories: Memories) -> ToKeys:
        special: dict[str, ToKeys] = {
            "workspaces": lambda workspace: [Key.of(workspace)],
            "catalogs": lambda _: [Key.of(w) for w in self.workspaces.list()],
            "machines": _claim_keys,
            "node_claims": _claim_keys,
            "nodes": self._concerned_by_node,
            "claim_events": lambda event: self._concerned_by_claim_event(event, memories),
            "pod_events": self._concerned_by_pod_event,
            "pull_secret_events": self._concerned_by_pod_event,
            "refusal_events": self._concerned_by_refusal,
            "revisions": _keys(labels.REVISION_NAME),
        }
        return special.get(name, _keys(labels.WORKSPACE))

    def _concerned_by_node(self, node: Obj) -> Iterator[Key]:
        """Its owner, who uses or prefers it and, of one that nobody uses, who has too few."""
        yield from _claim_keys(node)
        name = node["metadata"]["name"]
        for workspace in self.workspaces.by_index(BY_NAMED_NODE, name):
            yield Key.of(workspace)
        if self.workspaces.by_index(BY_WORKER_NODE, name):
            return
        for label in _labels_for_anybody(node):
            for workspace in self.workspaces.by_index(BY_WANTED_LABEL, label):
                yield Key.of(workspace)

    def _concerned_by_claim_event(self, event: Obj, memories: Memories) -> Iterator[Key]:
        """The claim's labels tell; where it went before its Event came, who waits to hear why."""
        name = str((event.get("involvedObject") or {}).get("name", ""))
        for informer in (self.machines, self.node_claims):
            if (claim := informer.get(Key("", name))) is not None:
                yield from _claim_keys(claim)
        for uid in memories.missing(name):
            for workspace in self.workspaces.by_index(BY_UID, uid):
                yield Key.of(workspace)

    def _concerned_by_pod_event(self, event: Obj) -> Iterator[Key]:
        involved = event.get("involvedObject") or {}
        pod = self.pods.get(Key(involved.get("namespace") or "", involved.get("name") or ""))
        if pod is not None:
            yield from _keys(labels.WORKSPACE)(pod)

    def _concerned_by_refusal(self, event: Obj) -> Iterator[Key]:
        involved = event.get("involvedObject") or {}
        if involved.get("kind") in pod_refusals.KINDS:
            owners = self.children[involved["kind"]]
            owner = owners.get(Key(involved.get("namespace") or "", involved.get("name") or ""))
            if owner is not None:
                yield from _keys(labels.WORKSPACE)(owner)

    def _tell_neighbours(self, controller: Controller, old: Obj | None, new: Obj | None) -> None:
        """Workspaces that want the same Nodes look again when one of them takes or gives back a Node."""
        before, after = (set(_worker_nodes(w)) if w is not None else set() for w in (old, new))
        if old is None or before == after:
            return
        for node in before ^ after:
            found = self.nodes.get(Key("", node))
            if found is not None and workspace_of_claim(found) is None:
                for key in self._concerned_by_node(found):
                    controller.enqueue(key)


def _claim_keys(claim: Obj) -> list[Key]:
    key = workspace_of_claim(claim)
    return [key] if key is not None else []


def _keys(label: str) -> ToKeys:
    """The Workspace that a namespaced object names in that label."""

    def to_keys(obj: Obj) -> list[Key]:
        name = (obj["metadata"].get("labels") or {}).get(label)
        return [Key(obj["metadata"].get("namespace", ""), name)] if name else []

    return to_keys


def _index(to_keys: ToKeys) -> Callable[[Obj], Iterable[str]]:
    return lambda obj: [str(key) for key in to_keys(obj)]
