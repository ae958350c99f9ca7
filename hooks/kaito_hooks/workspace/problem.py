"""What stands against a Workspace as its specification has it: broken rules, and changes that are none to be made."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.children import inference
from kaito_hooks.workspace.decision.actions import Outcome
from kaito_hooks.workspace.decision.revision import Revision
from kaito_hooks.workspace.decision.snapshot import Snapshot
from kaito_hooks.workspace.rules import changes, validate
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.tuning.phase import goes_by_itself, has_succeeded

RULES_OF_THE_START = frozenset({"C3", "C4", "C5", "C6", "C7", "C9", "C13", "C25", "C38", "C46", "C47", "C48"})
"""Whether something may begin: a Catalog or a release that says otherwise later is no reason to neglect what runs."""
RULES_OF_THE_ENGINE = frozenset({"C34", "C35"})
"""Whether an engine may begin; as long as the one that runs is the one that is asked for, the same holds."""
RULES_OF_THE_TRAINING = frozenset({"C21", "C24", "C28", "C29", "C39", "C49"})
"""Whether and of what a model may be trained: no reason not to serve one that is."""


def problem_of(s: Snapshot, revision: Revision) -> Outcome | None:
    """The broken rules, or why the rules cannot be checked or the revision not recorded; None of what goes by itself
    whatever the rules say."""
    if goes_by_itself(s, revision):
        return None
    broken = validate.check(s.workspace, s.catalog, max_nodes=s.settings.max_nodes_per_workspace)
    begun = RULES_OF_THE_START if _was_taken_up(s) else frozenset()
    if has_succeeded(s, revision):
        begun |= RULES_OF_THE_TRAINING
    if inference.live_workload(s) is not None and inference.is_of_engine(s, revision.number):
        begun |= RULES_OF_THE_ENGINE
    broken = [problem for problem in broken if problem.rule not in begun]
    if broken:
        return Outcome("failed", validate.told(broken))
    if s.catalog is None:
        return Outcome("failed", s.catalog_problem or "there is no Catalog kaito; install the chart kaito again")
    return Outcome("failed", revision.conflict) if revision.conflict else None


def _was_taken_up(s: Snapshot) -> bool:
    """Whether the rules held when nodes were bought or chosen: only then does any of this exist, or has the status
    anything to say of a workload. Nodes and workload may both be lost since; they are to come again.
    """
    begun = s.claims or s.workspace.worker_nodes or inference.live_workload(s) is not None
    return bool(begun) or s.workspace.condition(conditions.INFERENCE_READY) is not None or _has_trained(s)


def _has_trained(s: Snapshot) -> bool:
    """Whether a tuning Job has started at some time. JobStarted alone may speak of the check before the purchase."""
    started = s.workspace.condition(conditions.JOB_STARTED) or {}
    tuning = (s.workspace.raw.get("status") or {}).get("tuning") or {}
    return started.get("status") == "True" or any(tuning.get(key) for key in ("training", "adapterImage", "failure"))


def forbidden_change(s: Snapshot, revision: Revision) -> Outcome | None:
    """The rules on changes that are broken against what was worked on so far, if that is known."""
    before = s.workspace.annotations.get(labels.REVISION_HASH)
    if before in (None, revision.hash):
        return None
    recorded = next(
        (r for r in s.revisions if (r["metadata"].get("annotations") or {}).get(labels.REVISION_HASH) == before), None
    )
    if recorded is None:
        return None
    broken = changes.check_change(Workspace.read(recorded.get("data") or {}), s.workspace)
    return Outcome("failed", validate.told(broken)) if broken else None
