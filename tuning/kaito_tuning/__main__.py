"""``python -m kaito_tuning``: the step ``tune`` of a tuning Workspace's Job.

Environment: YAML_FILE_PATH, DATASET_FOLDER_PATH, MODEL_PATH, MODEL_ID, MODEL_REVISION, METHOD, HOST, PORT,
DEBUG_MODE.
Exit codes: 0 done (now or before), 1 may succeed when tried again, 2 never will, 143 stopped on request with a
checkpoint.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from prometheus_client import CollectorRegistry

from kaito_tuning import checkpoints, config, data, export, model, train
from kaito_tuning.errors import DiskFull, TuningError
from kaito_tuning.metrics import ProgressCollector
from kaito_tuning.progress import Progress, ProgressFile, termination_message
from kaito_tuning.server import ProgressServer

log = logging.getLogger("kaito_tuning")

TERMINATION_LOG = Path("/dev/termination-log")
STOPPED = 143


@dataclass(frozen=True, slots=True)
class Settings:
    """What the Pod's environment says."""

    config_path: Path
    data_folder: Path
    model_folder: Path
    model_id: str
    revision: str
    method: str
    host: str
    port: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """From the environment, with the defaults of the Job."""
        return cls(
            config_path=Path(environment.get("YAML_FILE_PATH", "/mnt/config/training_config.yaml")),
            data_folder=Path(environment.get("DATASET_FOLDER_PATH", "/mnt/data")),
            model_folder=Path(environment.get("MODEL_PATH", "/workspace/tfs/weights")),
            model_id=environment.get("MODEL_ID", ""),
            revision=environment.get("MODEL_REVISION", ""),
            method=environment.get("METHOD", "qlora"),
            host=environment.get("HOST", "127.0.0.1"),
            port=int(environment.get("PORT", "5000")),
        )


def run(settings: Settings, *, stop: Event) -> int:
    """Trains and exports; returns the process's exit code."""
    try:
        parsed = config.load(settings.config_path, known=config.KnownFields.installed())
        output_dir = Path(parsed.output_dir)
        if (output_dir / export.COMPLETED).exists():
            log.info("already trained: %s exists", output_dir / export.COMPLETED)
            return 0
        output_dir.mkdir(parents=True, exist_ok=True)
    except (TuningError, OSError) as error:
        return _failed(error, None)
    progress = ProgressFile(output_dir / "progress.json")
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress.current))
    server = ProgressServer(settings.host, settings.port, current=lambda: progress.current, registry=registry)
    server.start()
    try:
        _train(settings, parsed, output_dir, progress, stop)
    except train.Stopped:
        log.info("stopped on request; the next start continues from the newest checkpoint")
        return STOPPED
    except (TuningError, OSError) as error:
        return _failed(error, progress)
    finally:
        server.stop()
    _terminate(termination_message(progress.current))
    return 0


def _train(
    settings: Settings, parsed: config.TuningConfig, output_dir: Path, progress: ProgressFile, stop: Event
) -> None:
    for sentence in parsed.warnings:
        log.warning("%s", sentence)
    progress.report(Progress(phase="Checking"))
    model.check_folder(settings.model_folder)
    rows = data.load(settings.data_folder, parsed.dataset)
    log.info("%s: %d rows to train on, %d to evaluate on", rows.path.name, len(rows.training), len(rows.evaluation))
    data_bytes = rows.path.read_bytes()
    progress.update(phase="LoadingModel")
    base = model.load(settings.model_folder, parsed)
    job = train.TrainJob(
        base=base,
        config=parsed,
        data=rows,
        output_dir=output_dir,
        key=checkpoints.job_key(
            settings.config_path.read_bytes(),
            data_bytes,
            (settings.model_folder / "config.json").read_bytes(),
            settings.revision.encode(),
        ),
    )
    result = train.fit(job, progress.report, stop)
    for sentence in result.warnings:
        log.warning("%s", sentence)
    progress.update(phase="Exporting")
    export.export(
        job,
        result,
        model_id=settings.model_id or base.model_type,
        revision=settings.revision,
        method=settings.method,
        data_sha256=hashlib.sha256(data_bytes).hexdigest(),
    )
    checkpoints.remove_all(output_dir)
    progress.update(phase="Done", progressPercentage=100, estimatedRemainingSeconds=0, metrics=dict(result.metrics))
    (output_dir / export.COMPLETED).write_text("Fine-tuning completed\n")
    log.info("done: %d steps, loss %.4f", result.steps, result.metrics["loss"])


def _failed(error: TuningError | OSError, progress: ProgressFile | None) -> int:
    if isinstance(error, OSError):
        error = DiskFull(f"a file could not be read or written: {error.strerror or error} ({error.filename})")
    log.error("%s: %s", error.reason, error)
    if progress is not None:
        progress.update(phase="Failed", reason=error.reason, message=str(error))
    _terminate(f"{error.reason}: {error}")
    return 2 if error.permanent else 1


def _terminate(message: str) -> None:
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(message)


def main() -> int:
    """The process: logging, signals, a home folder that can be written."""
    debug = os.environ.get("DEBUG_MODE", "").lower() == "true"
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = Event()
    asked = False

    def on_signal(*_: object) -> None:
        nonlocal asked
        if not asked:  # a second signal may interrupt the first one's hold of the event's lock
            asked = True
            stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    scratch = Path(tempfile.mkdtemp(prefix="kaito-tuning-"))
    os.environ.setdefault("HF_HOME", str(scratch))
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        return run(Settings.read(os.environ), stop=stop)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
