"""Look at one Workspace and its world: read caches, and ask the API server only where a cache is no proof."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kaito_hooks.api import labels
from kaito_hooks.api.catalog import NAME as CATALOG_NAME
from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.claim import Claim
from kaito_hooks.api.conditions import is_true
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import BadRequest, Client, Clock, Invalid, Key, NotFound, Obj, parse_time
from kaito_hooks.workspace import world as caches
from kaito_hooks.workspace.children.service import SERVER_PORT, headless_name
from kaito_hooks.workspace.children.workload import owner_reference
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.revision import revise
from kaito_hooks.workspace.decision.snapshot import Snapshot, Tenant, TuningConfig
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.resources import CLAIM_RESOURCES, CONFIG_MAP, WORKSPACE
from kaito_hooks.workspace.status import missing_secrets, pod_refusals, server_state
from kaito_hooks.workspace.status.poller import ProgressPoller
from kaito_hooks.workspace.supply.nodes import is_ready, name_of, of_pod
from kaito_hooks.workspace.tuning import check, config
from kaito_hooks.workspace.tuning.job import PORT as TUNING_PORT
from kaito_hooks.workspace.tuning.phase import needs_config
from kaito_hooks.workspace.tuning.state import pod_to_ask
from kaito_hooks.workspace.world import World, first_label


class Observer:
    """Makes Snapshots.

    ``client`` is asked only about claims of a Workspace that goes or has gone, and for the ConfigMap of a tuning Job
    that is to be made. ``poller`` asks Pods for their progress: a trainer, or servers that are not ready.
    """

    def __init__(
        self,
        world: World,
        *,
        client: Client,
        memories: Memories,
        poller: ProgressPoller,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._world, self._client, self._memories, self._poller = world, client, memories, poller
        self._settings, self._clock = settings, clock
        self._read_catalog: tuple[Obj, Catalog | None, str] | None = None

    def workspace(self, key: Key) -> Obj | None:
        """The Workspace itself, as its cache has it."""
        return self._world.workspaces.get(key)

    def is_stale(self, key: Key) -> bool:
        """Whether the cache has the Workspace as it was before our own last write: the newer one is on its way."""
        obj = self.workspace(key)
        if obj is None:
            return False
        metadata = obj["metadata"]
        return metadata.get("resourceVersion", "") in self._memories.get(metadata.get("uid", "")).superseded

    def observe(self, key: Key) -> Snapshot | None:
        """The world of that Workspace now; None if there is no such Workspace."""
        obj = self.workspace(key)
        if obj is None:
            self._poller.answers(key, {})
            return None
        workspace = Workspace.read(obj)
        claims = [Claim.read(claim) for claim in self._world.claims_of(key)]
        catalog, problem = self._catalog()
        memory = self._memories.get(workspace.uid)
        pods = self._world.pods.by_index(caches.BY_WORKSPACE, str(key))
        nodes = self._nodes(key, obj, workspace, claims, pods)
        check_jobs = self._check_jobs(key, workspace)
        check_pods = [pod for pod in pods if workspace.tuning is not None and check.is_pod(workspace.name, pod)]
        of_checks = set(map(_uid, check_pods))
        children = self._children(workspace)
        found = Snapshot(
            now=self._clock.now(),
            settings=self._settings,
            workspace=workspace,
            catalog=catalog,
            catalog_problem=problem,
            nodes=tuple(nodes),
            tenants=self._tenants(key, nodes),
            claims=tuple(claims),
            claim_warnings=self._claim_warnings(memory.purchases.claims),
            claims_gone=workspace.deleting
            and labels.WORKSPACE_FINALIZER in workspace.finalizers
            and not claims
            and not self._claims_now(key),
            served_claim_kinds=frozenset(
                kind
                for kind, informer in (("Machine", self._world.machines), ("NodeClaim", self._world.node_claims))
                if informer.served
            ),
            children=children,
            revisions=tuple(self._world.revisions.by_index(caches.BY_WORKSPACE, str(key))),
            pods=tuple(pod for pod in pods if _uid(pod) not in of_checks),
            pod_warnings=self._warnings(pods),
            pull_secrets=self._pull_secrets(pods),
            pod_refusals=self._pod_refusals([*children.values(), *check_jobs]),
            check_jobs=tuple(check_jobs),
            check_pods=tuple(check_pods),
            memory=memory,
        )
        if workspace.deleting:
            self._poller.answers(key, {})
            return found
        found = self._asked(key, found)
        return self._tuned(found) if workspace.tuning is not None else found

    def _asked(self, key: Key, s: Snapshot) -> Snapshot:
        """With what was last answered by the trainer, and by model servers that run and are not ready."""
        servers = server_state.pods_to_ask(s.workspace, s.pods)
        job = s.children.get(f"Job/{s.workspace.name}")
        trainer = pod_to_ask(s.pods, job) if s.workspace.tuning is not None and job is not None else None
        places = {_uid(pod): (str(pod["status"]["podIP"]), SERVER_PORT) for pod in servers}
        if trainer is not None:
            places[_uid(trainer)] = (str(trainer["status"]["podIP"]), TUNING_PORT)
        said = self._poller.answers(key, places)
        progress = said.pop(_uid(trainer), None) if trainer is not None else None
        return replace(s, servers=said, tuning_progress=progress)

    def _tuned(self, s: Snapshot) -> Snapshot:
        """With what only a tuning Workspace needs."""
        ws = s.workspace
        assert ws.tuning is not None
        if not needs_config(s, revise(ws, s.revisions, owner_reference(ws))):
            return s
        name, release = config.name_of(ws.tuning), self._settings.release_namespace
        found = self._config_map(name, ws.namespace)
        template = self._config_map(name, release) if found is None and release and not ws.tuning.config else None
        return replace(s, tuning_config=TuningConfig(name, found, template))

    def _config_map(self, name: str, namespace: str) -> Obj | None:
        try:
            return self._client.get(CONFIG_MAP, name, namespace=namespace)
        except (NotFound, BadRequest, Invalid):
            return None

    def orphans(self, key: Key) -> list[Claim]:
        """Claims of a Workspace that does not exist, as the API server itself says: they bill for nobody."""
        claims = [Claim.read(claim) for claim in self._world.claims_of(key)]
        if not claims:
            return []
        try:
            self._client.get(WORKSPACE, key.name, namespace=key.namespace)
        except NotFound:
            return [claim for claim in claims if not claim.deleting]
        return []

    def _catalog(self) -> tuple[Catalog | None, str]:
        found = self._world.catalogs.get(Key("", CATALOG_NAME))
        if found is None:
            return None, ""
        # An object in a cache never changes: what was read of it holds as long as it is that one.
        known = self._read_catalog
        if known is None or known[0] is not found:
            try:
                known = found, Catalog.read(found), ""
            except ValueError as error:
                known = found, None, str(error)
            self._read_catalog = known
        return known[1:]

    def _nodes(self, key: Key, obj: Obj, workspace: Workspace, claims: list[Claim], pods: Iterable[Obj]) -> list[Obj]:
        """Its own Nodes, those that it names, those of its Pods and, unless those in use are Ready and enough, all that
        fit its labels."""
        resource = workspace.resource
        found = {name_of(node): node for node in self._world.nodes.by_index(caches.BY_OWNER, str(key))}
        preferred = resource.preferred_nodes if resource is not None else ()
        named = (*workspace.worker_nodes, *preferred, *(claim.node_name for claim in claims), *map(of_pod, pods))
        for name in named:
            if name and name not in found and (node := self._world.nodes.get(Key("", name))) is not None:
                found[name] = node
        in_use = [name for name in workspace.worker_nodes if name in found and is_ready(found[name])]
        if resource is None or len(in_use) < resource.count:
            found |= {name_of(node): node for node in self._world.nodes.by_index(caches.BY_LABEL, first_label(obj))}
        return [found[name] for name in sorted(found)]

    def _tenants(self, key: Key, nodes: list[Obj]) -> dict[str, tuple[Tenant, ...]]:
        """Other Workspaces on Nodes that nobody bought; only there can two meet."""
        tenants: dict[str, tuple[Tenant, ...]] = {}
        for node in nodes:
            if caches.workspace_of_claim(node) is not None:
                continue
            name = node["metadata"]["name"]
            others = [w for w in self._world.workspaces.by_index(caches.BY_WORKER_NODE, name) if Key.of(w) != key]
            if others:
                tenants[name] = tuple(Tenant(w["metadata"].get("creationTimestamp", ""), *_names(w)) for w in others)
        return tenants

    def _claims_now(self, key: Key) -> bool:
        """Whether the API server has a claim of that Workspace; a cache may not have seen the newest yet."""
        selector = f"{labels.WORKSPACE}={key.name},{labels.WORKSPACE_NAMESPACE}={key.namespace}"
        for resource in CLAIM_RESOURCES.values():
            try:
                if self._client.list(resource, label_selector=selector).items:
                    return True
            except NotFound:
                continue
        return False

    def _children(self, workspace: Workspace) -> dict[str, Obj]:
        children = {}
        for kind, informer in self._world.children.items():
            names = (workspace.name, headless_name(workspace)) if kind == "Service" else (workspace.name,)
            for name in names:
                found = informer.get(Key(workspace.namespace, name))
                if found is not None:
                    children[f"{kind}/{name}"] = found
        return children

    def _check_jobs(self, key: Key, workspace: Workspace) -> list[Obj]:
        """The Jobs that check a tuning before a node is bought."""
        if workspace.tuning is None:
            return []
        jobs = self._world.jobs.by_index(caches.BY_WORKSPACE, str(key))
        return [job for job in jobs if check.is_job(workspace.name, job)]

    def _warnings(self, pods: list[Obj]) -> dict[str, str]:
        """Why volumes of Pods in which nothing runs yet cannot be mounted: no Pod state says so, only Events do."""
        warnings = {}
        for pod in pods:
            status = pod.get("status") or {}
            containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
            has_begun = any((c.get("state") or {}).get("waiting") is None for c in containers)
            # All volumes are there then: an Event about one is of before.
            has_volumes = is_true(status.get("conditions"), "PodReadyToStartContainers")
            if status.get("phase") != "Pending" or has_begun or has_volumes:
                continue
            uid = pod["metadata"].get("uid", "")
            events = self._world.pod_events.by_index(caches.BY_POD, uid)
            if events:
                newest = max(events, key=lambda event: str(event.get("lastTimestamp") or ""))
                warnings[uid] = str(newest.get("message", ""))
        return warnings

    def _pull_secrets(self, pods: list[Obj]) -> dict[str, str]:
        """What the kubelet says of Secrets for the images of these Pods that it does not find, by Pod uid."""
        found, since = {}, self._clock.now() - missing_secrets.LONGEST_SILENCE
        for pod in pods:
            events = self._world.pull_secret_events.by_index(caches.BY_POD, _uid(pod))
            last = max(events, key=pod_refusals.told_at, default=None)
            if last is not None and pod_refusals.told_at(last) and parse_time(pod_refusals.told_at(last)) >= since:
                found[_uid(pod)] = str(last.get("message", ""))
        return found

    def _pod_refusals(self, children: Iterable[Obj]) -> dict[str, str]:
        """Why children of the kinds that have no condition for it cannot create Pods, by their uid."""
        found = {}
        for child in children:
            uid = child["metadata"].get("uid", "")
            events = self._world.refusal_events.by_index(caches.BY_INVOLVED, uid)
            if message := pod_refusals.newest(events, now=self._clock.now()):
                found[uid] = message
        return found

    def _claim_warnings(self, names: Iterable[str]) -> dict[str, str]:
        """The newest warning about each claim of these names, by the claim's uid."""
        events = [
            event for name in sorted(names) for event in self._world.claim_events.by_index(caches.BY_CLAIM_NAME, name)
        ]
        return {
            str(event["involvedObject"].get("uid", "")): f"{event.get('reason', '')}: {event.get('message', '')}"
            for event in sorted(events, key=pod_refusals.told_at)
        }


def _uid(obj: Obj) -> str:
    return str(obj["metadata"]["uid"])


def _names(workspace: Obj) -> tuple[str, str]:
    return workspace["metadata"].get("namespace", ""), workspace["metadata"]["name"]
