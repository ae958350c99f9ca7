"""Write what a plan asks for, action by action, and its status.

Every write is safe to repeat and safe against a stale cache: claims and children are POSTed under names that only this
Workspace uses, deletes carry a uid, status carries the resourceVersion that was decided upon, the finalizer moves by a
JSON patch with a test. A write that the API server refuses for good becomes a Refusal, which the next plan shows to the
user; anything else is raised and comes back with the queue's back-off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import singledispatchmethod
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.runtime import (
    AlreadyExists,
    ApiError,
    BadRequest,
    Client,
    Clock,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Obj,
    Resource,
)
from kaito_hooks.workspace.children import upkeep
from kaito_hooks.workspace.decision import refusals
from kaito_hooks.workspace.decision.actions import (
    Action,
    Adopt,
    ApplyChild,
    BuyClaim,
    CopyConfigMap,
    CreateChild,
    Delete,
    LabelNode,
    Release,
)
from kaito_hooks.workspace.decision.snapshot import Memory, Refusal, Snapshot
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.metrics import WorkspaceMetrics
from kaito_hooks.workspace.purchases.claims import MAX_SALT
from kaito_hooks.workspace.resources import (
    CHILD_RESOURCES,
    CLAIM_RESOURCES,
    CONFIG_MAP,
    CONTROLLER_REVISION,
    JOB,
    NODE,
    WORKSPACE,
)

logger = logging.getLogger(__name__)

FIELD_MANAGER = "kaito"
REFUSED = (Invalid, Forbidden, BadRequest)
"""What trying again at once would not help against."""


def delete(client: Client, action: Delete, *, metrics: WorkspaceMetrics) -> None:
    """Delete an object, if it still is the one with that uid; a claim counts as given back."""
    resource = CLAIM_RESOURCES.get(action.kind) or CHILD_RESOURCES[action.kind]
    try:
        client.delete(
            resource,
            action.name,
            namespace=action.namespace or None,
            uid=action.uid,
            propagation=("Foreground" if action.foreground else "Background") if action.namespace else None,
        )
    except (NotFound, Conflict):
        # Gone, or already another object: the next look tells.
        return
    if action.kind in CLAIM_RESOURCES:
        metrics.released(action.kind, action.uid)


class Writer:
    """Writes one plan of that Snapshot; ``refusal_pause`` is how many seconds a refused write waits.

    ``metrics`` counts what was written.

    What it has learned on the way: ``superseded``, resourceVersions of the Workspace that it replaced; ``refused``,
    whether the API server refuses what the plan wanted; ``gone``: the Workspace, and with it the rest of the plan;
    ``held``: the Workspace cannot be written, and the rest of the plan waits for that.
    """

    def __init__(
        self,
        client: Client,
        s: Snapshot,
        *,
        memories: Memories,
        clock: Clock,
        refusal_pause: float,
        metrics: WorkspaceMetrics,
    ) -> None:
        self._client, self._s, self._memories, self._clock, self._metrics = client, s, memories, clock, metrics
        self._refusal_pause = timedelta(seconds=refusal_pause)
        self._version = str(s.workspace.raw["metadata"].get("resourceVersion", ""))
        self.superseded: set[str] = set()
        self.refused = False
        self.gone = False
        self.held = False

    @singledispatchmethod
    def perform(self, action: Action) -> None:
        """Carry out one action."""
        raise TypeError(f"unknown action {action!r}")

    @perform.register
    def _(self, action: Adopt) -> None:
        metadata = self._s.workspace.raw["metadata"]
        patch: list[Obj] = [{"op": "test", "path": "/metadata/resourceVersion", "value": self._version}]
        finalizers = list(self._s.workspace.finalizers)
        if labels.WORKSPACE_FINALIZER not in finalizers:
            finalizers.append(labels.WORKSPACE_FINALIZER)
            patch.append({"op": "add", "path": "/metadata/finalizers", "value": finalizers})
        if action.annotations:
            annotations = {**(metadata.get("annotations") or {}), **action.annotations}
            patch.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
        self._patch_workspace(action, patch)

    @perform.register
    def _(self, action: Release) -> None:
        finalizers = self._s.workspace.finalizers
        index = finalizers.index(labels.WORKSPACE_FINALIZER)
        path = f"/metadata/finalizers/{index}"
        self._patch_workspace(
            action,
            [
                {"op": "test", "path": path, "value": labels.WORKSPACE_FINALIZER},
                {"op": "remove", "path": path},
            ],
        )
        self.gone = not self.held

    def _patch_workspace(self, action: Adopt | Release, patch: list[Obj]) -> None:
        try:
            self._wrote(self._patch_tested(WORKSPACE, self._s.workspace.name, patch))
        except NotFound:
            logger.debug("the Workspace is gone already")
            self.gone = True
        except REFUSED as error:
            self._refuse(refusals.name_of(action), error)
            self.held = True

    def _patch_tested(self, resource: Resource, name: str, patch: list[Obj]) -> Obj:
        """A JSON patch of an object in the Workspace's namespace; Conflict when one of its tests fails."""
        try:
            return self._client.patch(resource, name, patch, namespace=self._s.workspace.namespace, kind="json")
        except Invalid as error:
            if (error.details or {}).get("causes"):
                raise
            # A 422 without causes is what a failed test looks like: somebody else wrote first.
            raise Conflict(error.message, status=409, reason="Conflict") from error

    def _wrote(self, written: Obj) -> None:
        """The Workspace has a new version; a write that changed nothing keeps the old one."""
        version = str(written["metadata"]["resourceVersion"])
        if version != self._version:
            self.superseded.add(self._version)
            self._version = version

    @perform.register
    def _(self, action: BuyClaim) -> None:
        resource, name = CLAIM_RESOURCES[action.claim["kind"]], action.claim["metadata"]["name"]
        try:
            self._note_purchase(action, self._client.create(resource, action.claim))
            self._metrics.claims_created.labels(resource.kind).inc()
        except AlreadyExists:
            self._meet_claim(action, self._existing(resource, name))
        except NotFound as error:
            self._refuse(f"{resource.kind}/{name}", error)
        except REFUSED as error:
            self._refuse(f"{resource.kind}/{name}", error)

    def _note_purchase(self, action: BuyClaim, claim: Obj) -> None:
        name, uid, now = claim["metadata"]["name"], claim["metadata"]["uid"], self._clock.now()

        def bought(memory: Memory) -> Memory:
            return replace(memory, purchases=memory.purchases.buy(name, uid, slot=action.slot, now=now))

        self._remember(bought)

    def _meet_claim(self, action: BuyClaim, found: Obj) -> None:
        """Ours (a cache that is behind, another controller), or by chance somebody else's: then another name. One whose
        labels are gone, and say nothing else, is ours, too: its name is of our identity, and another one would bill
        beside it.
        """
        ws, name = self._s.workspace, f"{found['kind']}/{found['metadata']['name']}"
        marks = found["metadata"].get("labels") or {}
        ours = {labels.WORKSPACE: ws.name, labels.WORKSPACE_NAMESPACE: ws.namespace}
        if all(marks.get(label) == value for label, value in ours.items()):
            self._note_purchase(action, found)
            return
        if all(marks.get(label, value) == value for label, value in ours.items()):
            wanted = " and ".join(f"{label}={value}" for label, value in ours.items())
            text = f"{name} has lost the labels that say whose it is: give it {wanted} again, or delete it"
            self._refuse(name, ApiError(text), message=text)
            return
        used = self._s.memory.salts.get(action.slot, 0)
        if used >= MAX_SALT:
            self._refuse(name, ApiError(f"{name} belongs to somebody else"))
            return
        self._remember(lambda m: replace(m, salts={**m.salts, action.slot: used + 1}))
        self.refused = True

    @perform.register
    def _(self, action: LabelNode) -> None:
        patch = {"metadata": {"labels": {labels.ACCELERATOR: labels.ACCELERATOR_NVIDIA}}}
        try:
            self._client.patch(NODE, action.node, patch)
        except NotFound:
            return
        except REFUSED as error:
            self._refuse(refusals.name_of(action), error)
            return
        now = self._clock.now()
        self._remember(lambda m: replace(m, labelled={**m.labelled, action.node: now}))

    @perform.register
    def _(self, action: CreateChild) -> None:
        resource, name = CHILD_RESOURCES[action.child["kind"]], action.child["metadata"]["name"]
        reference = upkeep.reference(action.child)
        try:
            written = self._client.create(resource, action.child)
        except AlreadyExists:
            found = self._existing(resource, name, namespace=self._s.workspace.namespace)
            if upkeep.is_owned(found, self._s.workspace.uid):
                if resource == CONTROLLER_REVISION:
                    # Its name says what it holds, and that cannot be changed.
                    return
                if resource == JOB and labels.WORKSPACE not in (found["metadata"].get("labels") or {}):
                    # No cache has it, and this process may not change Jobs.
                    message = upkeep.unlabelled(found, self._s.workspace)
                    self._refuse(reference, ApiError(message), message=message)
                    return
                if resource == JOB:
                    # A Job's Pods cannot be changed: it is on its way into the cache, or out of the API server.
                    raise Conflict(f"{name} exists already", status=409, reason="Conflict") from None
                self._apply(ApplyChild(action.child, found["metadata"]["uid"]), found)
            else:
                message = upkeep.foreign(found, self._s.workspace)
                self._refuse(reference, ApiError(message), message=message)
        except REFUSED as error:
            self._refuse(reference, error)
        else:
            self._settle(action.child, written)

    @perform.register
    def _(self, action: ApplyChild) -> None:
        resource, metadata = CHILD_RESOURCES[action.child["kind"]], action.child["metadata"]
        self._apply(action, self._existing(resource, metadata["name"], namespace=metadata["namespace"]))

    def _existing(self, resource: Resource, name: str, *, namespace: str | None = None) -> Obj:
        """An object that was there a moment ago; Conflict when it has gone since."""
        try:
            return self._client.get(resource, name, namespace=namespace)
        except NotFound as error:
            raise Conflict(str(error), status=409, reason="Conflict") from error

    def _apply(self, action: ApplyChild, found: Obj) -> None:
        """Server-side apply onto the object that was observed, and no other.

        A POST makes its fields ours as an update, and an apply takes back only what an apply gave; so ownership of
        what we POSTed moves to the applier first, as ``kubectl apply --server-side`` does with its own earlier writes.
        """
        resource, metadata = CHILD_RESOURCES[action.child["kind"]], action.child["metadata"]
        if found["metadata"]["uid"] != action.uid:
            raise Conflict(f"{upkeep.reference(found)} is another object", status=409, reason="Conflict")
        child = upkeep.as_scaled(action.child, found)
        owners = found["metadata"].get("managedFields") or []
        if (moved := upkeep.owned_by_apply(owners, applier=FIELD_MANAGER)) != owners:
            patch: list[Obj] = [
                {"op": "test", "path": "/metadata/uid", "value": action.uid},
                {"op": "replace", "path": "/metadata/managedFields", "value": moved},
                {
                    "op": "replace",
                    "path": "/metadata/resourceVersion",
                    "value": found["metadata"]["resourceVersion"],
                },
            ]
            found = self._patch_tested(resource, metadata["name"], patch)
        # With its version: replicas that somebody sets in between are not taken back.
        version = found["metadata"]["resourceVersion"]
        wanted = {**child, "metadata": {**metadata, "uid": action.uid, "resourceVersion": version}}
        try:
            written = self._client.apply(resource, wanted, field_manager=FIELD_MANAGER)
        except REFUSED as error:
            self._refuse(upkeep.reference(child), error)
        else:
            self._settle(child, written)

    def _settle(self, wanted: Obj, written: Obj) -> None:
        """Remember what the API server made of a child, if it is not what we asked for: it must not be asked again."""
        if upkeep.contains(written, wanted):
            return
        reference, as_stored = upkeep.reference(wanted), upkeep.settled_as(written, wanted)
        self._remember(lambda m: replace(m, settled={**m.settled, reference: as_stored}))

    @perform.register
    def _(self, action: Delete) -> None:
        try:
            delete(self._client, action, metrics=self._metrics)
        except REFUSED as error:
            message = f"{action.kind}/{action.name} could not be deleted: {error.message}"
            self._refuse(refusals.name_of(action), error, message=message)

    @perform.register
    def _(self, action: CopyConfigMap) -> None:
        try:
            self._client.create(CONFIG_MAP, action.config_map)
        except AlreadyExists:
            return
        except REFUSED as error:
            self._refuse(refusals.name_of(action), error)

    def write_status(self, wanted: dict[str, Any]) -> None:
        """Write the status, if the Workspace still is what was decided upon."""
        raw = self._s.workspace.raw
        metadata = {**raw["metadata"], "resourceVersion": self._version}
        try:
            changed = {**raw, "metadata": metadata, "status": wanted}
            self._wrote(self._client.update(WORKSPACE, changed, subresource="status"))
            self._metrics.wrote(raw.get("status") or {}, wanted)
        except NotFound:
            logger.debug("the Workspace is gone already")

    def _refuse(self, what: str, error: ApiError, *, message: str = "") -> None:
        refusal = Refusal(
            message or f"{what} could not be written: {error.message}",
            self._clock.now() + self._refusal_pause,
        )
        known = self._s.memory.refusals.get(what)
        if known is not None and self._clock.now() < known.retry_at:
            # This plan knew of it; the next one is due when that is over.
            return
        self._remember(lambda m: replace(m, refusals={**m.refusals, what: refusal}))
        self.refused = True

    def _remember(self, how: Callable[[Memory], Memory]) -> None:
        """Change what is remembered of the Workspace."""
        self._memories.change(self._s.workspace.uid, how)
