"""What the lifecycle engine must know of a claim's kind; machine.py and nodeclaim.py know it.

An adapter owns the resource, whether a claim is ours to serve, and how conditions are spelt. The engine asks nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim, Encoding, Step
from kaito_hooks.provisioner.outcome import Outcome
from kaito_hooks.runtime import Resource

Condition = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stamp:
    """When and for which generation a condition is written; ``now`` is RFC 3339."""

    generation: int
    now: str


class ClaimKind(Protocol):
    """Machine or NodeClaim."""

    @property
    def encoding(self) -> Encoding:
        """How a claim of this kind is spelt."""

    @property
    def resource(self) -> Resource:
        """Where the API serves it."""

    def manages(self, claim: Claim) -> bool:
        """Whether this provisioner serves the claim. Any other claim is never touched."""

    def begin(self, conditions: Sequence[Condition], stamp: Stamp) -> list[Condition]:
        """Conditions with every step that has none yet written as waiting."""

    def record(self, conditions: Sequence[Condition], step: Step, outcome: Outcome, stamp: Stamp) -> list[Condition]:
        """Conditions with that step, and then Ready, as the outcome says."""

    def terminating(
        self, conditions: Sequence[Condition], *, drained: bool, detached: bool, message: str, stamp: Stamp
    ) -> list[Condition]:
        """Conditions of a claim whose machine is being given back."""


def has_workload_label(claim: Claim) -> bool:
    """Whether a Workspace or RAGEngine controller made the claim, by its labels."""
    return labels.WORKSPACE in claim.labels or labels.RAG_ENGINE in claim.labels
