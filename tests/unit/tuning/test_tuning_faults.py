"""What goes wrong amid a training, caused for real: each ends in a sentence, and what can be continued is."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.unit.tuning.checked import check, model_folder, write_rows
from tests.unit.tuning.job import Job, boxes
from tests.unit.tuning.test_tuning_config import changed, in_float32

from kaito_tuning.process import killed, recovery
from kaito_tuning.training import identity


def test_a_training_that_diverges_ends_at_once_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, model: Path, output: str
) -> None:
    document = changed(
        "TrainingArguments",
        learning_rate=1e6,
        max_grad_norm=0,
        warmup_steps=8,
        num_train_epochs=20,
        save_strategy="steps",
        save_steps=1,
    )
    job = Job(tmp_path, model, output, in_float32(document))
    assert job.run_here()[0] == 2
    assert job.sentence().startswith("NonFiniteLoss: ")
    assert " of 320; lower TrainingArguments.learning_rate" in job.sentence()
    broken = int(job.sentence().split("at step ")[1].split()[0])
    assert broken < 100
    kept = [name for name in job.checkpoints() if (job.output / name / "sealed.json").exists()]
    # Two steps were lost before it was certain: nothing was saved of either.
    assert kept
    assert int(kept[-1].split("-")[1]) <= broken - 2
    state = json.loads((job.output / kept[-1] / "trainer_state.json").read_text())
    assert state["global_step"] == int(kept[-1].split("-")[1])


def test_a_full_disk_is_told(tmp_path: Path, model: Path, output: str) -> None:
    document = in_float32(changed("TrainingArguments", max_steps=4, save_strategy="steps", save_steps=1))
    job = Job(tmp_path, model, output, document, environment={"TMPDIR": str(tmp_path)})
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    tmpfs = f'mount -t tmpfs -o size=700k tmpfs {output} && exec "$0" "$@"'
    if subprocess.run([*mount, tmpfs, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    code, said = job.run(*mount, tmpfs)
    assert code == 1, said
    assert job.sentence().startswith("DiskFull: ")
    assert "Traceback" not in said


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """In bytes, for this process; Python ignores the signal, so that a write fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_cannot_be_written_are_told_and_given_up_after_three_starts(
    tmp_path: Path, model: Path, output: str
) -> None:
    document = in_float32(changed("TrainingArguments", max_steps=4, save_strategy="steps", save_steps=1))
    job = Job(tmp_path, model, output, document)
    for failures, expected in ((1, 1), (2, 1), (3, 2)):
        with files_no_larger_than(300 << 10):
            code, said = job.run_here()
        assert code == expected
        assert said.startswith("DiskFull: ")
        assert said.endswith("(3 times in a row)") is (failures == 3)
        assert job.progress_file()["reason"] == "DiskFull"
        past = json.loads((job.output / "recovery.json").read_text())
        assert (past["failures"], past["step"]) == (failures, 0)


def test_a_start_that_cannot_read_the_data_forgets_nothing(
    tmp_path: Path, model: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = in_float32(changed("TrainingArguments", max_steps=1))
    document["training_config"]["QuantizationConfig"] = {"load_in_4bit": False}
    job = Job(tmp_path, model, output, document, rows=boxes(2), environment={"METHOD": "lora"})
    (job.output / "adapter").write_text("in the way of the folder")
    assert job.run_here()[0] == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert job.run_here()[0] == 1
    monkeypatch.undo()
    code, said = job.run_here()
    assert code == 2
    assert said.endswith("(3 times in a row)")


def test_a_start_that_is_killed_for_memory_again_and_again_is_the_last(
    tmp_path: Path, model: Path, output: str
) -> None:
    job = Job(tmp_path, model, output, in_float32(changed("DatasetConfig", dataset_path="none.jsonl")))
    for _ in range(3):
        killed.Running(job.output, measured=lambda: killed.Memory(31 << 30, 32 << 30)).sample()
        code, said = job.run_here()
        assert code == 2
    assert said.startswith("OutOfMemory: the start before this one was killed with 31.0 of 32.0 GiB of memory in use; ")
    assert said.endswith("(3 times in a row)")
    assert not (job.output / "running.json").exists()


def test_one_of_several_processes_that_is_killed_for_memory_again_and_again_makes_the_start_the_last(
    tmp_path: Path, model: Path, output: str
) -> None:
    job = Job(tmp_path, model, output, in_float32(changed("DatasetConfig", dataset_path="none.jsonl")))
    for start in ("40001", "40002", "40003"):
        # The first process ended by itself, and counted what it met when it lost the other.
        first = killed.Running(job.output, start=start, measured=killed.Memory)
        second = killed.Running(job.output, start=start, rank=1, measured=lambda: killed.Memory(31 << 30, 32 << 30))
        first.begin()
        second.sample()
        first.end()
        past = recovery.read(job.output, key=identity.configured(job.configuration.read_bytes()))
        recovery.write(job.output, past.failed(0, start=start))
        code, said = job.run_here()
        assert code == 2
        assert said.startswith("OutOfMemory") is (start == "40003")
    assert "was killed with 31.0 of 32.0 GiB of memory in use; " in said
    assert said.endswith("(3 times in a row)")
    assert not list(job.output.glob("running*"))


def test_memory_of_the_node_that_ends_is_told_with_the_rows_that_were_in_work(
    tmp_path: Path, model: Path, output: str
) -> None:
    long_row = [{"text": "word " * 4000}] * 4
    document = in_float32(changed("ModelConfig", attn_implementation="eager"))
    document["training_config"]["TrainingArguments"] |= {
        "per_device_train_batch_size": 2,
        "max_length": 4000,
        "gradient_checkpointing": False,
        "packing": False,
    }
    job = Job(tmp_path, model, output, document, rows=long_row)
    # One copy of the scores of eager attention: 4 heads x 4,000 x 4,000 x 4 bytes = 256 MB for one row and layer.
    code, said = job.run("prlimit", f"--data={1000 << 20}")
    assert code == 2, said
    assert job.sentence().startswith("OutOfMemory: the node's memory does not suffice for 1 row of 4,000 tokens")
    assert "Traceback" not in said


UNREADABLE = "/proc/self/mem"
"""Can be opened and not be read at its begin, as what lies on a disk that fails (proc(5))."""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "Input/output error; the node's disk fails"),
        ("tokenizer.json", "Input/output error; the node's disk fails"),
        ("model.safetensors", "No such device"),  # what mapping it into memory says
    ],
)
def test_a_disk_that_fails_while_the_model_is_read_is_tried_again(
    tmp_path: Path, model: Path, output: str, name: str, said: str
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / name).unlink()
    (folder / name).symlink_to(UNREADABLE)
    job = Job(tmp_path, folder, output, in_float32(changed("TrainingArguments", max_steps=1)))
    code, sentence = job.run_here()
    assert code == 1, sentence
    assert said in sentence


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_disk_that_fails_while_the_model_is_checked_is_tried_again(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "model", "phi3")
    (folder / name).unlink()
    (folder / name).symlink_to(UNREADABLE)
    write_rows(tmp_path / "data", {"text": "a"})
    found = check(tmp_path)
    assert found.code == 1
    assert "Input/output error" in found.report["problems"][0]
