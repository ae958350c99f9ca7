"""The job from the configuration to the files that `push` takes, and the sentence with which it ends."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from kaito_tuning import config, data, export, training
from kaito_tuning.chat import templates
from kaito_tuning.config import expressible
from kaito_tuning.data import shared
from kaito_tuning.data.content import printable
from kaito_tuning.errors import ConfigInvalid, OutOfMemory, TuningError
from kaito_tuning.process import checkpoints, killed, launch, recovery
from kaito_tuning.process.stop import StopRequest
from kaito_tuning.progress import History, Progress, ProgressFile, termination_message
from kaito_tuning.progress.metrics import ProgressCollector
from kaito_tuning.progress.server import ProgressServer
from kaito_tuning.training import identity, model
from kaito_tuning.training.failures import explained
from kaito_tuning.training.precision import Device

log = logging.getLogger("kaito_tuning")

DONE, RETRY, REFUSED, STOPPED = 0, 1, 2, 143
"""Exit codes: done (this time or before); may succeed when tried again; never will; stopped on request."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the Pod's environment says; ``rank`` of ``processes`` is this one, all of one ``start``.

    ``shared``: a folder of all processes of one start, if there are several.
    """

    config_path: Path
    data_folder: Path
    model_folder: Path
    model_id: str
    revision: str
    method: str
    host: str
    port: int
    termination_log: Path
    context_length: int | None
    serve_result: bool
    rank: int
    processes: int
    start: str
    shared: Path | None = None

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
            termination_log=Path(environment.get("TERMINATION_LOG", "/dev/termination-log")),
            context_length=int(environment["CONTEXT_LENGTH"]) if environment.get("CONTEXT_LENGTH") else None,
            serve_result=environment.get("SERVE_RESULT", "true").lower() != "false",
            rank=int(environment.get("RANK", "0")),
            processes=int(environment.get("WORLD_SIZE", "1")),
            start=environment.get("MASTER_PORT", ""),
            shared=Path(environment[launch.SHARED_FOLDER]) if launch.SHARED_FOLDER in environment else None,
        )


@dataclass(slots=True)
class _Start:
    """What this start of the job has found out so far, for the sentence if it fails."""

    key: str = ""
    output_dir: Path | None = None
    trained: bool = False
    progress: ProgressFile | None = None
    running: killed.Running | None = None
    served: list[ProgressServer] = field(default_factory=list)


def run(settings: Settings, *, stop: StopRequest) -> int:
    """Trains and exports; returns the process's exit code. Raises Stopped when ``stop`` was asked."""
    start = _Start()
    try:
        return _run(settings, start, stop)
    except Exception as error:
        return _failed(settings, start, explained(error, trained=start.trained))
    finally:
        if start.running is not None:
            start.running.end()
        for server in start.served:
            server.stop()


def _run(settings: Settings, start: _Start, stop: StopRequest) -> int:
    parsed = config.load(settings.config_path, known=config.KnownFields.installed())
    start.key = identity.configured(settings.config_path.read_bytes())
    output_dir = Path(parsed.output_dir)
    if export.is_complete(output_dir):
        log.info("already trained: %s exists", output_dir / export.COMPLETED)
        _tidy(output_dir)
        return DONE
    output_dir.mkdir(parents=True, exist_ok=True)
    start.output_dir = output_dir
    if settings.rank == 0:
        start.progress = _serve(settings, start, output_dir)
    start.running = killed.Running(output_dir, start=settings.start, rank=settings.rank)
    left = start.running.begin()
    if left is not None and start.progress is not None:
        _after_a_kill(start, start.progress, left, output_dir)
    for sentence in parsed.warnings:
        log.warning("%s", sentence)
    if settings.serve_result and (unserved := [*expressible.problems(parsed.lora)]):
        raise ConfigInvalid("; ".join(unserved))

    model_type = model.check_folder(settings.model_folder)
    configured = parsed.model.get("chat_template")
    refusal = templates.refusal_of_model(settings.model_folder, model_type=model_type, configured=configured)
    rows = _rows(settings, parsed.dataset, refusal)
    for sentence in rows.warnings:
        log.warning("%s", sentence)
    log.info("%s: %d rows to train on, %d to evaluate on", rows.names, len(rows.training), len(rows.evaluation or ()))
    start.key = identity.whole(
        start.key,
        settings.model_folder,
        data=rows.digest,
        template=templates.configured_text(configured) if configured else None,
        revision=settings.revision,
        context_length=settings.context_length,
        processes=settings.processes,
    )
    gpu = settings.rank if settings.processes > 1 else None
    job = training.TrainJob(
        load_base=partial(model.load, settings.model_folder, parsed, device=Device.here(), gpu=gpu),
        config=parsed,
        data=rows,
        output_dir=output_dir,
        key=start.key,
        context_length=settings.context_length,
        rank=settings.rank,
        processes=settings.processes,
    )
    progress = start.progress
    if progress is None:
        training.fit(job, lambda _: None, stop, history=History())
        return DONE
    progress.update(phase="LoadingModel")
    result = training.fit(job, progress.report, stop, history=progress.history, tell=progress.tell)
    start.trained = True
    for sentence in result.warnings:
        log.warning("%s", sentence)
    progress.update(phase="Exporting")
    export.export(job, result, _origin(settings, rows, result), chat_template=result.chat_template)
    progress.update(phase="Done", progressPercentage=100, estimatedRemainingSeconds=0, metrics=dict(result.metrics))
    progress.leave()
    export.complete(output_dir)
    _tidy(output_dir)
    loss = result.metrics.get("loss")
    log.info("done: %d steps%s", result.steps, "" if loss is None else f", loss {loss:.4f}")
    _terminate(settings.termination_log, termination_message(progress.current))
    return DONE


def _rows(settings: Settings, wanted: config.DatasetConfig, refusal: data.Refusal) -> data.Data:
    if settings.shared is None:
        return data.load(settings.data_folder, wanted, refusal=refusal)
    first = settings.rank == 0
    return shared.load(settings.data_folder, wanted, refusal=refusal, shared=settings.shared, first=first)


def _origin(settings: Settings, rows: data.Data, result: training.TrainResult) -> export.Origin:
    return export.Origin(
        model_id=settings.model_id or result.model_type,
        revision=settings.revision,
        method=settings.method,
        data_files=rows.file_names,
        data_form=rows.form,
        data_sha256=rows.digest,
        training_rows=len(rows.training),
        evaluation_rows=len(rows.evaluation or ()),
        skipped_rows=rows.skipped,
        config_sha256=hashlib.sha256(settings.config_path.read_bytes()).hexdigest(),
    )


def _serve(settings: Settings, start: _Start, output_dir: Path) -> ProgressFile:
    progress = ProgressFile(output_dir / "progress.json")
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress.current))
    server = ProgressServer(settings.host, settings.port, progress=progress, registry=registry)
    server.start()
    start.served.append(server)
    progress.report(Progress(phase="Checking"))
    return progress


def _after_a_kill(start: _Start, progress: ProgressFile, left: killed.Memory, output_dir: Path) -> None:
    """Tells of a start that was killed. Raises OutOfMemory when memory has killed it too often."""
    sentence = killed.sentence(left)
    log.warning("%s", sentence)
    progress.tell(sentence)
    if left.near:
        step = checkpoints.newest_step(output_dir, key=start.key)
        past = recovery.read(output_dir, key=start.key).failed(step, start=left.start)
        recovery.write(output_dir, past)
        if past.exhausted:
            raise OutOfMemory(f"{sentence} ({past.failures} times in a row)")


def _failed(settings: Settings, start: _Start, error: TuningError) -> int:
    code = REFUSED if error.permanent else RETRY
    sentence = printable(str(error))
    if start.output_dir is not None and not error.permanent:
        step = checkpoints.newest_step(start.output_dir, key=start.key)
        past = recovery.read(start.output_dir, key=start.key).failed(step, start=settings.start)
        recovery.write(start.output_dir, past)
        if past.exhausted:
            code, sentence = REFUSED, f"{sentence} ({past.failures} times in a row)"
    # Before anything that writes to the volume, which may be what is full.
    _terminate(settings.termination_log, f"{error.reason}: {sentence}")
    log.error("%s: %s", error.reason, sentence)
    log.debug("the error came from", exc_info=error)
    if start.progress is not None:
        start.progress.update(phase="Failed", reason=error.reason, message=sentence)
    return code


def _tidy(output_dir: Path) -> None:
    checkpoints.remove_all(output_dir)
    recovery.remove(output_dir)


def _terminate(path: Path, message: str) -> None:
    if path.exists():
        path.write_text(message, encoding="utf-8", errors="backslashreplace")
