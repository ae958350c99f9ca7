"""The training from start to end: built, continued where an earlier start ended, measured on what was held back."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaito_tuning.errors import NonFiniteLoss, OutOfMemory, TrainingFailed
from kaito_tuning.process import checkpoints, recovery
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.progress import History, Progress
from kaito_tuning.training.build import build
from kaito_tuning.training.failures import explained, unloadable, unread
from kaito_tuning.training.job import TrainJob, TrainResult
from kaito_tuning.training.meters import Meters
from kaito_tuning.training.model import BaseModel
from kaito_tuning.training.settings import batch

if TYPE_CHECKING:
    from kaito_tuning.training.trainer import Trainer
    from kaito_tuning.training.watcher import Watcher

log = logging.getLogger(__name__)

Report = Callable[[Progress], None]
Tell = Callable[[str], None]


class _Unloadable(Exception):
    """The checkpoint cannot be loaded, and that is its own fault."""

    def __init__(self, checkpoint: Path, why: str) -> None:
        super().__init__(why)
        self.checkpoint = checkpoint
        self.why = why


def fit(
    job: TrainJob,
    report: Report,
    stop: StopRequest,
    *,
    history: History,
    tell: Tell = lambda _: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Trains, or continues from the newest complete checkpoint of the same key that can be loaded.

    ``tell`` gets a sentence for each that cannot. When memory runs out it starts again with half the rows at a time,
    once in the life of the job. Raises Stopped when it was asked to stop, and a TuningError, whatever a library raised,
    when it failed. The trained model's memory is free again when this returns.
    """
    past = recovery.read(job.output_dir, key=job.key)
    trained = False
    while True:
        try:
            return _attempt(job, report, stop, history, tell, halved=past.halved, trained=trained, monotonic=monotonic)
        except _Unloadable as error:
            trained = True
            sentence = checkpoints.set_aside(error.checkpoint, error.why, key=job.key)
            if job.processes > 1:  # the others wait for this one: all start again, which no checkpoint can fail twice
                recovery.write(job.output_dir, replace(past, failures=0))
                raise TrainingFailed(f"{sentence}, at the next start") from error
            _warn(tell, sentence)
        except OutOfMemory as error:
            if past.halved or not error.rows or batch(job.config.training) < 2:
                raise
            past = replace(past, halved=error.rows)
            recovery.write(job.output_dir, past)
            if job.processes > 1:  # the other processes wait in the step that failed: all of them start again
                raise TrainingFailed(f"{_halved(error.rows)} at the next start") from error
        # Not in the except clauses: there the error still holds the frames that hold the model.
        _release_memory()
        stop.check()


def _warn(tell: Tell, sentence: str) -> None:
    log.warning("%s", sentence)
    tell(sentence)


def _halved(rows: str) -> str:
    return f"out of memory with {rows}: micro-batch halved, gradient accumulation doubled"


def _attempt(
    job: TrainJob,
    report: Report,
    stop: StopRequest,
    history: History,
    tell: Tell,
    *,
    halved: str,
    trained: bool,
    monotonic: Callable[[], float],
) -> TrainResult:
    from kaito_tuning.training.watcher import Watcher

    warnings = [_halved(halved)] if halved else []
    base = _load(job)
    warnings.extend(base.warnings)
    report(Progress(phase="LoadingModel", message="preparing the rows"))
    watcher = Watcher(report, stop, history, key=job.key, processes=job.processes, monotonic=monotonic)
    try:
        trainer, arguments, template = build(job, base, watcher, warnings, halve=bool(halved))
    except Exception as error:
        raise explained(error, trained=False) from error
    with stop.deferred():
        result = _train(job, base, trainer, watcher, history, tell, trained=trained)
    del trainer, base
    _release_memory()
    return replace(
        result,
        chat_template=template.text if template is not None and template.own else None,
        warnings=tuple(dict.fromkeys(warnings)),
        settings=arguments,
    )


def _train(
    job: TrainJob, base: BaseModel, trainer: Trainer, watcher: Watcher, history: History, tell: Tell, *, trained: bool
) -> TrainResult:
    """``trained``: whether an optimizer step of this job was done in a start or an attempt before this one."""
    from peft import get_peft_model_state_dict

    from kaito_tuning.training.proof import fingerprint, learned

    start = fingerprint(trainer.model)
    try:
        resume = _checkpoint(job, trainer, tell)
    except OSError as error:
        raise unread(error) from error
    trainer.loading = resume is not None
    try:
        _steps(trainer, watcher, resume)
        if watcher.stopped:
            raise Stopped
        if watcher.health.broken:
            raise NonFiniteLoss(f"{watcher.health.last} at the last step; lower TrainingArguments.learning_rate")
        learned(trainer.model, start)
        if trainer.eval_dataset is not None:
            _evaluate(trainer)
        if job.processes > 1:
            trainer.end()
        lines = (*map(dict, trainer.state.log_history), _summary(trainer, watcher))
        return TrainResult(
            weights={name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(trainer.model).items()},
            lora=trainer.model.peft_config[trainer.model.active_adapter],
            dtype=base.dtype,
            model_type=base.model_type,
            steps=trainer.state.global_step,
            metrics=history.metrics() | _measured(lines),
            history=lines,
            warnings=(),
        )
    except Exception as error:
        if resume is not None and trainer.loading and (why := unloadable(error)):
            raise _Unloadable(resume, why) from error
        if trainer.loading:
            raise unread(error) from error
        trained = trained or resume is not None or watcher.steps > 0
        raise explained(error, trained=trained, rows=trainer.rows) from error


def _checkpoint(job: TrainJob, trainer: Trainer, tell: Tell) -> Path | None:
    """What to go on from; the first process puts the checkpoints in order before the others look."""
    if job.rank == 0:
        sentence = checkpoints.prepare(job.output_dir, key=job.key, processes=job.processes)
        last = recovery.read(job.output_dir, key=job.key).failures >= recovery.ATTEMPTS - 1
        damaged = checkpoints.verify(job.output_dir, key=job.key, last=last)
        for said in damaged:
            _warn(tell, said)
        if sentence and not damaged:
            log.info("%s", sentence)
    trainer.accelerator.wait_for_everyone()
    return checkpoints.newest(job.output_dir, key=job.key)


def _steps(trainer: Trainer, watcher: Watcher, resume: Path | None) -> None:
    """Every optimizer step that is left. A checkpoint of the last is only read: the library would do one too many."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    from kaito_tuning.training.proof import WEIGHTS

    if resume is not None:
        weights = load_file(resume / WEIGHTS)
        if weights.keys() != get_peft_model_state_dict(trainer.model).keys():  # of which the library only warns
            raise ValueError(f"the tensors of {WEIGHTS} have other names than the adapter's")
        state = TrainerState.load_from_json(str(resume / "trainer_state.json"))
        watcher.meters = Meters.of(resume)
        if state.global_step >= state.max_steps:
            set_peft_model_state_dict(trainer.model, weights)
            trainer.state = state
            trainer.loading = False
            watcher.replay(state)
            return
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def _summary(trainer: Trainer, watcher: Watcher) -> dict[str, Any]:
    """The line that ends the log: the mean loss of all steps."""
    state = trainer.state
    return {"train_loss": watcher.meters.mean_loss, "epoch": state.epoch, "step": state.global_step}


def _evaluate(trainer: Trainer) -> None:
    """The tuned model, unless the last step's evaluation has it, and the base model, on what was held back."""
    step = trainer.state.global_step
    if not any("eval_loss" in entry and entry["step"] == step for entry in trainer.state.log_history):
        trainer.evaluate()
    with trainer.model.disable_adapter():
        trainer.evaluate(metric_key_prefix="base_eval")


def _measured(lines: tuple[Mapping[str, Any], ...]) -> dict[str, float]:
    """The trainer's log as metrics."""
    from kaito_tuning.training.watcher import perplexity

    metrics: dict[str, float] = {}
    for entry in lines:
        for ours, theirs in (
            ("loss", "loss"),
            ("evalLoss", "eval_loss"),
            ("baseEvalLoss", "base_eval_loss"),
            ("tokens", "num_tokens"),
        ):
            if theirs in entry:
                metrics[ours] = float(entry[theirs])
    if "loss" in metrics and not math.isfinite(metrics["loss"]):
        raise NonFiniteLoss(f"the loss became {metrics['loss']}; lower TrainingArguments.learning_rate")
    if "evalLoss" in metrics:
        metrics["perplexity"] = perplexity(metrics["evalLoss"])
    return metrics


def _load(job: TrainJob) -> BaseModel:
    try:
        return job.load_base()
    except Exception as error:
        found = explained(error, trained=False)
        if isinstance(found, OutOfMemory):
            found = OutOfMemory("the memory does not suffice to load the model; choose a bigger instance type")
        raise found from error


def _release_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
