"""What was measured step by step, over all starts of a training: kept in checkpoints, so that no restart changes it.

The trainer counts from its own start and forgets at each line of its log. It is asked for a line at every optimizer
step; the lines that are kept are made here, and are the same whether a restart came between them or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

_FILE = "meters.json"
_MEANS = frozenset({"loss", "entropy", "mean_token_accuracy", "aux_loss"})
_TOKENS = "num_tokens"

Line = dict[str, float]


@dataclass(slots=True)
class Meters:
    """``loss``: the sum of the ``steps`` losses. ``sums`` and ``newest``: of the ``unlogged`` steps after a line.

    ``tokens``: all that were trained on; ``earlier_tokens`` of them by the starts before this one.
    """

    steps: int = 0
    loss: float = 0.0
    tokens: float = 0.0
    earlier_tokens: float = 0.0
    unlogged: int = 0
    sums: Line = field(default_factory=dict)
    newest: Line = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Path) -> Meters:
        """As they were when the checkpoint was written; at zero where an earlier release wrote it."""
        if not (checkpoint / _FILE).exists():
            return cls()
        found = cls(**json.loads((checkpoint / _FILE).read_text()))
        found.earlier_tokens = found.tokens
        return found

    def keep(self, checkpoint: Path) -> None:
        """Writes them into a checkpoint."""
        (checkpoint / _FILE).write_text(json.dumps(asdict(self)))

    def total(self, line: Mapping[str, float]) -> Line:
        """The trainer's line with the tokens of earlier starts."""
        return {key: value + self.earlier_tokens if key.endswith(_TOKENS) else value for key, value in line.items()}

    def add(self, step: Mapping[str, float]) -> None:
        """The line of one optimizer step."""
        self.steps += 1
        self.unlogged += 1
        self.loss += step["loss"]
        self.tokens = step.get(_TOKENS, self.tokens)
        for key, value in step.items():
            if key in _MEANS:
                self.sums[key] = self.sums.get(key, 0.0) + value
            else:
                self.newest[key] = value

    def line(self) -> Line:
        """The means of the steps since the last line, and the newest of what is no mean."""
        means = {key: value / self.unlogged for key, value in self.sums.items()}
        made = {**self.newest, **means}
        self.unlogged = 0
        self.sums, self.newest = {}, {}
        return made

    @property
    def mean_loss(self) -> float:
        """Of all steps."""
        return self.loss / max(1, self.steps)
