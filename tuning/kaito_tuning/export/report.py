"""What is written about an adapter beside it: the report, the model card, the lineage, the log lines.

All are functions of what went in and what was measured, without times and speeds, so that the same training gives the
same bytes and with them the same digest of the pushed image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN_SETTINGS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
_LORA = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "bias",
)  # fmt: skip
_MEASURED_AT_WILL = ("tokensPerSecond", "peakGPUMemoryBytes")
_TIMES = re.compile(r"(^|_)(runtime|model_preparation_time|total_flos)$|_per_second$")


@dataclass(frozen=True, slots=True)
class Origin:
    """What an adapter was made from.

    ``model_id`` and ``revision``: of the base model, the revision is "" if nobody knows it. ``data_files``: names.
    ``data_sha256``, ``config_sha256``: hex, over the bytes of the data's files and of training_config.yaml.
    """

    model_id: str
    revision: str
    method: str
    data_files: tuple[str, ...]
    data_form: str
    data_sha256: str
    training_rows: int
    evaluation_rows: int
    skipped_rows: int
    config_sha256: str


def report(
    origin: Origin,
    *,
    lora: Mapping[str, Any],
    dtype: str,
    steps: int,
    metrics: Mapping[str, float],
    settings: Mapping[str, Any],
    warnings: Iterable[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """tuning_report.json. ``lora``: adapter_config.json; ``settings``: the trainer's arguments."""
    return {
        "baseModel": origin.model_id,
        "revision": origin.revision,
        "method": origin.method,
        "lora": {key: lora[key] for key in _LORA if lora.get(key)},
        "dtype": dtype,
        "data": {
            "files": list(origin.data_files),
            "sha256": origin.data_sha256,
            "form": origin.data_form,
            "trainingRows": origin.training_rows,
            "evaluationRows": origin.evaluation_rows,
            "skippedRows": origin.skipped_rows,
        },
        "configSha256": origin.config_sha256,
        "steps": steps,
        "metrics": repeatable(metrics),
        "settings": {key: value for key, value in settings.items() if isinstance(value, str | int | float | bool)},
        "warnings": list(warnings),
        "versions": dict(versions),
    }


def lineage(report: Mapping[str, Any]) -> dict[str, str]:
    """lineage.json: what the pushed image is annotated with, as ``kaito.sh/<key>``; what nobody knows is left out."""
    found = {
        "base-model": report["baseModel"],
        "base-revision": report["revision"],
        "data-digest": f"sha256:{report['data']['sha256']}",
        "data-rows": str(report["data"]["trainingRows"]),
        "config-digest": f"sha256:{report['configSha256']}",
        "method": report["method"],
        "seed": str(report["settings"].get("seed", "")),
        "versions": ", ".join(f"{name}={version}" for name, version in sorted(report["versions"].items())),
        "metrics": json.dumps(report["metrics"], sort_keys=True),
    }
    return {key: value for key, value in found.items() if value}


def log_lines(history: Iterable[Mapping[str, Any]]) -> str:
    """training_metrics.jsonl: the trainer's log without how long anything took."""
    kept = ({key: value for key, value in entry.items() if not _TIMES.search(key)} for entry in history)
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in kept)


def repeatable(metrics: Mapping[str, float]) -> dict[str, float]:
    """The measures that the same training gives again, to seven digits."""
    return {key: float(f"{value:.7g}") for key, value in sorted(metrics.items()) if key not in _MEASURED_AT_WILL}


def card(report: Mapping[str, Any]) -> str:
    """README.md: the model card, in the form that hubs read."""
    data, lora, metrics, settings = report["data"], report["lora"], report["metrics"], report["settings"]
    base = report["baseModel"]
    facts = {
        "Base model": f"{_code(base)}" + (f" at revision {_code(report['revision'])}" if report["revision"] else ""),
        "Method": f"{report['method']}, computed in {report['dtype']}",
        "LoRA": f"rank {lora.get('r')}, alpha {lora.get('lora_alpha')}, dropout {lora.get('lora_dropout', 0)}, "
        f"on {', '.join(map(_code, lora.get('target_modules', ())))}",
        "Data": f"{', '.join(map(_code, data['files']))}, {data['form']}, sha256 {_code(data['sha256'])}",
        "Rows": f"{data['trainingRows']} to train on, {data['evaluationRows']} to evaluate on"
        + (f", {data['skippedRows']} left out" if data["skippedRows"] else ""),
        "Configuration": f"sha256 {_code(report['configSha256'])}",
        "Settings": ", ".join(f"{key} {settings[key]}" for key in _SHOWN_SETTINGS if key in settings),
        "Steps": str(report["steps"]),
        "Loss": _number(metrics.get("loss")),
        "Evaluation loss": _number(metrics.get("evalLoss")),
        "Base model's evaluation loss": _number(metrics.get("baseEvalLoss")),
        "Perplexity": _number(metrics.get("perplexity")),
        "Seed": str(settings.get("seed", "")),
        "Made with": ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items())),
    }
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        "base_model_relation: adapter",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora]",
        "---",
        f"# Adapter of {base}",
        "",
        *(f"- {name}: {value}" for name, value in facts.items() if value),
        "",
        "`training_metrics.jsonl` has the trainer's log, `tuning_report.json` all settings.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _code(text: str) -> str:
    """As code on one line of Markdown, whatever the name holds."""
    line = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"
