"""Writes the list of fields from the trainer's rules and the installed libraries: ``make fields``.

The controller and the check before the training have no such libraries; each ships the list.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import kaito_hooks.workspace.tuning
import kaito_serving.lora
from kaito_tuning.config import fields, file, sections
from kaito_tuning.config.expressible import LIST

PATHS = (Path(kaito_hooks.workspace.tuning.__file__).with_name("fields.json"), fields.SHIPPED_FIELDS)


def generate() -> dict[str, Any]:
    known = fields.KnownFields.installed()
    return {
        "versions": {name: metadata.version(name) for name in ("peft", "transformers", "trl")},
        "fields": {
            section: {name: " ".join(sorted(kinds)) for name, kinds in sorted(names.items())}
            for section, names in known.by_section().items()
        },
        "choices": {
            section: {name: list(values) for name, values in sorted(offered.items())}
            for section, offered in known.choices.items()
        },
        "many": file.MANY,
        "kinds": dict(fields.KINDS),
        "renamed": file.RENAMED,
        "gone": sorted(file.GONE),
        "gonePrefix": file.GONE_PREFIX,
        "refused": sorted(file.REFUSED),
        "refusedPrefix": file.REFUSED_PREFIX,
        "dtypes": list(sections.DTYPES),
    }


def expressible() -> str:
    """The model server's own list of what it can express, which the trainer ships, too."""
    return (Path(kaito_serving.lora.__file__).with_name("expressible.json")).read_text()


if __name__ == "__main__":
    for path in PATHS:
        path.write_text(json.dumps(generate(), indent=1) + "\n")
    LIST.write_text(expressible())
