"""A safetensors file's header: proof that the file is what it says and is whole.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, the header as JSON,
the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaito_hooks.artifacts.errors import Damaged

_LONGEST_HEADER = 100_000_000


def header(path: Path) -> Mapping[str, Any]:
    """Tensor names to dtype, shape and data_offsets. Raises Damaged for a file that is cut or is something else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise Damaged(f"{path.name} is no whole safetensors file ({size} bytes)")
        try:
            tensors = json.loads(file.read(length))
            entries = {name: entry for name, entry in tensors.items() if name != "__metadata__"}
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError):
            raise Damaged(f"{path.name} has no readable safetensors header") from None
    if size != 8 + length + end:
        raise Damaged(f"{path.name} has {size} bytes, but its header announces {8 + length + end}")
    return entries
