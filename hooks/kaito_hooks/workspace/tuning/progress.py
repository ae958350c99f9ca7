"""How far a training is, in a few words for ``kubectl get``: from what its Pod answers on /progress."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kaito_hooks.workspace.status.progress import is_number
from kaito_hooks.workspace.tuning.state import Record

_PHASES = {
    "Checking": "checking the data",
    "LoadingModel": "loading the model",
    "Evaluating": "evaluating",
    "Exporting": "exporting the adapter",
    "Pushing": "pushing the adapter",
    "Done": "trained",
    "Failed": "failed",
}


def describe(said: Mapping[str, Any]) -> str:
    """``epoch 1/3, 42 %, loss 1.23, 12 min left``; outside the training what is done instead."""
    phase = str(said.get("phase") or "")
    if phase in _PHASES:
        return _PHASES[phase]
    parts = [_epoch(said), _percent(said), _loss(said.get("metrics")), _left(said)]
    return ", ".join(part for part in parts if part)


def trouble(said: Mapping[str, Any]) -> str:
    """Why the push still waits, "" if nothing is wrong."""
    return " ".join(str(said.get("message") or "").split())[:600] if said.get("phase") == "Pushing" else ""


def done(record: Record) -> str:
    """What remains to say of a training that has ended."""
    return ", ".join(part for part in ("completed", _loss(record.metrics)) if part) if record.succeeded else "failed"


def _epoch(said: Mapping[str, Any]) -> str:
    epoch, epochs = said.get("epoch"), said.get("epochs")
    if not is_number(epoch) or not is_number(epochs) or not epochs:
        return ""
    whole = max(1, math.ceil(epochs))
    return f"epoch {min(whole, math.floor(epoch) + 1)}/{whole}"


def _percent(said: Mapping[str, Any]) -> str:
    percent = said.get("progressPercentage")
    return f"{percent:.0f} %" if is_number(percent) else ""


def _loss(metrics: object) -> str:
    loss = metrics.get("loss") if isinstance(metrics, Mapping) else None
    return f"loss {loss:.2f}" if is_number(loss) else ""


def _left(said: Mapping[str, Any]) -> str:
    seconds = said.get("estimatedRemainingSeconds")
    if not is_number(seconds):
        return ""
    left = int(seconds)
    if left < 60:
        return f"{left} s left"
    minutes = round(left / 60)
    return f"{minutes} min left" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min left"
