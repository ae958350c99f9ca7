"""What a training has reached: kept in the status, so that each milestone is one Event, whoever controls by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito_hooks.workspace.decision.actions import Note
from kaito_hooks.workspace.status.progress import is_number

LONGEST_CURVE = 400
"""Characters of the loss curve that are kept."""
LARGEST_STEP = 2**53
"""More is no number of a step, and JSON does not hold it exactly."""


def of(tuning: Mapping[str, Any], revision: str) -> dict[str, Any]:
    """``status.tuning.training`` of that revision; what an earlier one has reached does not count."""
    found = tuning.get("training") or {}
    return dict(found) if found.get("revision") == revision else {"revision": revision}


def follow(before: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[dict[str, Any], list[Note]]:
    """``status.tuning.training`` with what the Pod says on /progress, and an Event for each thing reached first.

    ``curve``: the loss from the first step on, as a line of block characters. ``checkpointStep``: the step after which
    the last checkpoint was written. ``evalLoss``, ``baseEvalLoss``: cross entropy per token on the rows held out.
    """
    after, notes = dict(before), []
    curve, step = said.get("curve"), said.get("checkpointStep")
    if isinstance(curve, str) and curve:
        after["curve"] = curve[:LONGEST_CURVE]
    if isinstance(step, int) and not isinstance(step, bool) and 0 < step <= LARGEST_STEP:
        after["checkpointStep"] = step
        if "checkpointStep" not in before:
            text = f"step {step}: the first checkpoint is written, from which a trainer that dies goes on"
            notes.append(Note("Normal", "CheckpointWritten", text, alone=True))
    metrics = said.get("metrics")
    losses = {
        key: metrics[key]
        for key in ("evalLoss", "baseEvalLoss")
        if isinstance(metrics, Mapping) and is_number(metrics.get(key))
    }
    after |= losses
    if "evalLoss" in losses and "evalLoss" not in before:
        base = f", the base model's is {losses['baseEvalLoss']:.4g}" if "baseEvalLoss" in losses else ""
        text = f"the loss on the rows held out is {losses['evalLoss']:.4g}{base}"
        notes.append(Note("Normal", "Evaluated", text, alone=True))
    return after, notes
