"""One reconcile of one claim: the phases in their order, then at most one write of metadata and one of status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from kaito_hooks.api.claim import Claim, Step
from kaito_hooks.provisioner import nodes
from kaito_hooks.provisioner.claim_kind import ClaimKind, Stamp
from kaito_hooks.provisioner.errors import CloudError, OperationInProgress
from kaito_hooks.provisioner.outcome import Outcome
from kaito_hooks.provisioner.phases import finalizer
from kaito_hooks.provisioner.phases.deletion import delete_claim
from kaito_hooks.provisioner.phases.environment import Environment
from kaito_hooks.provisioner.phases.health import health
from kaito_hooks.provisioner.phases.initialization import initialization
from kaito_hooks.provisioner.phases.launch import ends_claim, launch
from kaito_hooks.provisioner.phases.liveness import liveness
from kaito_hooks.provisioner.phases.registration import registration, sizes
from kaito_hooks.provisioner.phases.replacement import let_go, take_over
from kaito_hooks.provisioner.phases.termination import termination
from kaito_hooks.provisioner.refusal_text import refusal_text
from kaito_hooks.runtime import Invalid, Key, NotFound, Obj, Result, now_rfc3339

logger = logging.getLogger(__name__)

Phase = Callable[[Claim, Environment], Outcome]

PHASES: Mapping[Step, Phase] = {"launched": launch, "registered": registration, "initialized": initialization}
_EVENT_REASONS: Mapping[Step, str] = {
    "launched": "Launched",
    "registered": "Registered",
    "initialized": "Initialized",
}


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Serves all claims of one kind.

    ``find`` reads the cache; ``adopts``: whether claims that we do not hold yet are taken.
    """

    kind: ClaimKind
    env: Environment
    find: Callable[[Key], Obj | None]
    adopts: bool = True

    def reconcile(self, key: Key) -> Result:
        """Look at the claim, do the next thing, say when to come back."""
        obj = self.find(key)
        if obj is None:
            return Result()
        claim = Claim.read(obj)
        if not self.kind.manages(claim):
            return Result()
        if claim.deleting:
            return self._terminate(claim) if finalizer.present(obj) else Result()
        if not finalizer.present(obj):
            if not self.adopts:
                return Result()
            try:
                obj = finalizer.add(self.env.client, self.kind.resource, obj)
            except NotFound:
                return Result()
        return self._advance(obj)

    def _advance(self, obj: Obj) -> Result:
        draft = _Draft(self.kind, obj, Stamp(obj["metadata"].get("generation", 0), now_rfc3339(self.env.clock)))
        was_registered = draft.claim.steps["registered"].done
        requeue: list[float | None] = []
        for step, phase in PHASES.items():
            if draft.claim.steps[step].done:
                continue
            outcome = phase(draft.claim, self.env)
            self._announce(draft.claim, step, outcome)
            draft.record(step, outcome)
            requeue.append(outcome.requeue_after)
            if not outcome.done:
                break
        claim = draft.claim
        if claim.steps["registered"].done:
            deleted = next(filter(nodes.deleting, self.env.nodes.of_provider_id(claim.provider_id)), None)
            if deleted is not None:
                return self._node_deleted(claim, deleted)
            if was_registered:
                requeue.append(take_over(claim, self.env))
        watch = health if claim.steps["registered"].done else liveness
        self._refresh_sizes(draft)
        draft.write(self.env)
        if self._unwanted(draft.claim):
            return Result()
        left = watch(draft.claim, self.env)
        if left == 0.0:
            return Result()
        requeue.append(left)
        return Result(requeue_after=min((seconds for seconds in requeue if seconds is not None), default=None))

    def _node_deleted(self, claim: Claim, node: Obj) -> Result:
        """A Node that somebody deletes takes its claim with it, as the machine would bill without a Node; one that the
        cloud replaces does not.
        """
        try:
            replaced = let_go(claim, node, self.env)
        except CloudError as error:
            logger.warning(
                "%s %s: its Node is being deleted, and the cloud does not say why: %s", claim.kind, claim.name, error
            )
            return Result(requeue_after=self.env.settings.pool_poll_interval)
        if not replaced:
            message = f"{claim.kind} {claim.name} is deleted: its Node was deleted"
            delete_claim(claim, self.env, cause="node_deleted", message=message)
        return Result()

    def _unwanted(self, claim: Claim) -> bool:
        error = self.env.backoff.last_error(claim.uid)
        if error is None or not ends_claim(error, self.env):
            return False
        delete_claim(
            claim,
            self.env,
            cause="insufficient_capacity",
            reason="InsufficientCapacityError",
            message=f"{claim.kind} {claim.name} is deleted: {refusal_text(claim, error)}",
        )
        return True

    def _refresh_sizes(self, draft: _Draft) -> None:
        """Capacity follows the Node: a GPU may be reported long after the Node was Ready."""
        claim = draft.claim
        if claim.steps["registered"].done:
            for node in self.env.nodes.of_provider_id(claim.provider_id)[:1]:
                draft.set_fields(sizes(node))

    def _announce(self, claim: Claim, step: Step, outcome: Outcome) -> None:
        before = claim.steps[step]
        if outcome.keep or outcome.is_recorded_in(before):
            return
        if outcome.done:
            name = outcome.status.get("nodeName") or outcome.status.get("providerID") or claim.node_name
            text = f"{claim.kind} {claim.name} is {_EVENT_REASONS[step].lower()}: {name}"
            self.env.events.event(claim.object, "Normal", _EVENT_REASONS[step], text)
        elif outcome.error is not None:
            kind = "Normal" if isinstance(outcome.error, OperationInProgress) else "Warning"
            self.env.events.event(claim.object, kind, outcome.reason, outcome.message)  # type: ignore[arg-type]

    def _terminate(self, claim: Claim) -> Result:
        ending = termination(claim, self.env)
        if ending.gone:
            return Result()
        stamp = Stamp(claim.generation, now_rfc3339(self.env.clock))
        conditions = self.kind.terminating(
            claim.conditions,
            drained=ending.drained,
            detached=ending.detached,
            message=ending.message,
            stamp=stamp,
        )
        if conditions != list(claim.conditions):
            status = {**(claim.object.get("status") or {}), "conditions": conditions}
            try:
                current = self.env.client.get(self.kind.resource, claim.name)
                if current["metadata"]["uid"] == claim.uid:
                    current["status"] = status
                    self.env.client.update(self.kind.resource, current, subresource="status")
            except Invalid as error:
                # Claims that an older schema let in cannot be written any more, but they can still end.
                logger.info("the status of %s %s was refused: %s", claim.kind, claim.name, error)
            except NotFound:
                return Result()
        return Result(requeue_after=ending.requeue_after)


class _Draft:
    """The claim as this reconcile will leave it, and what of it is not written yet."""

    def __init__(self, kind: ClaimKind, obj: Obj, stamp: Stamp) -> None:
        self._kind = kind
        self._stamp = stamp
        self._read = obj
        self._metadata: dict[str, dict[str, str]] = {}
        self._object: Obj = {**obj, "metadata": deepcopy(obj["metadata"]), "status": deepcopy(obj.get("status") or {})}
        self._set_conditions(kind.begin(self._conditions, stamp))
        self.claim = Claim.read(self._object)

    def record(self, step: Step, outcome: Outcome) -> None:
        """Take over what a phase found."""
        for field, values in (("labels", outcome.labels), ("annotations", outcome.annotations)):
            if values:
                self._metadata.setdefault(field, {}).update(values)
                self._object["metadata"].setdefault(field, {}).update(values)
        self._object["status"].update(outcome.status)
        if not outcome.keep:
            self._set_conditions(self._kind.record(self._conditions, step, outcome, self._stamp))
        self.claim = Claim.read(self._object)

    def set_fields(self, fields: Mapping[str, Any]) -> None:
        """Set fields of the status."""
        self._object["status"].update(fields)
        self.claim = Claim.read(self._object)

    def write(self, env: Environment) -> None:
        """Metadata first: a claim that says Launched has its labels. Conflict if the claim is not what was read."""
        version = self._read["metadata"]["resourceVersion"]
        if self._metadata:
            patch = {"metadata": {**self._metadata, "resourceVersion": version, "uid": self.claim.uid}}
            version = env.client.patch(self._kind.resource, self.claim.name, patch)["metadata"]["resourceVersion"]
        if self._object["status"] != (self._read.get("status") or {}):
            self._object["metadata"]["resourceVersion"] = version
            env.client.update(self._kind.resource, self._object, subresource="status")

    @property
    def _conditions(self) -> list[dict[str, Any]]:
        return list(self._object["status"].get("conditions") or ())

    def _set_conditions(self, conditions: list[dict[str, Any]]) -> None:
        self._object["status"]["conditions"] = conditions
