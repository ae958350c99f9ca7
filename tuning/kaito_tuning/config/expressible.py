"""What of a LoraConfig the model server can express exactly, so that nothing is trained that could not be served.

``expressible.json`` is the model server's own list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("expressible.json")
_WAY_OUT = "remove it, or set tuning.serveResult to false to train without serving"


def problems(lora: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each field of a LoraConfig that the model server could not serve."""
    known = _known()
    for key, value in lora.items():
        if (
            key not in known["free"]
            and key not in known["served"]
            and value
            and value not in known["only"].get(key, ())
        ):
            yield f"LoraConfig.{key}: {_shown(value)} cannot be served by the model server; {_WAY_OUT}"
    targets = lora.get("target_modules") or ()
    for name in [targets] if isinstance(targets, str) else targets:
        if str(name).rsplit(".", 1)[-1] in known["never"]:
            yield (
                f"LoraConfig.target_modules: {name} is served as it is in the base model, an adapter cannot change it; "
                f"{_WAY_OUT}"
            )


def _known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(LIST.read_text(encoding="utf-8"))
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
