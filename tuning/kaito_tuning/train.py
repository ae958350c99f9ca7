"""The training itself: TRL's SFTTrainer behind one function, with the traps of its releases closed.

- Trainable parameters are cast to float32 after TRL built the trainer (it casts QLoRA adapters to bfloat16), so that
  a resumed run continues bit for bit and float16 gradient scaling works.
- ``use_cache`` is off and no attention mask is passed when rows are packed, else packed documents see each other; a
  self-test proves it on the loaded model, and packing is switched off where it fails.
- SIGTERM sets ``stop``: a checkpoint after the current step, then Stopped, never a half-trained adapter that looks
  whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from kaito_tuning import checkpoints
from kaito_tuning.config import TuningConfig
from kaito_tuning.data import Data, as_dataset
from kaito_tuning.errors import ConfigInvalid, DatasetInvalid, NonFiniteLoss, OutOfMemory
from kaito_tuning.model import BaseModel, target_modules
from kaito_tuning.progress import Progress

CHECKPOINT_EVERY_SECONDS = 600.0
_FEWEST_PACKED_STEPS = 50


class Stopped(Exception):
    """The job was asked to stop; its newest checkpoint is complete."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What to train. ``key`` identifies configuration, data and base model; checkpoints of others are not resumed."""

    base: BaseModel
    config: TuningConfig
    data: Data
    output_dir: Path
    key: str


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained model (a PeftModel) and what was measured; ``history`` are the trainer's log lines."""

    model: Any
    steps: int
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def fit(
    job: TrainJob, report: Callable[[Progress], None], stop: Event, *, monotonic: Callable[[], float] = time.monotonic
) -> TrainResult:
    """Trains, or continues from the newest complete checkpoint of the same key.

    Raises Stopped when ``stop`` was set, OutOfMemory, NonFiniteLoss, ConfigInvalid or DatasetInvalid.
    """
    import torch

    warnings: list[str] = list(job.base.warnings)
    halved = False
    while True:
        try:
            return _fit_once(job, report, stop, warnings, halve=halved, monotonic=monotonic)
        except torch.cuda.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if halved or int(job.config.training.get("per_device_train_batch_size", 1)) < 2:
                raise OutOfMemory(
                    "the GPU's memory does not suffice; lower TrainingArguments.max_length or "
                    "per_device_train_batch_size, or choose a bigger instance type"
                ) from error
            halved = True
            warnings.append("out of GPU memory: micro-batch halved, gradient accumulation doubled")


def _fit_once(
    job: TrainJob,
    report: Callable[[Progress], None],
    stop: Event,
    warnings: list[str],
    *,
    halve: bool,
    monotonic: Callable[[], float],
) -> TrainResult:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = job.base.model, job.base.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    settings = _settings(job, warnings, halve=halve)
    lora = {key: value for key, value in job.config.lora.items() if key != "task_type"}
    names = [name for name, _ in model.named_modules()]
    lora["target_modules"], said = target_modules(
        lora.get("target_modules"), model_type=job.base.model_type, module_names=names
    )
    if said:
        warnings.append(said)
    try:
        arguments = SFTConfig(output_dir=str(job.output_dir), **settings)
        adapter = LoraConfig(task_type="CAUSAL_LM", **lora)
    except (TypeError, ValueError) as error:
        raise ConfigInvalid(f"training_config.yaml: {' '.join(str(error).split())[:500]}") from error

    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=as_dataset(job.data.training),
        eval_dataset=as_dataset(job.data.evaluation) if job.data.evaluation else None,
        processing_class=tokenizer,
        peft_config=adapter,
    )
    if len(trainer.train_dataset) == 0:
        raise DatasetInvalid(f"no row of {job.data.path.name} has anything to learn in {arguments.max_length} tokens")
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    watcher = _callback(report, stop, key=job.key, monotonic=monotonic)
    trainer.add_callback(watcher)

    resume = checkpoints.newest(job.output_dir, key=job.key)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if stop.is_set():
        raise Stopped
    metrics: dict[str, float] = {}
    for entry in trainer.state.log_history:
        for ours, theirs in (("loss", "loss"), ("evalLoss", "eval_loss"), ("tokens", "num_tokens")):
            if theirs in entry:
                metrics[ours] = float(entry[theirs])
    if "loss" not in metrics:
        metrics["loss"] = next(float(e["train_loss"]) for e in reversed(trainer.state.log_history) if "train_loss" in e)
    if not math.isfinite(metrics["loss"]):
        raise NonFiniteLoss(f"the loss became {metrics['loss']}; lower TrainingArguments.learning_rate")
    if "evalLoss" in metrics:
        metrics["perplexity"] = math.exp(min(metrics["evalLoss"], 50.0))
    if watcher.tokens_per_second:
        metrics["tokensPerSecond"] = round(watcher.tokens_per_second, 1)
    return TrainResult(
        model=trainer.model,
        steps=trainer.state.global_step,
        metrics=metrics,
        history=tuple(dict(entry) for entry in trainer.state.log_history),
        warnings=tuple(dict.fromkeys(warnings)),
        settings=settings,
    )


def _settings(job: TrainJob, warnings: list[str], *, halve: bool) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    given = dict(job.config.training)
    settings: dict[str, Any] = {
        "learning_rate": 5e-5,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": job.base.dtype == "bfloat16",
        "fp16": job.base.dtype == "float16" and cuda,
        "save_total_limit": 2,
        "seed": 42,
        "eval_strategy": "epoch" if job.data.evaluation else "no",
        "dataset_num_proc": None,
        **given,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "packing_strategy": "bfd",
    }
    if not job.data.evaluation and settings["eval_strategy"] != "no":
        warnings.append("TrainingArguments.eval_strategy needs DatasetConfig.train_test_split below 1; no evaluation")
        settings["eval_strategy"] = "no"
    if halve:
        settings["per_device_train_batch_size"] = max(1, int(settings.get("per_device_train_batch_size", 8)) // 2)
        settings["gradient_accumulation_steps"] = 2 * int(settings.get("gradient_accumulation_steps", 1))
    if job.data.form == "messages":
        settings.setdefault("assistant_only_loss", _knows_assistant_turns(job.base.tokenizer, warnings))
    settings.setdefault("packing", _packing_pays(job, settings))
    if settings["packing"] and not packed_documents_are_separate(job.base.model):
        settings["packing"] = False
        warnings.append("packed documents would see each other on this model: packing is off")
    return settings


def _knows_assistant_turns(tokenizer: Any, warnings: list[str]) -> bool:
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if tokenizer.chat_template is None:
        raise DatasetInvalid("this base model has no chat template for messages; use prompt and completion")
    if has_generation_markers(tokenizer.chat_template):
        return True
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        warnings.append("the model's chat template does not mark the assistant's turns: trained on whole conversations")
        return False
    return True


def _packing_pays(job: TrainJob, settings: Mapping[str, Any]) -> bool:
    """Packing fills rows up to max_length; it is off where it would leave too few optimizer steps to learn from."""
    characters = sum(len(str(row)) for row in job.data.training)
    rows = characters / 4 / float(settings.get("max_length") or 1024)
    per_step = int(settings.get("per_device_train_batch_size", 8)) * int(settings.get("gradient_accumulation_steps", 1))
    return rows * float(settings.get("num_train_epochs", 3)) / per_step >= _FEWEST_PACKED_STEPS


def packed_documents_are_separate(model: Any) -> bool:
    """Whether two documents in one row (told apart by position ids alone) give the logits that they give alone.

    Runs three forwards of 8 tokens on the loaded base model.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = model.get_input_embeddings().weight.device
    tokens = torch.arange(8, device=device).remainder(vocabulary).unsqueeze(0)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        packed = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[0, 4:].float()
        alone = model(input_ids=tokens[:, 4:], position_ids=positions[:, 4:], use_cache=False).logits[0].float()
    model.train(was_training)
    return bool((packed - alone).abs().max() <= 1e-2 * alone.abs().max().clamp(min=1.0))


def _callback(report: Callable[[Progress], None], stop: Event, *, key: str, monotonic: Callable[[], float]) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Reports progress, saves by time, stops on request, refuses a broken loss."""

        def __init__(self) -> None:
            self.began = self.saved = monotonic()
            self.first_step = 0
            self.metrics: dict[str, float] = {}
            self.not_finite = 0
            self.tokens = (0.0, self.began)
            self.tokens_per_second = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.first_step = state.global_step
            self.began = self.saved = monotonic()
            self._report(args, state)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if stop.is_set():
                control.should_save = control.should_training_stop = True
            elif monotonic() - self.saved >= CHECKPOINT_EVERY_SECONDS:
                control.should_save = True
            self._report(args, state)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = monotonic()
            checkpoints.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", key=key)

        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
            logs = logs or {}
            loss = logs.get("loss")
            if loss is not None:
                self.not_finite = 0 if math.isfinite(float(loss)) else self.not_finite + 1
                self.metrics["loss"] = float(loss)
                if self.not_finite >= 2:
                    raise NonFiniteLoss(f"the loss is {loss} at step {state.global_step}; lower the learning rate")
            if "eval_loss" in logs:
                self.metrics["evalLoss"] = float(logs["eval_loss"])
            if "num_tokens" in logs:
                now = monotonic()
                if now > self.tokens[1]:
                    self.tokens_per_second = (float(logs["num_tokens"]) - self.tokens[0]) / (now - self.tokens[1])
                self.tokens = (float(logs["num_tokens"]), now)

        def _report(self, args: Any, state: Any) -> None:
            done = state.global_step - self.first_step
            per_step = (monotonic() - self.began) / done if done else None
            left = state.max_steps - state.global_step
            report(
                Progress(
                    phase="Training",
                    progressPercentage=int(100 * state.global_step / state.max_steps) if state.max_steps else 0,
                    currentStep=state.global_step,
                    totalSteps=state.max_steps,
                    epoch=round(float(state.epoch or 0.0), 2),
                    epochs=float(args.num_train_epochs),
                    estimatedRemainingSeconds=round(left * per_step) if per_step is not None else None,
                    metrics=self.metrics | {"tokensPerSecond": round(self.tokens_per_second, 1)},
                )
            )

    return Watcher()
