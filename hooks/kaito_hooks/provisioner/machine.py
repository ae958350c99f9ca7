"""Machine, karpenter.sh/v1alpha5: a step that is not done is False, whatever it waits for; Ready is False until all are
True.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kaito_hooks.api import claim as api
from kaito_hooks.api.claim import Claim, Encoding, Step
from kaito_hooks.api.conditions import Status, find, set_condition
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.claim_kind import Condition, Stamp, has_workload_label
from kaito_hooks.provisioner.outcome import Outcome
from kaito_hooks.runtime import Resource


@dataclass(frozen=True, slots=True)
class Machine:
    """The adapter for Machines."""

    encoding: Encoding = api.MACHINE
    resource: Resource = resources.MACHINE

    def manages(self, claim: Claim) -> bool:
        """Machines have no class: a KAITO label makes them ours."""
        return has_workload_label(claim)

    def begin(self, conditions: Sequence[Condition], stamp: Stamp) -> list[Condition]:
        """Every step False, with a reason that says that nobody has looked yet."""
        result = list(conditions)
        for condition_type in self.encoding.step_conditions.values():
            if find(result, condition_type) is None:
                result = _set(result, condition_type, "False", api.AWAITING_RECONCILIATION, "", stamp)
        return self._ready(result, stamp)

    def record(self, conditions: Sequence[Condition], step: Step, outcome: Outcome, stamp: Stamp) -> list[Condition]:
        """True without a reason, or False with it."""
        status: Status = "True" if outcome.done else "False"
        reason, message = ("", "") if outcome.done else (outcome.reason, outcome.condition_message)
        return self._ready(_set(conditions, self.encoding.step_conditions[step], status, reason, message, stamp), stamp)

    def terminating(
        self, conditions: Sequence[Condition], *, drained: bool, detached: bool, message: str, stamp: Stamp
    ) -> list[Condition]:
        """A Machine has no conditions for its end, so Ready says it."""
        return _set(conditions, api.READY, "False", "InstanceTerminating", message, stamp)

    def _ready(self, conditions: Sequence[Condition], stamp: Stamp) -> list[Condition]:
        steps = [find(conditions, name) or {} for name in self.encoding.step_conditions.values()]
        waiting = next((step for step in steps if step.get("status") != "True"), None)
        if waiting is None:
            return _set(conditions, api.READY, "True", "", "", stamp)
        return _set(conditions, api.READY, "False", waiting.get("reason", ""), waiting.get("message", ""), stamp)


def _set(
    conditions: Sequence[Condition], type: str, status: Status, reason: str, message: str, stamp: Stamp
) -> list[Condition]:
    changed = set_condition(
        conditions,
        type=type,
        status=status,
        reason=reason,
        message=message,
        generation=stamp.generation,
        now=stamp.now,
    )
    # v1alpha5 has no observedGeneration; what the API server would prune would look like a change for ever.
    return [{key: value for key, value in c.items() if key != "observedGeneration" and value != ""} for c in changed]
