"""What a check found out about a tuning: read from its termination message, and told in one line.

The message is written by the image ``check`` of the tuning image. Nothing of it is trusted to have the type that the
status needs: a field of another type is left out, so that the API server takes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito_hooks.workspace.status import pods, progress

MOST_TEXTS = 20
"""How many sentences or files of one list are kept."""
TEXTS = ("form", "reason")
LISTS = ("files", "problems", "warnings")
NUMBERS = ("maxLength", "tokensPerEpoch", "estimatedSteps")
PARTS = {"rows": ("training", "evaluation", "skipped"), "tokens": ("p50", "p95", "max")}
FIELDS = (*TEXTS, *LISTS, *NUMBERS, *PARTS)
"""The fields of a report in the status."""
_LARGEST = 2**63 - 1


def read(message: str) -> dict[str, Any]:
    """The report in a termination message; what says nothing is left out, and all of it if there is none."""
    return typed(progress.read(message) or {})


def typed(said: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report has the types of the status."""
    found: dict[str, Any] = {key: pods.short(said[key]) for key in TEXTS if isinstance(said.get(key), str)}
    for key in LISTS:
        values = said.get(key)
        if isinstance(values, list):
            found[key] = [pods.short(text) for text in values[:MOST_TEXTS] if isinstance(text, str)]
    found |= _whole(said, NUMBERS)
    for key, numbers in PARTS.items():
        part = said.get(key)
        if isinstance(part, Mapping):
            share = part.get("cutShare") if key == "tokens" else None
            found[key] = _whole(part, numbers) | ({"cutShare": share} if progress.is_number(share) else {})
    return {key: value for key, value in found.items() if value or value == 0}


def sentence(report: Mapping[str, Any]) -> str:
    """Why the tuning is refused: ``DatasetInvalid: row 3 has no prompt; row 7 has no prompt``; "" if it is not."""
    reason, problems = report.get("reason"), "; ".join(report.get("problems") or ())
    return f"{reason}: {problems}" if reason and problems else problems or reason or ""


def summary(report: Mapping[str, Any]) -> str:
    """What there is to tell of data that can be trained: rows, lengths, steps, warnings."""
    return "; ".join(part for part in (_rows(report), _tokens(report), _steps(report), *_warnings(report)) if part)


def _rows(report: Mapping[str, Any]) -> str:
    rows = report.get("rows") or {}
    parts = [
        f"{rows[key]:,} {words}"
        for key, words in (("training", "rows to train"), ("evaluation", "to evaluate"), ("skipped", "skipped"))
        if rows.get(key)
    ]
    form = f" as {report['form']}" if report.get("form") and parts else ""
    return ", ".join(parts) + form


def _tokens(report: Mapping[str, Any]) -> str:
    tokens = report.get("tokens") or {}
    if not {"p95", "max"} <= tokens.keys():
        return ""
    cut = tokens.get("cutShare") or 0
    text = f"95 % of the rows have at most {tokens['p95']:,} tokens, the longest {tokens['max']:,}"
    return text + (f", {100 * cut:.2g} % are cut" if cut else "")


def _steps(report: Mapping[str, Any]) -> str:
    steps, tokens = report.get("estimatedSteps"), report.get("tokensPerEpoch")
    about = f"about {steps:,} steps" if steps else ""
    return f"{about}, {tokens:,} tokens an epoch".removeprefix(", ") if tokens else about


def _warnings(report: Mapping[str, Any]) -> list[str]:
    return [f"warning: {text}" for text in report.get("warnings") or ()]


def _whole(said: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, int]:
    values = {key: said.get(key) for key in keys}
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    }
