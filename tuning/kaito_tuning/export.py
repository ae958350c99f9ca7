"""The result: plain PEFT files with a model card and a report, proven to load before the job calls itself done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from kaito_tuning.errors import NonFiniteLoss, TuningError
from kaito_tuning.train import TrainJob, TrainResult

ADAPTER_FOLDER = "adapter"
COMPLETED = "fine_tuning_completed.txt"
_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes")


def export(job: TrainJob, result: TrainResult, *, model_id: str, revision: str, method: str, data_sha256: str) -> Path:
    """Writes ``<output_dir>/adapter`` and returns it; files are readable by every uid (0644).

    Raises TuningError when the written adapter, loaded again, does not change the base model's logits.
    """
    folder = job.output_dir / ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    result.model.save_pretrained(folder, safe_serialization=True)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text())
    config |= {"base_model_name_or_path": model_id, "revision": revision or None, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    _prove(result.model, folder)

    report = _report(job, result, model_id=model_id, revision=revision, method=method, data_sha256=data_sha256)
    (folder / "tuning_report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    with (folder / "training_metrics.jsonl").open("w") as lines:
        lines.writelines(json.dumps(entry, sort_keys=True) + "\n" for entry in result.history)
    (folder / "README.md").write_text(_card(report))
    kept = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "training_metrics.jsonl",
        "tuning_report.json",
    }
    for path in folder.iterdir():
        if path.name in kept:
            path.chmod(0o644)
        else:
            path.unlink()
    return folder


def _prove(model: Any, folder: Path) -> None:
    import torch

    device = model.get_input_embeddings().weight.device
    tokens = torch.arange(16, device=device).unsqueeze(0)
    model.eval()
    model.load_adapter(str(folder), adapter_name="written", is_trainable=False)
    model.set_adapter("written")
    with torch.no_grad():
        tuned = model(input_ids=tokens, use_cache=False).logits.float()
        with model.disable_adapter():
            base = model(input_ids=tokens, use_cache=False).logits.float()
    model.delete_adapter("written")
    if not math.isfinite(float(tuned.abs().max())):
        raise NonFiniteLoss("the tuned model's answers are not finite; lower TrainingArguments.learning_rate")
    if torch.equal(tuned, base):
        raise TuningError("the training changed nothing; raise TrainingArguments.num_train_epochs or learning_rate")


def _report(
    job: TrainJob, result: TrainResult, *, model_id: str, revision: str, method: str, data_sha256: str
) -> dict[str, Any]:
    settings = {key: value for key, value in result.settings.items() if isinstance(value, str | int | float | bool)}
    return {
        "baseModel": model_id,
        "revision": revision,
        "method": method,
        "lora": {key: job.config.lora.get(key) for key in ("r", "lora_alpha", "lora_dropout")},
        "dtype": job.base.dtype,
        "data": {
            "file": job.data.path.name,
            "sha256": data_sha256,
            "trainingRows": len(job.data.training),
            "evaluationRows": len(job.data.evaluation),
            "form": job.data.form,
        },
        "steps": result.steps,
        "metrics": dict(result.metrics),
        "settings": settings,
        "warnings": list(result.warnings),
        "versions": {name: metadata.version(name) for name in _LIBRARIES},
    }


def _card(report: Mapping[str, Any]) -> str:
    data, metrics = report["data"], report["metrics"]
    lines = [
        "---",
        f"base_model: {report['baseModel']}",
        "library_name: peft",
        "tags: [lora]",
        "---",
        f"# Adapter of {report['baseModel']}",
        "",
        f"- Base model: {report['baseModel']}" + (f" at revision {report['revision']}" if report["revision"] else ""),
        f"- Method: {report['method']}, rank {report['lora']['r']}, alpha {report['lora']['lora_alpha']}",
        f"- Data: {data['file']} (sha256 {data['sha256']}), {data['trainingRows']} rows to train on, "
        f"{data['evaluationRows']} to evaluate on",
        f"- Steps: {report['steps']}, loss {metrics['loss']:.4f}"
        + (f", evaluation loss {metrics['evalLoss']:.4f}" if "evalLoss" in metrics else ""),
        f"- Seed: {report['settings'].get('seed')}",
        f"- Made with {', '.join(f'{k} {v}' for k, v in report['versions'].items())}",
    ]
    return "\n".join(lines) + "\n"
