"""Whether a run still learns: two optimizer steps in a row with a loss or a gradient that is not finite end it.

One such step may be an accident of one row; after two of them the weights themselves are lost. Where gradients are
scaled for float16, overflowing ones are how the scale is found: their step is skipped and says nothing, until the scale
itself has vanished.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

LIMIT = 2
_VANISHED = 1.0


class Health:
    """Counts steps that were not finite. The losses stay on their device until the step ends: one wait, not many."""

    def __init__(self) -> None:
        self.broken_steps = 0
        self.last = ""
        self._loss: torch.Tensor | None = None
        self._norm = 0.0

    @property
    def broken(self) -> bool:
        """Whether the last step was not finite, so that its weights are not worth a checkpoint."""
        return self.broken_steps > 0

    @property
    def over(self) -> bool:
        """Whether the run is lost."""
        return self.broken_steps >= LIMIT

    def see_loss(self, loss: torch.Tensor) -> None:
        """Of one micro-batch, a tensor without dimensions."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss

    def see_gradients(self, parameters: Iterable[torch.nn.Parameter], *, scaler: Any) -> None:
        """Before the optimizer's step. ``scaler``: a torch.amp.GradScaler or None."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if scaler is not None and float(scaler.get_scale()) >= _VANISHED:
            self._norm = 0.0
        else:
            self._norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def end_step(self) -> None:
        """After the optimizer's step."""
        loss = float(self._loss) if self._loss is not None else 0.0
        self._loss = None
        finite = torch.isfinite(torch.tensor([loss, self._norm])).tolist()
        self.last = f"the loss is {loss}" if not finite[0] else f"the gradient's norm is {self._norm}"
        self.broken_steps = 0 if all(finite) else self.broken_steps + 1
