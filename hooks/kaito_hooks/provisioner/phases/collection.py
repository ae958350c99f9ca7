"""The collection phase: what the phases of a single claim cannot see, every ``gc_interval``.

A machine without its claim, a claim without its machine, a Node without either. A sweep judges from a complete listing
of the cloud and of the cluster; whatever it would remove it first asks for once more by name. A look that fails ends
the sweep, and a sweep that has not seen the whole world removes nothing; what may not be removed holds up nothing else.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner import nodes, resources
from kaito_hooks.provisioner.claim_kind import ClaimKind
from kaito_hooks.provisioner.cloud import Instance, State
from kaito_hooks.provisioner.errors import CloudError
from kaito_hooks.provisioner.phases import eviction, finalizer
from kaito_hooks.provisioner.phases.deletion import delete_claim
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.runtime import ApiError, Conflict, NotFound, Obj, Resource, format_duration

logger = logging.getLogger(__name__)

YOUNG = timedelta(seconds=30)


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """What is refused concerns that one alone; the next sweep tries again."""
    try:
        yield
    except (CloudError, ApiError) as error:
        logger.warning("%s cannot be removed: %s", what, error)


def _explains(claim: Claim, instance: Instance) -> bool:
    """Whether the instance was made for that claim, and we give it back with it: not with one that ends without our
    finalizer."""
    ends_without_us = claim.deleting and not finalizer.present(claim.object)
    return instance.belongs_to(claim) and not ends_without_us


@dataclass(slots=True)
class Collection:
    """The sweeper.

    ``kinds`` are both kinds of claims; ``required`` is the one that must be served for a sweep to count.
    """

    env: Environment
    kinds: Sequence[ClaimKind]
    required: str
    _orphans: frozenset[tuple[str, str]] = frozenset()
    _strays: frozenset[str] = frozenset()
    _node_missing_since: dict[str, float] = field(default_factory=dict)

    def sweep(self) -> None:
        """One sweep; looks that the cloud or the API server refuses end it and are tried again at the next."""
        try:
            claims = self._claims()
            instances = self.env.cloud.list()
            self._count(instances)
            self._collect_instances(instances, {claim.name: claim for claim in claims})
            self._collect_claims(claims, {instance.name: instance for instance in instances})
            self._collect_nodes(instances)
        except (CloudError, ApiError) as error:
            logger.warning("the sweep ended early: %s", error)

    def _claims(self) -> list[Claim]:
        """All claims of ours, live; ApiError when the required kind cannot be listed."""
        found: list[Claim] = []
        for kind in self.kinds:
            try:
                items = self.env.client.list(kind.resource).items
            except NotFound:
                if kind.resource.kind == self.required:
                    raise
                continue
            found += [claim for claim in map(Claim.read, items) if kind.manages(claim)]
        return found

    def _count(self, instances: Sequence[Instance]) -> None:
        states = Counter(instance.state.value for instance in instances if instance.ours)
        for state in State:
            self.env.metrics.pools.labels(state.value).set(states[state.value])

    # Machines without a claim

    def _collect_instances(self, instances: Sequence[Instance], claims: Mapping[str, Claim]) -> None:
        """``claims`` explain their machines; whatever they do not is asked for by name, of either kind."""
        orphans = {
            (instance.name, instance.claim_uid)
            for instance in instances
            if instance.ours
            and instance.state is not State.DELETING
            and not self._young(instance)
            and not (instance.name in claims and _explains(claims[instance.name], instance))
            and not self._claimed(instance)
        }
        self.env.metrics.orphans.set(len(orphans))
        before, self._orphans = self._orphans, frozenset(orphans)
        for name, uid in sorted(orphans & before):
            self._delete_orphan(name, uid)

    def _young(self, instance: Instance) -> bool:
        """By whatever clock: one that was ordered long after now was ordered by one that was ahead."""
        return instance.created is not None and abs(self.env.clock.now() - instance.created) < YOUNG

    def _claimed(self, instance: Instance) -> bool:
        """Whether a claim explains the instance, of either kind, by a GET."""
        return any(
            _explains(Claim.read(obj), instance)
            for kind in self.kinds
            if (obj := self._find(kind.resource, instance.name)) is not None
        )

    def _find(self, resource: Resource, name: str) -> Obj | None:
        """The object; None only if it certainly does not exist."""
        try:
            return self.env.client.get(resource, name)
        except NotFound as error:
            # Of an object that is not there the API server says its name; otherwise the whole kind is not served,
            # which for the kind that we live from is a disturbance and not an answer.
            if (error.details or {}).get("name") == name or resource.kind != self.required:
                return None
            raise

    def _delete_orphan(self, name: str, uid: str) -> None:
        instance = self.env.cloud.get(name)
        if instance is None or instance.claim_uid != uid or instance.state is State.DELETING:
            return
        if self._claimed(instance):
            return
        logger.warning("agent pool %s belongs to no claim and is deleted", name, extra={"claim_uid": uid})
        with _alone(f"agent pool {name}"):
            self.env.cloud.delete(instance)
            self.env.metrics.orphans_deleted.inc()

    # Claims without a machine, or without a Node

    def _collect_claims(self, claims: Sequence[Claim], instances: dict[str, Instance]) -> None:
        registered = [claim for claim in claims if claim.steps["registered"].done and not claim.deleting]
        known = {claim.uid for claim in registered}
        self._node_missing_since = {u: since for u, since in self._node_missing_since.items() if u in known}
        for claim in registered:
            listed = instances.get(claim.name)
            alive = listed is not None and listed.may_belong_to(claim)
            own = self.env.nodes.of_claim(claim)
            if not alive and not any(nodes.is_ready(node) for node in own):
                self._collect_without_machine(claim)
            elif listed is not None and alive:
                self._collect_without_node(claim, own, listed)

    def _collect_without_machine(self, claim: Claim) -> None:
        instance = self.env.cloud.get(claim.name)
        if instance is not None and instance.may_belong_to(claim):
            return
        self._delete_claim(claim, cause="machine_gone", why="its agent pool does not exist any more")

    def _collect_without_node(self, claim: Claim, own: Sequence[Obj], instance: Instance) -> None:
        limit = self.env.settings.node_repair_timeout
        if own or limit <= 0 or instance.state.replaces_nodes:
            self._node_missing_since.pop(claim.uid, None)
            return
        now = self.env.clock.monotonic()
        since = self._node_missing_since.setdefault(claim.uid, now)
        if now - since >= limit:
            why = f"its Node has been missing for {format_duration(limit)}"
            self._delete_claim(claim, cause="node_gone", why=why)

    def _delete_claim(self, claim: Claim, *, cause: str, why: str) -> None:
        what = f"{claim.kind} {claim.name}"
        with _alone(what):
            delete_claim(claim, self.env, cause=cause, message=f"{what} is deleted: {why}")

    # Nodes without claim and machine

    def _collect_nodes(self, instances: Sequence[Instance]) -> None:
        label = self.env.cloud.node_label
        listed = {(instance.name, instance.claim_uid) for instance in instances}
        strays = set()
        for node in self.env.nodes.ours():
            name = nodes.instance_name(node, label)
            if not name or not finalizer.present(node):
                continue
            machine = Instance(name, State.OTHER, nodes.labels_of(node))
            if (name, machine.claim_uid) in listed:
                continue
            uid = node["metadata"]["uid"]
            strays.add(uid)
            # The last moments of an orderly end look the same; only what is still there at the next sweep is stray.
            if uid in self._strays:
                with _alone(f"Node {nodes.name(node)}"):
                    self._collect_node(node, machine)
        self._strays = frozenset(strays)

    def _collect_node(self, node: Obj, machine: Instance) -> None:
        """``machine`` is what the Node says it is; another claim's machine may have taken its name since."""
        found = self.env.cloud.get(machine.name)
        if self._claimed(machine) or (found is not None and found.claim_uid == machine.claim_uid):
            return
        logger.warning("Node %s has neither a claim nor an agent pool and is removed", nodes.name(node))
        if not nodes.deleting(node):
            try:
                self.env.client.delete(resources.NODE, nodes.name(node), uid=node["metadata"]["uid"])
            except (NotFound, Conflict):
                return
        eviction.release_pods(node, self.env)
        if finalizer.remove(self.env.client, resources.NODE, node):
            self.env.metrics.nodes_terminated.inc()
