"""MachineReady and NodeClaimReady of a Workspace whose phase has nothing to do with its claims."""

from __future__ import annotations

from collections.abc import Sequence

from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.status.conditions import Verdict
from kaito_hooks.workspace.supply.decide import ClaimProgress


def as_they_are(s: Snapshot, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What the two conditions say that were said before, and of which nobody has anything to say among ``verdicts``."""
    found = []
    for kind, condition in conditions.CLAIMS_READY.items():
        if s.workspace.condition(condition) is None or any(verdict.type == condition for verdict in verdicts):
            continue
        ours = [claim for claim in s.claims if claim.kind == kind]
        late = ", ".join(claim.name for claim in ours if not claim.ready)
        if all(claim.deleting for claim in ours):
            found.append(conditions.no_claims(kind, [claim.name for claim in ours]))
        elif late:
            found.append(conditions.claims_ready(ClaimProgress("pending", f"waiting for {late}"), kind))
        else:
            found.append(conditions.claims_ready(ClaimProgress("ready"), kind))
    return found
