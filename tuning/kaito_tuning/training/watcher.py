"""What happens between the steps: progress, checkpoints by time, an end on request, an end when nothing is learned."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from kaito_tuning.errors import NonFiniteLoss
from kaito_tuning.process import checkpoints
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.progress import History, Progress
from kaito_tuning.training.health import Health
from kaito_tuning.training.meters import Meters

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_SECONDS = 600.0


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Of one training in one of ``processes`` processes, which decide together, or some would wait for others forever.

    ``steps``: the number of the last optimizer step that this process has seen the end of. ``stopped``: whether the
    training ended because somebody asked. ``owes_evaluation``: the training begins with that of an earlier start's
    last step. ``meters``: what was measured, over all starts.
    """

    def __init__(
        self,
        report: Callable[[Progress], None],
        stop: StopRequest,
        history: History,
        *,
        key: str,
        processes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = Health()
        self.meters = Meters()
        self.scaler: Any = None
        self.steps = 0
        self.stopped = False
        self.owes_evaluation = False
        self._report_progress = report
        self._stop = stop
        self._history = history
        self._key = key
        self._processes = processes
        self._monotonic = monotonic
        self._saved = self._stepped = monotonic()
        self._saved_step = -1
        self._log_due = False
        self._progress = Progress(phase="Training")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Continues the clocks where the trainer begins, and has the evaluation made that the last start owes."""
        self._saved_step = state.global_step
        self._saved = self._stepped = self._monotonic()
        self._history.on_step(state.global_step)
        self.replay(state)
        self.owes_evaluation = evaluation_owed(args, state)
        args.eval_on_start = (args.eval_on_start and state.global_step == 0) or self.owes_evaluation
        self._tell(args, state)

    def replay(self, state: Any) -> None:
        """Puts what earlier starts have logged into the history."""
        for entry in state.log_history:
            self._history.on_log(int(entry["step"]), entry, replayed=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Looks at the gradients."""
        self.health.see_gradients(model.parameters(), scaler=self.scaler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the run or saves, where that is due."""
        self.health.end_step()
        if self.health.over:
            raise NonFiniteLoss(
                f"{self.health.last} at step {state.global_step} of {state.max_steps}; "
                "lower TrainingArguments.learning_rate"
            )
        due = self._monotonic() - self._saved >= CHECKPOINT_EVERY_SECONDS
        self.stopped, due = self._agree(self._stop.asked, due)
        last = state.global_step >= state.max_steps
        # The trainer logs an epoch at its end, when the checkpoint of its last step is written already.
        self._log_due = control.should_log or last or (args.logging_strategy == "epoch" and _whole(state.epoch))
        control.should_log = True
        evaluates_next = args.eval_strategy == "epoch" and _whole(state.epoch)
        if self.stopped or due or last or evaluates_next:
            control.should_save = True
        if self.stopped:
            control.should_training_stop, control.should_evaluate = True, False
        self._guard(state, control)
        self.steps = state.global_step
        self._history.on_step(state.global_step)
        self._stepped = self._monotonic()
        self._tell(args, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation's time is no checkpoint's."""
        self._stepped = self._monotonic()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing is measured any more when the job was asked to stop."""
        if self.stopped:
            control.should_evaluate = False
        self._guard(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seals the checkpoint."""
        if self._processes > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.meters.keep(folder)
            checkpoints.seal(folder, key=self._key, processes=self._processes)
            checkpoints.remove_others(folder.parent)
        self._saved, self._saved_step = self._monotonic(), state.global_step
        self._history.on_checkpoint(state.global_step, self._saved - self._stepped)
        self._tell(args, state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends an evaluation when the job was asked to stop, in all processes behind the same batch."""
        if any(self._agree(self._stop.asked)):
            raise Stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Makes the lines that are kept of those of the steps, and passes them on.

        The line with which the trainer ends is left out: it is about this start alone.
        """
        entry = self.meters.total(logs or {})
        state.log_history.pop()
        if "loss" in entry:
            self.meters.add(entry)
            if not self._log_due:
                return
            entry = self.meters.line()
        elif "train_runtime" in entry:
            return
        state.log_history.append({**entry, "step": state.global_step})
        log.info("step %d: %s", state.global_step, ", ".join(f"{key} {value:.4g}" for key, value in entry.items()))
        if torch.cuda.is_available():
            entry["peak_gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
        self._history.on_log(state.global_step, entry)

    def evaluating(self, begins: bool) -> None:
        """Tells the phase: an evaluation begins, or the training goes on."""
        self._tell_again(phase="Evaluating" if begins else "Training")

    def unsaved(self, state: Any) -> bool:
        """Whether this start has trained steps that no checkpoint has and that one may have."""
        return not self.health.broken and 0 <= self._saved_step != state.global_step

    def _guard(self, state: Any, control: Any) -> None:
        """No checkpoint of weights that may be lost, and none over one that is whole: a crash amid it would tear it."""
        if control.should_save and (self.health.broken or self._saved_step == state.global_step):
            control.should_save = False

    def _agree(self, *mine: bool) -> list[bool]:
        """What any of the processes wants."""
        if self._processes == 1:
            return list(mine)
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
        wanted = torch.tensor(mine, dtype=torch.int32, device=device)
        torch.distributed.all_reduce(wanted, op=torch.distributed.ReduceOp.MAX)
        return [bool(value) for value in wanted.tolist()]

    def _tell(self, args: Any, state: Any) -> None:
        self._tell_again(
            phase="Training",
            progressPercentage=int(100 * state.global_step / state.max_steps) if state.max_steps else 0,
            currentStep=state.global_step,
            totalSteps=state.max_steps,
            epoch=round(float(state.epoch or 0.0), 2),
            epochs=float(args.num_train_epochs),
            estimatedRemainingSeconds=self._history.remaining_seconds(state.max_steps),
        )

    def _tell_again(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        self._report_progress(self._progress)


def evaluation_owed(args: Any, state: Any) -> bool:
    """Whether the settings evaluate after the step of a checkpoint, and that evaluation was not ended."""
    step = state.global_step
    if step == 0 or any("eval_loss" in entry and entry["step"] == step for entry in state.log_history):
        return False
    if args.eval_strategy == "epoch":
        return _whole(state.epoch) and bool(args.eval_delay <= state.epoch)
    return bool(args.eval_strategy == "steps" and step % state.eval_steps == 0 and args.eval_delay <= step)


def perplexity(loss: float) -> float:
    """e to the mean loss per token, in nats; of a loss above 50 that of 50, which no one can tell from it."""
    return math.exp(min(loss, 50.0))


def _whole(epoch: float | None) -> bool:
    return epoch is not None and abs(epoch - round(epoch)) < 1e-9
