"""NodeClaim, karpenter.sh/v1: a step that is not done is Unknown, and False only when something is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaito_hooks.api import claim as api
from kaito_hooks.api.claim import OUR_CLASS, Claim, Encoding, NodeClassRef, Step
from kaito_hooks.api.conditions import Status, find, set_condition
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.claim_kind import Condition, Stamp, has_workload_label
from kaito_hooks.provisioner.outcome import Outcome, Progress
from kaito_hooks.runtime import Resource

_STATUS: dict[Progress, Status] = {Progress.DONE: "True", Progress.WAITING: "Unknown", Progress.BROKEN: "False"}


@dataclass(frozen=True, slots=True)
class NodeClaim:
    """The adapter for NodeClaims. ``node_class``: group and kind of the class whose claims are ours."""

    node_class: NodeClassRef = OUR_CLASS
    by_label: bool = False
    encoding: Encoding = api.NODE_CLAIM
    resource: Resource = resources.NODE_CLAIM

    def manages(self, claim: Claim) -> bool:
        """Of our class; with ``by_label`` any that carries a KAITO label, too.

        Claims older than the class's group have it empty.
        """
        found = claim.node_class
        ours = found is not None and found.kind == self.node_class.kind and found.group in (self.node_class.group, "")
        return ours or (self.by_label and has_workload_label(claim))

    def begin(self, conditions: Sequence[Condition], stamp: Stamp) -> list[Condition]:
        """Every step Unknown, awaiting reconciliation."""
        result = list(conditions)
        for name in self.encoding.step_conditions.values():
            if find(result, name) is None:
                result = _set(
                    result, name, "Unknown", api.AWAITING_RECONCILIATION, "object is awaiting reconciliation", stamp
                )
        return self._ready(result, stamp)

    def record(self, conditions: Sequence[Condition], step: Step, outcome: Outcome, stamp: Stamp) -> list[Condition]:
        """True with the type as its reason; Unknown while waiting; False when broken."""
        name = self.encoding.step_conditions[step]
        reason, message = (name, "") if outcome.done else (outcome.reason, outcome.condition_message)
        return self._ready(_set(conditions, name, _STATUS[outcome.progress], reason, message, stamp), stamp)

    def terminating(
        self, conditions: Sequence[Condition], *, drained: bool, detached: bool, message: str, stamp: Stamp
    ) -> list[Condition]:
        """Drained, VolumesDetached, then InstanceTerminating."""
        result = list(conditions)
        waiting: list[tuple[str, bool, str]] = [("Drained", drained, "Draining")]
        if drained:
            waiting.append(("VolumesDetached", detached, "AwaitingVolumeDetachment"))
        for name, done, reason in waiting:
            status: Status = "True" if done else "Unknown"
            result = _set(result, name, status, name if done else reason, "" if done else message, stamp)
        if drained and detached:
            result = _set(result, "InstanceTerminating", "True", "InstanceTerminating", message, stamp)
        return result

    def _ready(self, conditions: Sequence[Condition], stamp: Stamp) -> list[Condition]:
        states = {
            name: (find(conditions, name) or {}).get("status", "Unknown")
            for name in self.encoding.step_conditions.values()
        }
        waiting = ", ".join(f"{name}={status}" for name, status in states.items() if status != "True")
        if not waiting:
            return _set(conditions, api.READY, "True", api.READY, "", stamp)
        if "False" in states.values():
            return _set(conditions, api.READY, "False", "UnhealthyDependents", waiting, stamp)
        return _set(conditions, api.READY, "Unknown", "ReconcilingDependents", waiting, stamp)


def _set(
    conditions: Sequence[Condition], type: str, status: Status, reason: str, message: str, stamp: Stamp
) -> list[Condition]:
    return set_condition(
        conditions,
        type=type,
        status=status,
        reason=reason,
        message=message,
        generation=stamp.generation,
        now=stamp.now,
    )
