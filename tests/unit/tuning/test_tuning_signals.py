"""SIGTERM and SIGKILL at any moment: what is pushed is, byte by byte, what an undisturbed job makes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.eventually import eventually
from tests.unit.tuning.job import Job, boxes
from tests.unit.tuning.test_tuning_config import changed, in_float32

from kaito_tuning.process import launch

Moment = Callable[[Mapping[str, Any]], bool]

ROWS = 800
STEPS = 30


def document() -> dict[str, Any]:
    found = changed(
        "TrainingArguments",
        max_steps=STEPS,
        logging_steps=4,
        learning_rate=2e-3,
        save_strategy="steps",
        save_steps=5,
        eval_strategy="steps",
        eval_steps=15,
        packing=False,
    )
    found["training_config"]["DatasetConfig"]["train_test_split"] = 0.98
    return in_float32(found)


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory, module_output: str) -> Job:
    """The job that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(folder, model, f"{module_output}/undisturbed", document(), rows=boxes(ROWS))
    code, said = job.run_here()
    assert code == 0, said
    return job


def disturb(job: Job, moment: Moment, signal_number: int) -> tuple[int, str]:
    """Starts it, and sends the signal when its progress shows the moment, if it has not ended; its code and output."""
    process = job.start()

    def now() -> bool:
        if process.poll() is not None:
            return True
        with contextlib.suppress(OSError):
            return moment(job.progress())
        return False

    eventually(now, timeout=200, every=0.01)
    process.send_signal(signal_number)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def pushed(job: Job) -> dict[str, bytes]:
    """The files that are pushed, by name, but for the digest of the configuration, which names the job's folder."""
    configuration = hashlib.sha256(job.configuration.read_bytes()).hexdigest().encode()
    files = (job.output / "adapter").iterdir()
    return {file.name: file.read_bytes().replace(configuration, b"") for file in files}


@pytest.mark.timeout(900)
def test_a_job_that_is_stopped_and_killed_ends_where_an_undisturbed_one_does(
    tmp_path: Path, model: Path, output: str, undisturbed: Job
) -> None:
    job = Job(tmp_path, model, output, document(), rows=boxes(ROWS))
    for message in ("", "preparing the rows"):
        code, said = disturb(
            job, lambda at, message=message: at["phase"] == "LoadingModel" and at["message"] == message, signal.SIGTERM
        )
        assert code == 143, said
        assert "Traceback" not in said
        assert not job.checkpoints()

    code, said = disturb(job, lambda at: at["currentStep"] >= 7, signal.SIGTERM)
    assert code == 143, said
    assert "was killed" not in said  # the ones before were stopped
    assert int(job.checkpoints()[-1].split("-")[1]) >= 7  # it saved after the step, not only every five
    assert not (job.output / "fine_tuning_completed.txt").exists()

    chosen = random.SystemRandom().randrange(9, STEPS)
    for _ in range(2):
        code, said = disturb(job, lambda at: at["currentStep"] >= chosen, signal.SIGKILL)
        assert code == -signal.SIGKILL, f"step {chosen}: {said}"

    code, said = job.run()
    assert code == 0, said
    assert "the start before this one was killed" in said
    assert pushed(job) == pushed(undisturbed), f"killed at step {chosen}"
    assert not job.checkpoints()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_job_that_is_killed_at_ten_random_moments_ends_where_an_undisturbed_one_does(
    tmp_path: Path, model: Path, output: str, undisturbed: Job
) -> None:
    began = time.monotonic()
    timed = Job(tmp_path / "timed", model, f"{output}/timed", document(), rows=boxes(ROWS))
    code, said = timed.run()
    assert code == 0, said
    seconds = time.monotonic() - began
    job = Job(tmp_path, model, f"{output}/killed", document(), rows=boxes(ROWS))
    moments = random.SystemRandom()
    delays = []
    for _ in range(10):
        process = job.start()
        delays.append(moments.uniform(0, seconds))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=delays[-1])
        process.kill()
        process.communicate()
    code, said = job.run()
    assert code == 0, said
    assert pushed(job) == pushed(undisturbed), f"killed after {delays} s"


def test_two_processes_learn_what_one_with_twice_the_rows_learns_and_stop_together(
    tmp_path: Path, model: Path, output: str
) -> None:
    def arguments(rows: int) -> dict[str, Any]:
        found = changed("TrainingArguments", max_steps=12, learning_rate=2e-3, save_strategy="no", packing=False)
        found["training_config"]["TrainingArguments"] |= {
            "per_device_train_batch_size": rows,
            "per_device_eval_batch_size": 1,
            "eval_strategy": "steps",
            "eval_steps": 6,
        }
        found["training_config"]["DatasetConfig"]["train_test_split"] = 0.5
        return in_float32(found)

    given = boxes(128)
    one = Job(tmp_path / "one", model, f"{output}/one", arguments(4), rows=given, environment={"PROCESSES": "1"})
    code, said = one.run_here()
    assert code == 0, said
    for attempt in range(3):  # on a busy machine the evaluation may be done before the signal
        place = f"two-{attempt}"
        two = Job(
            tmp_path / place, model, f"{output}/{place}", arguments(2), rows=given, environment={"PROCESSES": "2"}
        )
        code, said = disturb(
            two, lambda progress: progress["phase"] == "Evaluating" and progress["currentStep"] == 6, signal.SIGTERM
        )
        if two.checkpoints() == ["checkpoint-6"]:
            break
    assert code == 143, said
    names = {path.name for path in (two.output / "checkpoint-6").iterdir()}
    assert {"sealed.json", "rng_state_0.pth", "rng_state_1.pth"} <= names
    code, said = disturb(two, lambda progress: progress["currentStep"] >= 8, signal.SIGTERM)
    # After the evaluation that was ended, a step.
    assert code == 143, said
    assert int(two.checkpoints()[-1].split("-")[1]) >= 8
    code, said = two.run()
    assert code == 0, said
    expected, got = one.adapter(), two.adapter()
    assert expected.keys() == got.keys()
    assert all((expected[name] - got[name]).abs().max() < 1e-4 for name in expected)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in got.items() if "lora_B" in name)


def test_a_process_waits_for_the_one_that_prepares_the_rows_as_long_as_that_takes(tmp_path: Path, model: Path) -> None:
    """Afterwards as long as TrainingArguments.ddp_timeout says."""
    environments = launch.environments(
        {**os.environ, "OMP_NUM_THREADS": "1"}, 2, port=launch.free_port(), folder=tmp_path
    )
    command = [sys.executable, "-m", "tests.unit.tuning.slow_preparation", str(model), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for environment in environments
    ]
    said = [process.communicate(timeout=280)[0] for process in processes]
    assert sorted(path.name for path in tmp_path.glob("prepared-*")) == ["prepared-0", "prepared-1"], said
    assert (tmp_path / "gave-up").exists(), said


def test_a_process_that_fails_ends_the_others_and_its_sentence_is_the_jobs(
    tmp_path: Path, model: Path, output: str
) -> None:
    document = changed("LoraConfig", target_modules=["nope"])
    job = Job(tmp_path, model, output, document, environment={"PROCESSES": "2"})
    code, said = job.run()
    assert code == 2, said
    assert job.sentence().startswith("ConfigInvalid: LoraConfig.target_modules: the model has no module nope")
