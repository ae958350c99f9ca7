"""What is decided before and after a training: types by device, arguments, modules, what an error means."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors import SafetensorError
from tests.unit.tuning.trained import CPU, FOUR_BITS, configuration
from trl import SFTConfig

from kaito_tuning.config.targets import adapted
from kaito_tuning.errors import ConfigInvalid, DatasetInvalid, DiskFull, OutOfMemory, TrainingFailed
from kaito_tuning.process import checkpoints, killed, launch, recovery
from kaito_tuning.process.stop import Stopped, StopRequest
from kaito_tuning.training import identity
from kaito_tuning.training.failures import explained
from kaito_tuning.training.health import Health
from kaito_tuning.training.precision import Device, mixed, precision
from kaito_tuning.training.settings import DEFAULT_BATCH, accumulation, batch, halved, settings

V100 = Device(name="Tesla V100", capability=(7, 0))
T4 = Device(name="Tesla T4", capability=(7, 5))
A100 = Device(name="A100", capability=(8, 0))
MODULES = [f"model.layers.{i}.{m}" for i in (0, 1) for m in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.down_proj")]


@pytest.mark.parametrize("dtype", ["bfloat16", "auto", None])
@pytest.mark.parametrize("device", [V100, T4], ids=lambda device: device.name)
def test_a_gpu_without_bfloat16_trains_in_float16_and_says_so(device: Device, dtype: str | None) -> None:
    asked = {} if dtype is None else {"torch_dtype": dtype}
    config = configuration(ModelConfig={"torch_dtype": "auto"} | asked)
    chosen = precision(config, device)
    assert (chosen.weights, chosen.compute) == ("float16", "float16")
    assert chosen.said == f"{device.name} has no bfloat16: training in float16"
    assert mixed({}, chosen.compute, device) == ({"bf16": False, "fp16": True}, None)


@pytest.mark.parametrize("compute", ["bfloat16", "torch.bfloat16", None])
def test_four_bit_weights_are_computed_in_float16_there(compute: str | None) -> None:
    quantization = FOUR_BITS if compute is None else FOUR_BITS | {"bnb_4bit_compute_dtype": compute}
    config = configuration(ModelConfig={"torch_dtype": "auto"}, QuantizationConfig=quantization)
    chosen = precision(config, V100)
    assert (chosen.weights, chosen.compute) == ("float16", "float16")
    assert chosen.said


@pytest.mark.parametrize(
    ("dtype", "device", "expected", "flags"),
    [
        ("bfloat16", A100, "bfloat16", {"bf16": True, "fp16": False}),
        ("float16", A100, "float16", {"bf16": False, "fp16": True}),
        ("float32", V100, "float32", {"bf16": False, "fp16": False}),
        ("bfloat16", CPU, "bfloat16", {"bf16": True, "fp16": False}),
        ("float16", CPU, "float16", {"bf16": False, "fp16": False}),
    ],
)
def test_a_type_that_the_device_has_is_taken_as_asked(
    dtype: str, device: Device, expected: str, flags: Mapping[str, bool]
) -> None:
    chosen = precision(configuration(ModelConfig={"torch_dtype": dtype}), device)
    assert (chosen.compute, chosen.said) == (expected, None)
    assert mixed({}, chosen.compute, device) == (flags, None)


def test_the_users_bf16_becomes_fp16_without_bfloat16() -> None:
    flags, said = mixed({"bf16": True}, "float16", T4)
    assert flags == {"bf16": False, "fp16": True}
    assert said is not None
    assert "TrainingArguments.bf16" in said


def test_eight_bits_need_more_than_a_v100() -> None:
    config = configuration(QuantizationConfig={"load_in_8bit": True})
    with pytest.raises(ConfigInvalid, match=r"needs compute capability 7.5, but Tesla V100 has 7.0; use load_in_4bit"):
        precision(config, V100)
    assert precision(config, T4)


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("packing_strategy", "wrapped", "bfd"),
        ("logging_nan_inf_filter", True, False),
        ("disable_tqdm", False, True),
        ("save_only_model", True, False),
        ("enable_jit_checkpoint", True, False),
        ("load_best_model_at_end", True, False),
        ("auto_find_batch_size", True, False),
        ("use_cpu", False, True),
        ("save_total_limit", 1, 2),
        ("metric_for_best_model", "accuracy", None),
        ("eval_strategy", "steps", "no"),
    ],
)
def test_a_value_that_is_not_taken_is_said(name: str, value: Any, taken: Any) -> None:
    chosen = settings({name: value}, device=CPU, dtype="float32", evaluates=False)
    assert chosen.arguments[name] == taken
    assert [sentence for sentence in chosen.warnings if f"TrainingArguments.{name}" in sentence]
    same = settings({name: taken}, device=CPU, dtype="float32", evaluates=False)
    assert not same.warnings


def test_other_values_of_the_user_are_taken() -> None:
    given = {"learning_rate": 1e-3, "seed": 7, "gradient_checkpointing": False, "save_total_limit": 5}
    chosen = settings(given, device=CPU, dtype="float32", evaluates=True)
    assert given.items() <= chosen.arguments.items()
    assert chosen.arguments["eval_strategy"] == "epoch"
    assert not chosen.warnings


@pytest.mark.parametrize(
    "asking",
    [{"save_strategy": "best", "metric_for_best_model": "loss"}, {"lr_scheduler_type": "greedy"}],
)
def test_the_best_checkpoint_is_one_more(asking: dict[str, Any]) -> None:
    for given, limit in ({}, 3), ({"save_total_limit": 2}, 3), ({"save_total_limit": 4}, 4):
        chosen = settings({**asking, **given}, device=CPU, dtype="float32", evaluates=True)
        assert chosen.arguments["save_total_limit"] == limit
        assert asking.items() <= chosen.arguments.items()
        assert [*chosen.warnings] == [said for said in chosen.warnings if "save_total_limit: 2" in said]


def test_a_machine_without_a_loopback_address_has_no_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unbound(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    monkeypatch.setattr(socket, "socket", Unbound)
    with pytest.raises(OSError, match="Cannot assign requested address"):
        launch.free_port()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, (4, 2)), ({"per_device_train_batch_size": 6}, (3, 2)), ({"per_device_train_batch_size": 5}, (1, 5))],
)
def test_half_the_rows_at_a_time_are_the_same_rows_in_a_step(given: dict[str, int], expected: tuple[int, int]) -> None:
    given = given | {"gradient_accumulation_steps": 3}
    fewer = halved(given)
    assert fewer is not None
    assert (batch(fewer), accumulation(fewer)) == (expected[0], 3 * expected[1])
    assert batch(fewer) * accumulation(fewer) == batch(given) * accumulation(given)


def test_one_row_cannot_be_halved_and_the_default_is_the_librarys() -> None:
    assert halved({"per_device_train_batch_size": 1}) is None
    assert SFTConfig(output_dir="x", use_cpu=True, bf16=False).per_device_train_batch_size == DEFAULT_BATCH


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU's memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the GPU's memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU's memory"),
        (RuntimeError("CUDA error: out of memory"), "the GPU's memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            "the node's memory",
        ),
        (MemoryError(), "the node's memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the node's memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("trained", [True, False])
def test_memory_that_ran_out_is_told_with_what_was_in_work(error: Exception, where: str, trained: bool) -> None:
    found = explained(error, trained=trained, rows="4 rows of 2,048 tokens")
    assert isinstance(found, OutOfMemory)
    assert str(found).startswith(f"{where} does not suffice for 4 rows of 2,048 tokens; lower ")
    assert found.permanent


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/mnt/results/checkpoint-1/x"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["a file", "safetensors", "torch", "torch amid a tensor"],
)
def test_a_full_disk_is_told_and_tried_again(error: Exception) -> None:
    found = explained(error, trained=True)
    assert isinstance(found, DiskFull)
    assert not found.permanent
    assert "the node needs more disk space" in str(found)


def wrapped() -> Exception:
    try:
        try:
            raise jinja2.TemplateError("Conversation roles must alternate")
        except jinja2.TemplateError as cause:
            raise RuntimeError("map failed") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "trained", "kind"),
    [
        (ImportError("FlashAttention2 has been toggled on, but it cannot be used"), False, ConfigInvalid),
        (ValueError("Invalid `loss_type` x passed"), False, ConfigInvalid),
        (jinja2.TemplateError("roles must alternate"), False, DatasetInvalid),
        (wrapped(), False, DatasetInvalid),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False, TrainingFailed),
        (RuntimeError("No CUDA GPUs are available"), False, TrainingFailed),
        (ValueError("anything"), True, TrainingFailed),
        (KeyError("loss"), True, TrainingFailed),
    ],
)
def test_a_librarys_error_is_one_sentence_and_tried_again_only_where_that_may_help(
    error: Exception, trained: bool, kind: type[Exception]
) -> None:
    found = explained(error, trained=trained)
    assert type(found) is kind
    assert found.permanent is (kind is not TrainingFailed)
    assert "\n" not in str(found)
    assert str(error).strip("'") in str(found) or "roles must alternate" in str(found) or "map failed" in str(found)


def test_a_job_gives_up_after_three_errors_at_the_same_step(tmp_path: Path) -> None:
    past = recovery.read(tmp_path, key="a")
    for step, failures in [(0, 1), (0, 2), (10, 1), (10, 2), (10, 3)]:
        past = past.failed(step)
        recovery.write(tmp_path, past)
        past = recovery.read(tmp_path, key="a")
        assert past.failures == failures
        assert past.exhausted is (failures == 3)
    together = past.failed(20, start="a start").failed(20, start="a start")
    assert (together.failures, together.failed(20, start="another").failures) == (1, 2)
    assert recovery.read(tmp_path, key="b") == recovery.Recovery("b")


@pytest.mark.parametrize(
    ("signal_number", "said", "sentence"),
    [
        (signal.SIGKILL, "", "TrainingFailed: process 1 was killed without a word; where that is for memory, lower "),
        (signal.SIGKILL, "OutOfMemory: enough", "OutOfMemory: enough"),
        (signal.SIGTERM, "", ""),
    ],
    ids=["killed", "killed after its sentence", "stopped"],
)
def test_the_job_tells_of_a_process_that_was_killed(
    tmp_path: Path, signal_number: int, said: str, sentence: str
) -> None:
    script = (
        "import os, pathlib, sys, time\n"
        "if os.environ['RANK'] == '1':\n"
        "    pathlib.Path(os.environ['TERMINATION_LOG']).write_text(sys.argv[1])\n"
        "    os.kill(os.getpid(), int(sys.argv[2]))\n"
        "time.sleep(60)\n"
    )
    stop = StopRequest()
    with stop.deferred():
        workers = launch.environments(os.environ, 2, port=1, folder=tmp_path)
        code, rank = launch.run([sys.executable, "-c", script, said, str(int(signal_number))], workers, stop)
    assert (code, rank) == (128 + signal_number, 1)
    assert launch.sentence(code, rank, workers).startswith(sentence)
    assert bool(launch.sentence(code, rank, workers)) is bool(sentence)


@pytest.mark.parametrize("version", [1, 2])
def test_memory_in_use_is_what_the_kubelet_counts(tmp_path: Path, version: int) -> None:
    assert killed.memory(tmp_path) == killed.Memory()
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    used, limit = {
        1: ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        2: ("memory.current", "memory.max"),
    }[version]
    (folder / used).write_text("1000\n")
    (folder / limit).write_text("1100\n")
    (folder / "memory.stat").write_text(f"anon 5\n{'total_' if version == 1 else ''}inactive_file 100\n")
    assert killed.memory(tmp_path) == killed.Memory(900, 1100)
    (folder / limit).write_text(str((1 << 63) - 4096) if version == 1 else "max\n")
    assert killed.memory(tmp_path) == killed.Memory(900, 0)


def test_a_start_that_was_killed_leaves_the_most_memory_that_it_had(tmp_path: Path) -> None:
    gib = 1 << 30
    in_use = [1, 29, 31, 30]
    first = killed.Running(tmp_path, measured=lambda: killed.Memory(in_use.pop(0) * gib, 32 * gib))
    first.sample()
    for _ in range(3):
        first.sample()
    second = killed.Running(tmp_path, measured=lambda: killed.Memory(gib, 32 * gib))
    left = second.begin()
    assert left == killed.Memory(31 * gib, 32 * gib)
    assert killed.sentence(left).startswith(
        "the start before this one was killed with 31.0 of 32.0 GiB of memory in use; lower TrainingArguments."
    )
    second.end()
    third = killed.Running(tmp_path, measured=lambda: killed.Memory(gib, 32 * gib))
    assert third.begin() is None
    assert killed.Running(tmp_path).begin() == killed.Memory(gib, 32 * gib)
    third.end()
    (tmp_path / "running.json").write_text('{"use')  # killed amid the writing
    assert killed.Running(tmp_path).begin() == killed.Memory()
    assert "without a word" in killed.sentence(killed.Memory(gib, 32 * gib))


def test_processes_of_one_start_do_not_take_each_other_for_killed_ones(tmp_path: Path) -> None:
    gib = 1 << 30
    first = killed.Running(tmp_path, start="1", measured=killed.Memory)
    second = killed.Running(tmp_path, start="1", rank=1, measured=lambda: killed.Memory(31 * gib, 32 * gib))
    second.sample()
    assert first.begin() is None
    first.end()
    # The second never ends: it is killed. Of what a start has left the most counts.
    killed.Running(tmp_path, start="1", rank=2, measured=lambda: killed.Memory(gib, 32 * gib)).sample()
    found = killed.Running(tmp_path, start="2", measured=killed.Memory)
    assert found.begin() == killed.Memory(31 * gib, 32 * gib, start="1")
    found.end()
    assert not list(tmp_path.iterdir())


def test_an_error_before_the_data_are_read_counts_and_forgets_nothing(tmp_path: Path) -> None:
    configured = checkpoints.job_key(b"configuration")
    whole = checkpoints.job_key(b"configuration", within=configured)
    recovery.write(tmp_path, recovery.Recovery(whole, failures=1, step=10, halved="8 rows of 20 tokens"))
    recovery.write(tmp_path, recovery.read(tmp_path, key=configured).failed(0))
    past = recovery.read(tmp_path, key=whole)
    assert (past.failures, past.step, past.halved) == (2, 10, "8 rows of 20 tokens")


def test_a_volume_that_answers_with_errors_is_left_to_others_to_tell(tmp_path: Path) -> None:
    start = killed.Running(tmp_path / ("x" * 300), measured=killed.Memory)
    start.begin()
    start.end()


def test_errors_before_the_data_are_read_are_those_of_the_job_that_reads_them(tmp_path: Path) -> None:
    configured = checkpoints.job_key(b"configuration")
    whole = checkpoints.job_key(b"data", within=configured)
    recovery.write(tmp_path, recovery.read(tmp_path, key=configured).failed(0))
    assert recovery.read(tmp_path, key=whole) == recovery.Recovery(whole, failures=1)
    assert recovery.read(tmp_path, key=checkpoints.job_key(b"another")).failures == 0


@pytest.mark.parametrize(
    "change",
    [
        {"file": "tokenizer.json"},
        {"file": "chat_template.jinja"},
        {"file": "special_tokens_map.json"},
        {"file": "tokenizer.model"},
        {"context_length": 4096},
        {"processes": 2},
        {"template": "{{ 1 }}"},
        {"data": "another"},
        {"revision": "another"},
    ],
    ids=lambda change: next(iter(change.values())) if "file" in change else next(iter(change)),
)
def test_what_changes_the_tokens_makes_another_job(tmp_path: Path, change: dict[str, Any]) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer.model", "README.md"):
        (tmp_path / name).write_text("{}")
    given = {"data": "d", "revision": "r", "context_length": 2048, "processes": 1, "template": None}

    def key(**changed: Any) -> str:
        return identity.whole("configuration", tmp_path, **(given | changed))

    before = key()
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "model.safetensors").write_text("weights, which the revision stands for")
    assert key() == before
    if "file" in change:
        (tmp_path / change["file"]).write_text("[]")
        assert key() != before
    else:
        assert key(**change) != before


def sealed(output: Path, step: int, *, key: str, processes: int = 1) -> None:
    """A checkpoint as the trainer leaves it."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text(key)
    checkpoints.seal(folder, key=key, processes=processes)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"configured": "b" * 64}, "of another training_config.yaml"),
        ({"processes": 4}, "of 4 processes, and 2 train together here"),
        ({"data": "another"}, "of other data, or of a base model, a chat template or a context length"),
    ],
    ids=["another configuration", "fewer GPUs", "other data"],
)
def test_a_start_that_begins_anew_says_why_and_what_becomes_of_the_earlier_checkpoint(
    tmp_path: Path, other: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "model").mkdir()
    given = {"configured": "a" * 64, "data": "d", "processes": 2}

    def key(configured: str, **changed: Any) -> str:
        return identity.whole(
            configured, tmp_path / "model", revision="r", context_length=2048, template=None, **changed
        )

    earlier = given | other
    sealed(tmp_path, 120, key=key(**earlier), processes=earlier["processes"])
    said = checkpoints.prepare(tmp_path, key=key(**given), processes=2)
    assert said.startswith(f"the checkpoint of step 120 is {sentence}")
    assert "the training begins anew" in said
    assert checkpoints.newest(tmp_path, key=key(**given)) is None
    said = checkpoints.prepare(tmp_path, key=key(**earlier), processes=earlier["processes"])
    assert said == "the training goes on from the checkpoint of step 120"
    assert checkpoints.newest(tmp_path, key=key(**earlier)) == tmp_path / "checkpoint-120"


def test_of_each_other_training_the_newest_whole_checkpoint_is_kept_until_the_first_one_is_written(
    tmp_path: Path,
) -> None:
    for step, key in ((5, "a"), (10, "a"), (15, "b"), (20, "c")):
        sealed(tmp_path, step, key=key)
    (tmp_path / "checkpoint-30").mkdir()  # one that a crash tore
    checkpoints.prepare(tmp_path, key="c", processes=1)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-20"]
    checkpoints.prepare(tmp_path, key="d", processes=1)
    # Steps that an earlier training had too.
    sealed(tmp_path, 10, key="d")
    checkpoints.prepare(tmp_path, key="d", processes=1)
    assert checkpoints.newest(tmp_path, key="d") == tmp_path / "checkpoint-10"
    for key, step in (("a", 10), ("b", 15), ("c", 20)):
        checkpoints.prepare(tmp_path, key=key, processes=1)
        assert checkpoints.newest(tmp_path, key=key) == tmp_path / f"checkpoint-{step}"
        assert (tmp_path / f"checkpoint-{step}" / "optimizer.pt").read_text() == key
    checkpoints.remove_others(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-20"]
    checkpoints.prepare(tmp_path, key="d", processes=1)
    checkpoints.remove_all(tmp_path)
    assert not list(tmp_path.iterdir())


def test_patterns_name_modules_as_the_model_has_them() -> None:
    lora = {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"q_proj": 4, r"1\.self_attn\.o_proj": 2}}
    found, said = adapted(lora, model_type="phi3", module_names=MODULES)
    assert found["target_modules"] == ["o_proj", "qkv_proj"]
    assert found["rank_pattern"] == {"qkv_proj": 4, r"1\.self_attn\.o_proj": 2}
    assert said == ("target modules q_proj are fused in this model: adapting o_proj, qkv_proj",)


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ({"rank_pattern": {"lm_head": 4}}, "LoraConfig.rank_pattern: 'lm_head' matches no module that is adapted"),
        ({"alpha_pattern": {"(": 4}}, "LoraConfig.alpha_pattern: '\\(' is no regular expression"),
        (
            {"rank_pattern": {"q_proj": 4, "k_proj": 8}},
            "this model fuses modules into qkv_proj, which takes one number",
        ),
        ({"rank_pattern": [4]}, "LoraConfig.rank_pattern must hold module names and numbers"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(patterns: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        adapted(patterns, model_type="phi3", module_names=[*MODULES, "model.layers.0.mlp.gate_up_proj"])


def test_two_steps_in_a_row_that_are_not_finite_end_a_run() -> None:
    health = Health()
    weight = torch.nn.Parameter(torch.ones(2))

    def step(loss: float, gradient: float, scaler: Any = None) -> tuple[bool, bool]:
        weight.grad = torch.full((2,), gradient)
        health.see_loss(torch.tensor(loss))
        health.see_gradients([weight], scaler=scaler)
        health.end_step()
        return health.broken, health.over

    nan = float("nan")
    assert step(1.0, 1.0) == (False, False)
    assert step(nan, 1.0) == (True, False)
    assert step(1.0, 1.0) == (False, False)
    assert step(1.0, float("inf")) == (True, False)
    assert step(nan, nan) == (True, True)
    # Where gradients are scaled, one that overflows only makes the scale smaller.
    health = Health()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(1))
    assert step(1.0, float("inf"), scaler) == (False, False)


def test_a_request_to_stop_is_raised_once_and_never_where_something_is_to_be_saved() -> None:
    stop = StopRequest()
    with pytest.raises(Stopped):
        stop.ask()
    stop.ask()  # a second signal must not disturb the end
    with pytest.raises(Stopped), stop.deferred():
        pytest.fail("nothing is begun after a request")

    stop = StopRequest()
    seen: list[bool] = []

    def work() -> None:
        with stop.deferred():
            stop.ask()
            seen.append(stop.asked)

    with pytest.raises(Stopped):
        work()
    assert seen == [True]


@pytest.mark.parametrize(("given", "gpus", "expected"), [("", 0, 1), ("", 1, 1), ("", 4, 4), ("2", 4, 2), ("2", 0, 2)])
def test_there_is_a_process_for_every_gpu_unless_somebody_says_how_many(given: str, gpus: int, expected: int) -> None:
    assert launch.processes({"PROCESSES": given}, gpus=lambda: gpus) == expected


@pytest.mark.parametrize("given", ["0", "two", "-1"])
def test_a_number_of_processes_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="PROCESSES must be the number of processes to train with, 1 or more, got"):
        launch.processes({"PROCESSES": given}, gpus=lambda: 1)
