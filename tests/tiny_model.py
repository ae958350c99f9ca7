"""The tiny model for tests of every room, trained once into the user's cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kaito_local.images.weights import tiny_weights
from kaito_local.machine.folders import cache_folder


def tiny_model() -> Path:
    """Its folder."""
    return tiny_weights(cache_folder(), train=_train)


def _train(folder: Path) -> None:
    # A process of its own with one thread: torch's threads would spin for a processor that other tests use.
    command = [sys.executable, "-m", "kaito_local.images.tinymodel", str(folder)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
