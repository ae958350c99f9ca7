"""The report of a check, and how it is kept within what a termination message may hold."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

TERMINATION_LIMIT = 4096
"""Bytes that the kubelet keeps of a termination message."""

_SHORTEST = 120
_FILES = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token lengths of the rows to train on; ``cut_share``: of rows longer than max_length, 0 to 1."""

    p50: int
    p95: int
    max: int
    cut_share: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. ``problems`` refuse the training; ``reason`` is the first one's, a word for conditions."""

    form: str | None = None
    files: tuple[str, ...] = ()
    training_rows: int = 0
    evaluation_rows: int = 0
    skipped_rows: int = 0
    tokens: Tokens | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reason: str = ""
    max_length: int | None = None
    tokens_per_epoch: int | None = None
    estimated_steps: int | None = None

    def document(self) -> dict[str, Any]:
        """The report with the names that users and the controller know."""
        tokens = self.tokens
        return {
            "form": self.form,
            "files": list(self.files),
            "rows": {
                "training": self.training_rows,
                "evaluation": self.evaluation_rows,
                "skipped": self.skipped_rows,
            },
            "tokens": tokens
            and {
                "p50": tokens.p50,
                "p95": tokens.p95,
                "max": tokens.max,
                "cutShare": round(tokens.cut_share, 4),
            },
            "problems": list(self.problems),
            "warnings": list(self.warnings),
            "reason": self.reason,
            "maxLength": self.max_length,
            "tokensPerEpoch": self.tokens_per_epoch,
            "estimatedSteps": self.estimated_steps,
        }

    def text(self) -> str:
        """The report as JSON that UTF-8 can hold: half of a surrogate pair, of a file's name, say, is escaped."""
        written = json.dumps(self.document(), ensure_ascii=False)
        return written.encode(errors="backslashreplace").decode()

    def termination_message(self, limit: int = TERMINATION_LIMIT) -> str:
        """The report in at most ``limit`` bytes: names of files, then warnings, then the last problems go first."""
        report = self
        while len(report.text().encode()) > limit:
            shorter = report._shorter()
            if shorter == report:
                break
            report = shorter
        return report.text()

    def _shorter(self) -> Report:
        if len(self.files) > _FILES:
            return replace(self, files=(*self.files[: _FILES - 1], f"and {len(self.files) - _FILES + 1} more"))
        if len(self.warnings) > 1:
            return replace(self, warnings=self.warnings[:-1])
        if len(self.problems) > 1:
            return replace(self, problems=self.problems[:-1])
        return replace(
            self,
            files=tuple(map(_halved, self.files)),
            warnings=tuple(map(_halved, self.warnings)),
            problems=tuple(map(_halved, self.problems)),
        )


def _halved(sentence: str) -> str:
    return sentence if len(sentence) <= _SHORTEST else sentence[: max(_SHORTEST, len(sentence) // 2) - 3] + "..."
