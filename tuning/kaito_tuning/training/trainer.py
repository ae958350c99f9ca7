"""TRL's SFTTrainer with eyes: which rows are in work, whether the loss is finite, when an evaluation begins."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import PrinterCallback
from transformers.optimization import GreedyLR
from trl import SFTTrainer

from kaito_tuning.process.stop import Stopped
from kaito_tuning.training.watcher import Watcher

_MEASURING_SCHEDULERS = (ReduceLROnPlateau, GreedyLR)


class Trainer(SFTTrainer):  # type: ignore[misc]
    """Trains as its base class does. ``rows`` says what was on the device last, such as "4 rows of 2,048 tokens".

    ``loading``: whether a checkpoint is being loaded, which ends with the first row that is trained on; to read rows is
    no part of it.
    """

    control: Any

    def __init__(self, *, watcher: Watcher, **options: Any) -> None:
        self.rows = ""
        self.loading = False
        self._watcher = watcher
        super().__init__(callbacks=[watcher], **options)
        self.remove_callback(PrinterCallback)  # it would print every step
        # TRL casts the adapters of quantised models to bfloat16; a checkpoint brings them back as float32, so that a
        # resumed run would differ, and gradient scaling for float16 refuses them.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        watcher.scaler = self.accelerator.scaler

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """The micro-batches of an optimizer step. Some state of a checkpoint is loaded only after the first of them."""
        loading, self.loading = self.loading, False
        samples = super().get_batch_samples(*args, **options)
        self.loading = loading
        return samples

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> torch.Tensor:
        """One micro-batch, forward and backward."""
        self.rows, self.loading = _shape(inputs), False
        loss: torch.Tensor = super().training_step(model, inputs, *args, **options)
        self._watcher.health.see_loss(loss)
        return loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """One batch of an evaluation."""
        self.rows = _shape(inputs)
        return super().prediction_step(model, inputs, *args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """Tells the phase for as long as it lasts.

        Random numbers that it draws are given back: a training that is continued without it learns the same. When the
        job is asked to stop amid it, steps that no checkpoint has are saved first. Raises Stopped.
        """
        self._watcher.evaluating(True)
        loading, self.loading = self.loading, False
        gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices=gpus):
                metrics: dict[str, float] = super().evaluate(*args, **options)
        except Stopped:
            if self._watcher.unsaved(self.state):
                self._save_checkpoint(self.model, trial=None)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)
            raise
        if self._watcher.owes_evaluation:
            self._watcher.owes_evaluation = False
            self._follow(metrics)
        self._watcher.evaluating(False)
        self.loading = loading
        return metrics

    def _follow(self, metrics: dict[str, float]) -> None:
        """Does what the library does after an evaluation amid the training, and not after the one that it begins with.

        The learning rate may follow what was measured, and the best checkpoint is looked for.
        """
        if isinstance(self.lr_scheduler, _MEASURING_SCHEDULERS):
            name = self.args.metric_for_best_model
            self.lr_scheduler.step(metrics[name if name.startswith("eval_") else f"eval_{name}"])
        self._determine_best_metric(metrics=metrics, trial=None)


def _shape(inputs: dict[str, Any]) -> str:
    """What ``input_ids`` [rows, tokens] are, for a sentence."""
    rows, tokens = inputs["input_ids"].shape
    return f"{rows} row{'s' if rows != 1 else ''} of {tokens:,} tokens"
