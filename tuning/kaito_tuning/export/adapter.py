"""The result: plain PEFT files with a model card and a report, proven to load before the job calls itself done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kaito_tuning.export import report
from kaito_tuning.process import checkpoints
from kaito_tuning.training import TrainJob, TrainResult

ADAPTER_FOLDER = "adapter"
COMPLETED = "fine_tuning_completed.txt"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def export(job: TrainJob, result: TrainResult, origin: report.Origin, *, chat_template: str | None = None) -> Path:
    """Writes ``<output_dir>/adapter`` and returns it; files are readable by every uid (0644), and there are no others.

    ``chat_template``: the one that was trained with, if the base model has none of its own. Raises TuningError when the
    written files, loaded on a fresh base model, are not the adapter that was trained.
    """
    from safetensors.torch import save_file

    from kaito_tuning.training.proof import WEIGHTS, usable

    folder = job.output_dir / ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(result.weights), folder / WEIGHTS, metadata={"format": "pt"})
    result.lora.save_pretrained(folder)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text()) | {
        "base_model_name_or_path": origin.model_id,
        "revision": origin.revision or None,
        "inference_mode": True,
    }
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(_json(config))
    usable(folder, result.weights, job.load_base)

    made = report.report(
        origin,
        lora=config,
        dtype=result.dtype,
        steps=result.steps,
        metrics=result.metrics,
        settings=result.settings,
        warnings=result.warnings,
        versions={name: metadata.version(name) for name in _LIBRARIES},
    )
    written = {
        "tuning_report.json": _json(made),
        "lineage.json": _json(report.lineage(made)),
        "training_metrics.jsonl": report.log_lines(result.history),
        "README.md": report.card(made),
    }
    if chat_template:
        written["chat_template.jinja"] = chat_template
    for name, text in written.items():
        (folder / name).write_text(text)
    for path in folder.iterdir():
        if path.name in written or path in (config_path, folder / WEIGHTS):
            path.chmod(0o644)
        else:
            path.unlink()
    return folder


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def is_complete(output_dir: Path) -> bool:
    """Whether an earlier start of the job ended well."""
    return (output_dir / COMPLETED).exists()


def complete(output_dir: Path) -> None:
    """Makes the result last: every file on the disk, then the file that says so, at once."""
    for path in [*(output_dir / ADAPTER_FOLDER).iterdir(), output_dir / ADAPTER_FOLDER]:
        checkpoints.sync(path)
    partial = output_dir / f".{COMPLETED}"
    partial.write_text("Fine-tuning completed\n")
    checkpoints.sync(partial)
    partial.replace(output_dir / COMPLETED)
    checkpoints.sync(output_dir)
