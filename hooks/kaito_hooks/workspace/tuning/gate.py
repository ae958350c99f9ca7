"""Whether an adapter that has been pushed may be served: not one that is worse than its base on the rows held out."""

from __future__ import annotations

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.tuning.state import Record


def refusal(workspace: Workspace, record: Record) -> str:
    """Why the adapter is not served, and the way out; "" if it may be.

    Without rows held out nothing was measured, and nothing is held back. Losses are cross entropy per token.
    """
    tuned, base = record.metrics.get("evalLoss"), record.metrics.get("baseEvalLoss")
    if tuned is None or base is None or tuned <= base or labels.is_off(workspace.annotations, labels.TUNING_GATE):
        return ""
    return (
        f"the adapter is pushed, but not served: on the rows held out its loss is {tuned:.4g}, the base model's "
        f"{base:.4g}; train it otherwise, or annotate the Workspace with {labels.TUNING_GATE}={labels.OFF} to serve it"
    )


def is_served(workspace: Workspace, record: Record) -> bool:
    """Whether a server is wanted for what that job has made."""
    assert workspace.tuning is not None
    return record.succeeded and workspace.tuning.serve_result and not refusal(workspace, record)
