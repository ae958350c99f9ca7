"""A training that is stopped, runs out of memory or meets a library's error, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.tuning.job import boxes
from tests.unit.tuning.trained import FOUR_BITS, configuration, job, losses, table, train
from trl import SFTTrainer

from kaito_tuning.errors import ConfigInvalid, DatasetInvalid, OutOfMemory, TrainingFailed, TuningError
from kaito_tuning.export.report import log_lines, repeatable
from kaito_tuning.process import checkpoints
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.progress import Progress

Rows = list[tuple[int, ...]]
Step = Callable[..., torch.Tensor]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The tokens of every row that was trained on, in order."""
    rows: Rows = []
    step: Step = SFTTrainer.training_step

    def recorded(self: Any, model: Any, inputs: Mapping[str, Any], *args: Any) -> torch.Tensor:
        for tokens, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            rows.append(tuple(tokens[mask.bool()].tolist()))
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", recorded)
    return rows


def stopping(when: Callable[[Progress], bool]) -> tuple[StopRequest, Callable[[Progress], None]]:
    """A request that comes with the first progress of that kind."""
    stop = StopRequest()

    def report(progress: Progress) -> None:
        if when(progress) and not stop.asked:
            stop.ask()

    return stop, report


@pytest.mark.parametrize(
    "method", [{}, {"QuantizationConfig": FOUR_BITS | {"bnb_4bit_compute_dtype": "float32"}}], ids=["lora", "qlora"]
)
def test_a_stopped_training_goes_on_without_seeing_a_row_twice_in_an_epoch(
    model: Path, tmp_path: Path, seen: Rows, method: Mapping[str, Any]
) -> None:
    # Lines of the log that no checkpoint falls together with, and neither does the last step.
    arguments = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "seed": 5, "logging_steps": 3}
    config = configuration(TrainingArguments=arguments, LoraConfig={"lora_dropout": 0.1}, **method)
    data = table(boxes(), boxes(4))
    undisturbed = train(job(model, tmp_path / "undisturbed", config, data))
    order = list(seen)
    seen.clear()

    disturbed = job(model, tmp_path / "disturbed", config, data)
    for when in (
        lambda progress: progress.phase == "Training" and progress.currentStep == 3,
        lambda progress: progress.phase == "Evaluating",
        lambda progress: progress.phase == "Training" and progress.currentStep == 13,
        lambda progress: progress.phase == "Evaluating" and progress.currentStep == 16,
    ):
        stop, report = stopping(when)
        with pytest.raises(Stopped):
            train(disturbed, report=report, stop=stop)
    result = train(disturbed)

    assert seen == order
    assert set(Counter(seen).values()) == {2}
    assert result.weights.keys() == undisturbed.weights.keys()
    assert all(torch.equal(tensor, undisturbed.weights[name]) for name, tensor in result.weights.items())
    assert len(losses(undisturbed)) == 6
    assert log_lines(result.history) == log_lines(undisturbed.history)
    assert repeatable(result.metrics) == repeatable(undisturbed.metrics)
    assert result.metrics["tokens"] == sum(map(len, order))


PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    # The second evaluation is no better than the first by so much: the learning rate falls.
    "lr_scheduler_kwargs": {"patience": 0, "threshold": 100.0, "threshold_mode": "abs"},
}


@pytest.mark.parametrize(
    "asking",
    [{}, {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": False}, PLATEAU],
    ids=["nothing asks for its loss", "the best is saved", "the learning rate follows"],
)
def test_a_training_that_is_stopped_in_an_evaluation_between_its_steps_keeps_them(
    model: Path, tmp_path: Path, seen: Rows, asking: Mapping[str, Any]
) -> None:
    arguments = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2, "save_strategy": "no"}
    config, data = configuration(TrainingArguments={**arguments, **asking}), table(boxes(), boxes(2))
    undisturbed = train(job(model, tmp_path / "undisturbed", config, data))
    if asking is PLATEAU:
        rates = [entry["learning_rate"] for entry in undisturbed.history if "learning_rate" in entry]
        assert rates == pytest.approx([2e-3, 2e-3, 2e-4])
    order = list(seen)
    seen.clear()

    disturbed = job(model, tmp_path / "disturbed", config, data)
    stop, report = stopping(lambda progress: progress.phase == "Evaluating" and progress.currentStep == 2)
    with pytest.raises(Stopped):
        train(disturbed, report=report, stop=stop)
    assert list((tmp_path / "disturbed").glob("checkpoint-2"))
    result = train(disturbed)
    assert seen == order
    assert all(torch.equal(tensor, undisturbed.weights[name]) for name, tensor in result.weights.items())
    assert log_lines(result.history) == log_lines(undisturbed.history)
    assert repeatable(result.metrics) == repeatable(undisturbed.metrics)


def test_a_request_amid_the_base_models_evaluation_costs_no_step(model: Path, tmp_path: Path) -> None:
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "greater_is_better": True}
    arguments = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, **best}
    evaluations: list[int] = []

    def begins(progress: Progress) -> bool:
        if progress.phase == "Evaluating":
            evaluations.append(progress.currentStep)
        return len(evaluations) == 3

    stop, report = stopping(begins)
    config = configuration(TrainingArguments=arguments)
    with pytest.raises(Stopped):
        train(job(model, tmp_path, config, table(boxes(), boxes(2))), report=report, stop=stop)
    assert evaluations == [1, 2, 2]
    # The loss falls: the last step is not the best by what was asked for.
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_a_start_with_another_configuration_on_the_same_volume_begins_anew(
    model: Path, tmp_path: Path, seen: Rows
) -> None:
    stop, report = stopping(lambda progress: progress.currentStep == 2)
    with pytest.raises(Stopped):
        train(job(model, tmp_path, configuration(), table(boxes())), report=report, stop=stop)
    assert list(tmp_path.glob("checkpoint-3"))
    seen.clear()
    other = configuration(TrainingArguments={"learning_rate": 1e-3})
    result = train(job(model, tmp_path, other, table(boxes())))
    assert len(seen) == 4 * 2  # every row of all four steps
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-4"]
    fresh = train(job(model, tmp_path / "fresh", other, table(boxes())))
    assert all(torch.equal(tensor, fresh.weights[name]) for name, tensor in result.weights.items())


def test_a_start_that_returns_to_the_earlier_settings_goes_on_from_their_checkpoint(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = job(model, tmp_path, configuration(), table(boxes()))
    fewer = job(model, tmp_path, configuration(), table(boxes()), key=checkpoints.job_key(b"with fewer GPUs"))
    rows: Rows = []
    fails_after = 100
    step: Step = SFTTrainer.training_step

    def breaking(self: Any, model: Any, inputs: Mapping[str, Any], *args: Any) -> torch.Tensor:
        if len(rows) == fails_after:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        rows.append(tuple(inputs["input_ids"].flatten().tolist()))
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", breaking)
    undisturbed = train(replace(before, output_dir=tmp_path / "undisturbed"))
    order = list(rows)
    rows.clear()
    stop, report = stopping(lambda progress: progress.currentStep == 2)
    with pytest.raises(Stopped):
        train(before, report=report, stop=stop)
    rows.clear()
    fails_after = 2
    with pytest.raises(TrainingFailed):
        train(fewer)
    assert rows == order[:2]  # it begins anew, and ends before its first checkpoint
    rows.clear()
    fails_after = 100
    result = train(before)
    assert rows == order[3:]
    assert all(torch.equal(tensor, undisturbed.weights[name]) for name, tensor in result.weights.items())


def test_a_request_amid_the_preparation_ends_it_there(model: Path, tmp_path: Path) -> None:
    stop, report = stopping(lambda progress: progress.phase == "LoadingModel")
    with pytest.raises(Stopped):
        train(job(model, tmp_path, configuration(), table(boxes())), report=report, stop=stop)
    assert not list(tmp_path.glob("checkpoint-*"))


def exhausting(monkeypatch: pytest.MonkeyPatch, *, rows: int, error: Exception) -> None:
    """The error comes from the device when more than so many rows are on it."""
    step: Step = SFTTrainer.training_step

    def limited(self: Any, model: Any, inputs: Mapping[str, Any], *args: Any) -> torch.Tensor:
        if inputs["input_ids"].shape[0] > rows:
            self.model(input_ids=inputs["input_ids"])  # the activations are there when memory ends
            raise error
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", limited)


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB")
CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [CUDA, CUBLAS, HOST], ids=["CUDA", "cuBLAS", "the host"])
def test_memory_that_runs_out_halves_the_rows_at_a_time_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # Eight rows are the library's default, which the user did not write down.
    config = configuration(TrainingArguments={"max_steps": 2}, leave_out=["per_device_train_batch_size"])
    whole = train(job(model, tmp_path / "whole", config, table(boxes())))
    exhausting(monkeypatch, rows=4, error=error)
    halves = job(model, tmp_path / "halves", config, table(boxes()))
    result = train(halves)
    assert result.settings["per_device_train_batch_size"] == 4
    assert result.settings["gradient_accumulation_steps"] == 2
    assert losses(result) == pytest.approx(losses(whole), abs=1e-5)
    (said,) = (sentence for sentence in result.warnings if "out of memory" in sentence)
    assert said.startswith("out of memory with 8 rows of ")
    # The next start does not try again what did not fit, and says so.
    again = train(halves)
    assert again.settings == result.settings
    assert again.warnings == result.warnings


@pytest.mark.parametrize("given", [None, 1], ids=["halved already", "one row"])
def test_memory_that_runs_out_again_ends_the_job_with_the_rows_that_were_in_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int | None
) -> None:
    exhausting(monkeypatch, rows=0, error=CUDA)
    config = configuration(
        TrainingArguments={} if given is None else {"per_device_train_batch_size": given},
        leave_out=["per_device_train_batch_size"] if given is None else [],
    )
    rows = "4 rows" if given is None else "1 row"
    with pytest.raises(OutOfMemory, match=rf"^the GPU's memory does not suffice for {rows} of \d+ tokens; lower Train"):
        train(job(model, tmp_path, config, table(boxes())))


def test_several_processes_halve_together_at_the_next_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exhausting(monkeypatch, rows=1, error=CUDA)
    work = job(model, tmp_path, configuration(), table(boxes()))
    one_of_two = job(model, tmp_path, configuration(), table(boxes()), key=work.key, processes=2)
    with pytest.raises(TrainingFailed, match="micro-batch halved, gradient accumulation doubled at the next start"):
        train(one_of_two)
    assert train(work).settings["per_device_train_batch_size"] == 1


@pytest.mark.parametrize(
    ("sections", "kind", "sentence"),
    [
        ({"ModelConfig": {"attn_implementation": "flash_attention_2"}}, ConfigInvalid, "flash"),
        ({"TrainingArguments": {"use_liger_kernel": True}}, ConfigInvalid, "liger"),
        ({"TrainingArguments": {"loss_type": "what"}}, ConfigInvalid, "what"),
        ({"TrainingArguments": {"optim": "adamw_apex_fused"}}, ConfigInvalid, "apex"),
        ({"TrainingArguments": {"max_length": 2}}, DatasetInvalid, "anything to learn in 2 tokens"),
        ({"LoraConfig": {"r": -1}}, ConfigInvalid, "r"),
    ],
    ids=lambda value: next(iter(next(iter(value.values())))) if isinstance(value, dict) else "",
)
def test_what_a_library_refuses_before_the_first_step_is_one_sentence(
    model: Path, tmp_path: Path, sections: Mapping[str, Any], kind: type[TuningError], sentence: str
) -> None:
    with pytest.raises(TuningError) as caught:
        train(job(model, tmp_path, configuration(**sections), table(boxes())))
    assert type(caught.value) is kind
    assert caught.value.permanent
    assert sentence.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_librarys_error_amid_the_training_may_be_tried_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(3))
    step: Step = SFTTrainer.training_step

    def breaking(self: Any, *args: Any) -> torch.Tensor:
        if next(steps) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return step(self, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", breaking)
    with pytest.raises(TrainingFailed, match="the training failed: CUDA error: an illegal memory access") as caught:
        train(job(model, tmp_path, configuration(), table(boxes())))
    assert not caught.value.permanent


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
def test_a_start_after_the_last_step_measures_what_the_one_before_did(
    model: Path, tmp_path: Path, strategy: str
) -> None:
    config = configuration(TrainingArguments={"logging_steps": 500, "logging_strategy": strategy, "max_steps": 3})
    first = train(job(model, tmp_path, config, table(boxes(), boxes(2))))
    again = train(job(model, tmp_path, config, table(boxes(), boxes(2))))
    assert len(losses(first)) == 1
    assert first.metrics["loss"] == losses(first)[0]
    assert log_lines(again.history) == log_lines(first.history)
    assert repeatable(again.metrics) == repeatable(first.metrics)
    assert again.steps == first.steps
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)


@pytest.mark.parametrize("held_back", [0, 1], ids=["nothing held back", "nothing to learn in what is held back"])
def test_an_evaluation_on_start_without_rows_to_evaluate_on_is_left_out(
    model: Path, tmp_path: Path, held_back: int
) -> None:
    config = configuration(TrainingArguments={"eval_on_start": True, "max_steps": 1, "max_length": 64})
    long_question = {"prompt": "box " * 300, "completion": "x"}
    rows = [{"prompt": "Count.", "completion": f"{number}"} for number in range(4)]
    result = train(job(model, tmp_path, config, table(rows, [long_question] * held_back)))
    assert result.steps == 1
    assert "evalLoss" not in result.metrics
