"""One reading for the processes of one machine: the first writes the tables, the others open them.

Each would otherwise read, check and write the whole data set, and tokenise rows of its own afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import files, table
from kaito_tuning.data.rows import Refusal
from kaito_tuning.data.table import Data, Written

_NAME = "data.json"
_POLL_SECONDS = 0.2


def load(
    folder: Path,
    config: DatasetConfig,
    *,
    refusal: Refusal,
    shared: Path,
    first: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> Data:
    """What `table.load` gives. ``shared``: a folder that all see, empty at the start and gone after the end.

    Who is not ``first`` waits, for as long as it takes: when the first fails, somebody else has to end the others.
    """
    said = shared / _NAME
    if first:
        written, scratch = table.write(files.select(folder, config), config, refusal=refusal, cache=shared)
        data = table.opened(written, config, scratch=scratch)
        partial = said.with_name(f".{_NAME}")
        partial.write_text(json.dumps({"written": asdict(written), "digest": data.digest}, default=str))
        partial.replace(said)
        return data
    while not said.exists():
        sleep(_POLL_SECONDS)
    found = json.loads(said.read_text())
    return table.opened(_written(found["written"]), config, digest=found["digest"])


def _written(found: dict[str, Any]) -> Written:
    return Written(
        **{
            **found,
            "training": Path(found["training"]),
            "evaluation": Path(found["evaluation"]) if found["evaluation"] else None,
            "files": tuple(map(Path, found["files"])),
            "warnings": tuple(found["warnings"]),
        }
    )
