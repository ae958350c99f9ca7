"""Writes the controller's list of fields from the trainer's rules and the installed libraries: ``make fields``."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import kaito_hooks.workspace.tuning
from kaito_tuning import config

PATH = Path(kaito_hooks.workspace.tuning.__file__).with_name("fields.json")


def generate() -> dict[str, Any]:
    known = config.KnownFields.installed()
    return {
        "versions": {name: metadata.version(name) for name in ("peft", "transformers", "trl")},
        "fields": {
            section: {name: " ".join(sorted(kinds)) for name, kinds in sorted(fields.items())}
            for section, fields in known.by_section().items()
        },
        "choices": {
            section: {name: list(values) for name, values in sorted(offered.items())}
            for section, offered in known.choices.items()
        },
        "many": config.MANY,
        "kinds": dict(config.KINDS),
        "renamed": config.RENAMED,
        "gone": sorted(config.GONE),
        "gonePrefix": config.GONE_PREFIX,
        "refused": sorted(config.REFUSED),
        "refusedPrefix": config.REFUSED_PREFIX,
        "dtypes": list(config.DTYPES),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(generate(), indent=1) + "\n")
