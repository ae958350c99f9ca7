"""Checkpoints that a start cannot load: set aside with a sentence, while the training goes on from an earlier one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.tuning.job import Job, boxes
from tests.unit.tuning.test_tuning_config import changed, in_float32
from tests.unit.tuning.test_tuning_signals import disturb
from tests.unit.tuning.trained import configuration, job, table
from trl import SFTTrainer

from kaito_tuning.errors import DiskFull, OutOfMemory, TrainingFailed
from kaito_tuning.process import checkpoints, recovery
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.progress import Progress
from kaito_tuning.progress.history import History
from kaito_tuning.training import TrainJob, TrainResult, fit
from kaito_tuning.training.failures import explained

Damage = Callable[[Path], None]
Steps = list[int]

CONFIG = configuration(
    TrainingArguments={"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "epoch"}
)
KEY = checkpoints.job_key(repr(CONFIG).encode())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The number of each step that is begun."""
    begun: Steps = []
    step = SFTTrainer.training_step

    def recorded(self: Any, *args: Any) -> torch.Tensor:
        begun.append(self.state.global_step + 1)
        return step(self, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", recorded)
    return begun


@pytest.fixture(scope="module")
def stopped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that was stopped after its fourth step: checkpoints of steps 3 and 4."""
    output = tmp_path_factory.mktemp("stopped")
    stop = StopRequest()

    def report(progress: Progress) -> None:
        if progress.currentStep == 3 and not stop.asked:
            stop.ask()

    with pytest.raises(Stopped):
        fit(work(model, output), report, stop, history=History())
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    return output


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """What comes of it when nobody stops it."""
    return fit(work(model, tmp_path_factory.mktemp("undisturbed")), lambda _: None, StopRequest(), history=History())


@pytest.fixture
def output(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "output"))


def work(model: Path, output: Path, **changes: Any) -> TrainJob:
    return job(model, output, CONFIG, table(boxes(8), boxes(2)), **changes)


def resumed(model: Path, output: Path) -> tuple[TrainResult, list[str]]:
    """The result of another start, and what it told."""
    told: list[str] = []
    result = fit(work(model, output), lambda _: None, StopRequest(), history=History(), tell=told.append)
    return result, told


def same(result: TrainResult, other: TrainResult) -> bool:
    return result.weights.keys() == other.weights.keys() and all(
        torch.equal(tensor, other.weights[name]) for name, tensor in result.weights.items()
    )


def truncated(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def missing(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def one_byte(name: str) -> Damage:
    """Where no library looks for it."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def a_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def other_libraries(change: Damage) -> Damage:
    """As a release with other libraries would have written it: whole, but for others to read."""

    def damage(folder: Path) -> None:
        change(folder)
        (folder / "sealed.json").unlink()
        checkpoints.seal(folder, key=KEY, processes=1)

    return damage


def unknown_state(folder: Path) -> None:
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps(state | {"what_is_this": 1}))


def renamed_tensors(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({f"{name}.new": tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")


def other_shapes(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor[:1].clone() for name, tensor in weights.items()}, folder / "adapter_model.safetensors")


def other_random_numbers(folder: Path) -> None:
    state = torch.load(folder / "rng_state.pth", weights_only=False)
    torch.save({key: value for key, value in state.items() if key != "numpy"}, folder / "rng_state.pth")


def other_optimizer(folder: Path) -> None:
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    state["param_groups"][0]["params"].pop()
    torch.save(state, folder / "optimizer.pt")


def not_a_state(folder: Path) -> None:
    (folder / "optimizer.pt").write_text("<html>")


DAMAGE: dict[str, tuple[Damage, str]] = {
    "half an adapter": (truncated("adapter_model.safetensors"), "adapter_model.safetensors is not as it was written"),
    "half an optimizer": (truncated("optimizer.pt"), "optimizer.pt is not as it was written"),
    "a flipped bit": (one_byte("optimizer.pt"), "optimizer.pt is not as it was written"),
    "no state": (missing("trainer_state.json"), "trainer_state.json is missing"),
    "no optimizer": (missing("optimizer.pt"), "optimizer.pt is missing"),
    "no scheduler": (missing("scheduler.pt"), "scheduler.pt is missing"),
    "no random numbers": (missing("rng_state.pth"), "rng_state.pth is missing"),
    "a folder for a file": (a_folder("optimizer.pt"), "optimizer.pt: Is a directory"),
    "an unknown field": (other_libraries(unknown_state), "what_is_this"),
    "tensors of other names": (other_libraries(renamed_tensors), "adapter_model.safetensors"),
    "tensors of other shapes": (other_libraries(other_shapes), "size mismatch"),
    "another random state": (other_libraries(other_random_numbers), "numpy"),
    "another optimizer": (other_libraries(other_optimizer), "parameter group"),
    "no optimizer at all": (other_libraries(not_a_state), "Weights only load failed"),
}


@pytest.mark.parametrize(("damage", "why"), DAMAGE.values(), ids=DAMAGE)
def test_a_checkpoint_that_cannot_be_loaded_is_set_aside_for_the_one_before(
    model: Path, output: Path, steps: Steps, undisturbed: TrainResult, damage: Damage, why: str
) -> None:
    damage(output / "checkpoint-4")
    steps.clear()
    result, told = resumed(model, output)
    assert steps == [4, 5, 6]
    assert same(result, undisturbed)
    (said,) = told
    assert said.startswith("the checkpoint of step 4 cannot be loaded (")
    assert why in said
    assert said.endswith("it is set aside, and the training goes on from the one of step 3")
    # As with those of other settings: gone when the training has written one of its own.
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"checkpoint-5", "checkpoint-6"}


@pytest.mark.parametrize("damage", ["half an adapter", "another random state"])
def test_a_training_all_of_whose_checkpoints_cannot_be_loaded_begins_anew(
    model: Path, output: Path, steps: Steps, undisturbed: TrainResult, damage: str
) -> None:
    for step in (3, 4):
        DAMAGE[damage][0](output / f"checkpoint-{step}")
    steps.clear()
    result, told = resumed(model, output)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert same(result, undisturbed)
    assert "the checkpoint of step 4 cannot be loaded" in told[0]
    assert told[-1].startswith("the checkpoint of step 3 cannot be loaded")
    assert told[-1].endswith("it is set aside, and the training begins anew")


def test_the_checkpoint_of_the_last_step_is_no_exception(model: Path, tmp_path: Path, steps: Steps) -> None:
    first, _ = resumed(model, tmp_path)
    other_libraries(renamed_tensors)(tmp_path / "checkpoint-6")
    steps.clear()
    again, told = resumed(model, tmp_path)
    assert steps == [6]
    assert same(again, first)
    assert "the checkpoint of step 6 cannot be loaded" in told[0]


@pytest.mark.parametrize(
    "seal", ["[]", "null", "5", '{"key": null}', '{"key": "x", "processes": null}', "{", '{"key": "k", "files": 3}']
)
def test_a_seal_that_says_nothing_is_a_torn_checkpoint(tmp_path: Path, seal: str) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "sealed.json").write_text(seal)
    checkpoints.prepare(tmp_path, key="k", processes=1)
    assert checkpoints.newest(tmp_path, key="k") is None
    assert not (tmp_path / "checkpoint-5").exists()


def links_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def links_to_a_folder(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "made", [lambda path: path.write_text("what"), links_to_nothing, links_to_a_folder], ids=["file", "link", "folder"]
)
def test_what_has_a_checkpoints_name_and_is_none_is_in_nobodys_way(
    model: Path, tmp_path: Path, steps: Steps, made: Callable[[Path], Any]
) -> None:
    made(tmp_path / "checkpoint-4")
    result, _ = resumed(model, tmp_path)
    assert result.steps == 6
    assert steps == [1, 2, 3, 4, 5, 6]


def unreadable(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int) -> None:
    """Files below the folder can no more be opened, as those of another user; root can open everything."""
    read = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        if self.is_relative_to(folder):
            raise OSError(code, os.strerror(code), str(self))
        return read(self, *args, **options)

    monkeypatch.setattr(Path, "open", opened)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
def test_a_checkpoint_that_may_not_be_read_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}", key="k", processes=1)
    unreadable(monkeypatch, tmp_path / "checkpoint-4", code)
    checkpoints.prepare(tmp_path, key="k", processes=1)
    (said,) = checkpoints.verify(tmp_path, key="k")
    assert said.startswith(f"the checkpoint of step 4 cannot be loaded (sealed.json: {os.strerror(code)}): ")
    assert checkpoints.newest(tmp_path, key="k") == tmp_path / "checkpoint-3"
    assert list(tmp_path.glob("set-aside-unloadable-4-*/sealed.json"))


def unreadable_disk(path: Path) -> bytes:
    """Puts in the place of a file one that can be opened and not be read, as on a disk that fails (proc(5))."""
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        path.read_bytes()
    return content


@pytest.mark.parametrize("name", ["sealed.json", "adapter_model.safetensors", "trainer_state.json"])
def test_a_disk_that_fails_while_a_checkpoint_is_read_costs_no_checkpoint(
    model: Path, output: Path, steps: Steps, undisturbed: TrainResult, name: str
) -> None:
    file = output / "checkpoint-4" / name
    content = unreadable_disk(file)
    for _ in range(2):
        with pytest.raises(TrainingFailed) as failed:
            resumed(model, output)
        assert str(failed.value).startswith("a checkpoint cannot be read: Input/output error")
        assert "the next start tries again" in str(failed.value)
        assert {path.name for path in output.iterdir() if path.is_dir()} == {"checkpoint-3", "checkpoint-4"}
    file.unlink()
    file.write_bytes(content)
    steps.clear()
    result, told = resumed(model, output)
    assert not told
    assert steps == [5, 6]
    assert same(result, undisturbed)


def test_the_last_start_does_without_a_checkpoint_that_no_start_before_could_read(
    model: Path, output: Path, steps: Steps, undisturbed: TrainResult
) -> None:
    unreadable_disk(output / "checkpoint-4" / "optimizer.pt")
    past = recovery.read(output, key=KEY).failed(4).failed(4)
    recovery.write(output, past)
    steps.clear()
    result, (said,) = resumed(model, output)
    assert said.startswith("the checkpoint of step 4 cannot be loaded (optimizer.pt: Input/output error): ")
    assert steps == [4, 5, 6]
    assert same(result, undisturbed)


def test_a_seal_that_cannot_be_read_tells_no_step(tmp_path: Path) -> None:
    """How far the job is, is asked when it ends with an error."""
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        checkpoints.seal(tmp_path / f"checkpoint-{step}", key="k", processes=1)
    unreadable_disk(tmp_path / "checkpoint-4" / "sealed.json")
    assert checkpoints.newest_step(tmp_path, key="k") == 3


def test_memory_that_runs_out_while_a_checkpoint_is_read_is_not_the_checkpoints_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint-4").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-4", key="k", processes=1)
    unreadable(monkeypatch, tmp_path / "checkpoint-4", errno.ENOMEM)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        checkpoints.verify(tmp_path, key="k")
    assert isinstance(explained(caught.value, trained=True), OutOfMemory)
    assert (tmp_path / "checkpoint-4").exists()


NOT_ITS_FAULT: dict[str, tuple[BaseException, type[BaseException]]] = {
    "the GPU's memory": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OutOfMemory),
    "the node's memory": (MemoryError(), OutOfMemory),
    "the disk": (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), DiskFull),
    "the device": (RuntimeError("CUDA error: uncorrectable ECC error encountered"), TrainingFailed),
    "another process": (
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"
        ),
        TrainingFailed,
    ),
    "a process that is gone": (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), TrainingFailed),
    "a process that is late": (torch.distributed.DistStoreError("wait timeout after 300000ms"), TrainingFailed),
    "a disk that fails": (OSError(errno.EIO, "Input/output error", "/mnt/output/optimizer.pt"), TrainingFailed),
    "a server that is away": (OSError(errno.ESTALE, "Stale file handle"), TrainingFailed),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), TrainingFailed),
    "SIGTERM": (Stopped(), Stopped),
}


@pytest.mark.parametrize(("error", "kind"), NOT_ITS_FAULT.values(), ids=NOT_ITS_FAULT)
def test_what_is_not_the_checkpoints_fault_costs_no_checkpoint(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: type[BaseException]
) -> None:
    def failing(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", failing)
    with pytest.raises(kind):
        resumed(model, output)
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"checkpoint-3", "checkpoint-4"}


def test_a_failure_in_the_first_step_after_a_checkpoint_is_the_steps(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> None:
        raise ValueError("an error of this step")

    monkeypatch.setattr(SFTTrainer, "training_step", failing)
    with pytest.raises(TrainingFailed, match="an error of this step"):
        resumed(model, output)
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"checkpoint-3", "checkpoint-4"}


def test_a_failure_to_read_the_first_rows_after_a_checkpoint_is_the_rows(
    model: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr(SFTTrainer, "get_batch_samples", failing)
    with pytest.raises(TrainingFailed, match="DataLoader worker"):
        resumed(model, output)
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"checkpoint-3", "checkpoint-4"}


def test_a_seal_of_an_earlier_release_that_names_no_files_is_gone_on_from(
    model: Path, output: Path, steps: Steps, undisturbed: TrainResult
) -> None:
    for folder in output.glob("checkpoint-*"):
        sealed = json.loads((folder / "sealed.json").read_text())
        (folder / "sealed.json").write_text(json.dumps({"key": sealed["key"], "processes": sealed["processes"]}))
    steps.clear()
    result, told = resumed(model, output)
    assert steps == [5, 6]
    assert same(result, undisturbed)
    assert not told


@pytest.mark.parametrize("asking", [{}, {"lr_scheduler_type": "reduce_lr_on_plateau"}], ids=["nobody", "the rate"])
def test_a_whole_checkpoint_is_there_while_one_is_written_whatever_is_kept_as_the_best(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asking: dict[str, Any]
) -> None:
    # The loss falls, so that the first is the best by what is asked for.
    best = {"metric_for_best_model": "loss", "greater_is_better": True, "eval_strategy": "steps", "eval_steps": 1}
    arguments = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, **best, **asking}
    before: list[int] = []
    seal = checkpoints.seal

    def sealing(folder: Path, *, key: str, processes: int) -> None:
        before.append(checkpoints.newest_step(folder.parent, key=key))
        seal(folder, key=key, processes=processes)

    monkeypatch.setattr(checkpoints, "seal", sealing)
    config = configuration(TrainingArguments=arguments)
    fit(job(model, tmp_path, config, table(boxes(8), boxes(2))), lambda _: None, StopRequest(), history=History())
    assert before == [0, 1, 2, 3, 4]


def test_a_request_to_stop_that_comes_while_a_checkpoint_is_loaded_is_obeyed_before_another_is_tried(
    model: Path, output: Path
) -> None:
    other_libraries(other_optimizer)(output / "checkpoint-4")
    stop = StopRequest()
    loads: list[int] = []
    given = work(model, output)

    def load_base() -> Any:
        loads.append(1)
        return given.load_base()

    with pytest.raises(Stopped):
        fit(
            work(model, output, load_base=load_base),
            lambda _: None,
            stop,
            history=History(),
            tell=lambda _: stop.ask(),
        )
    assert loads == [1]


def test_several_processes_of_which_one_cannot_load_go_on_from_the_checkpoint_before(
    tmp_path: Path, model: Path, module_output: str
) -> None:
    document = in_float32(
        changed("TrainingArguments", max_steps=8, save_strategy="steps", save_steps=2, packing=False, logging_steps=1)
    )
    document["training_config"]["QuantizationConfig"] = {"load_in_4bit": False}
    processes = {"PROCESSES": "2", "METHOD": "lora"}
    job = Job(tmp_path, model, module_output, document, rows=boxes(64), environment=processes)
    code, said = disturb(job, lambda progress: progress["currentStep"] >= 4, signal.SIGTERM)
    assert code == 143, said
    newest, before = (int(name.removeprefix("checkpoint-")) for name in reversed(job.checkpoints()))
    folder = job.output / f"checkpoint-{newest}"
    key = json.loads((folder / "sealed.json").read_text())["key"]
    state = torch.load(folder / "rng_state_1.pth", weights_only=False)
    torch.save({name: value for name, value in state.items() if name != "numpy"}, folder / "rng_state_1.pth")
    checkpoints.seal(folder, key=key, processes=2)

    code, said = job.run()
    assert code == 1, said
    assert job.sentence().startswith(
        f"TrainingFailed: the checkpoint of step {newest} cannot be loaded (KeyError 'numpy'): it is set aside, and "
        f"the training goes on from the one of step {before}, at the next start"
    )
    code, said = job.run()
    assert code == 0, said
    assert f"the training goes on from the checkpoint of step {before}" in said
