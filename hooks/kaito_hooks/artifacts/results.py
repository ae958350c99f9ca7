"""What a training left beside the adapter, for its image's annotations and for who asks while it is pushed.

Nothing of it is needed to push: what is missing or cannot be read is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ANNOTATION_PREFIX = "kaito.sh/"
MESSAGE_LIMIT = 4096
"""Bytes that the kubelet keeps of a termination message."""
_KEY = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST_VALUE = 2048
_NOT_REPEATED = ("versions", "metrics")


@dataclass(frozen=True, slots=True)
class Results:
    """``progress``: the trainer's last state, ``history``: its curves, ``page``: its page for a browser,
    ``series``: that state as Prometheus reads it."""

    progress: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    page: bytes = b""
    series: bytes = b""

    @classmethod
    def read(cls, folder: Path | None) -> Results:
        """From the trainer's folder; None: there is none."""
        if folder is None:
            return cls()
        return cls(
            progress=_read(folder / "progress.json"),
            history=_read(folder / "history.json"),
            page=_bytes(folder / "progress.html"),
            series=_bytes(folder / "metrics.txt"),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the last state."""
        found = self.progress.get("metrics")
        return {key: value for key, value in found.items() if _is_number(value)} if isinstance(found, Mapping) else {}


def lineage(folder: Path) -> dict[str, str]:
    """What the adapter in ``folder`` was made from: texts by names in lower case."""
    found = _read(folder / "lineage.json")
    return {
        key: value[:_LONGEST_VALUE] for key, value in found.items() if _KEY.fullmatch(key) and isinstance(value, str)
    }


def manifest_annotations(lineage: Mapping[str, str]) -> dict[str, str]:
    """Of the image's manifest."""
    return {f"{ANNOTATION_PREFIX}{key}": value for key, value in lineage.items()}


def message(*, image: str, digest: str, metrics: Mapping[str, float], lineage: Mapping[str, str]) -> str:
    """The termination message: JSON of at most MESSAGE_LIMIT bytes. Of the lineage the longest texts go first."""
    kept = {key: value for key, value in lineage.items() if key not in _NOT_REPEATED}
    while True:
        document = {"image": image, "digest": digest, "metrics": dict(metrics)} | ({"lineage": kept} if kept else {})
        text = json.dumps(document)
        if not kept or len(text.encode()) <= MESSAGE_LIMIT:
            return text
        del kept[max(kept, key=lambda key: len(kept[key]))]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
