"""The commands of our containers as processes of their own, and files that they bring or push."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import save
from tests.cluster.artifacts.registry_fixture import RunningRegistry


def tensors(seed: int = 0, size: int = 64) -> bytes:
    """A safetensors file of one tensor, [size, 64] in float32."""
    import numpy

    return save({"weight": numpy.random.default_rng(seed).standard_normal((size, 64)).astype("float32")})


WEIGHTS = tensors()
ADAPTER = {
    "data/adapter_config.json": b'{"peft_type": "LORA", "r": 8}',
    "data/adapter_model.safetensors": WEIGHTS,
}


class Command:
    """Runs them one after the other, each on the same folders."""

    def __init__(self, registry: RunningRegistry, tmp_path: Path) -> None:
        self.termination_log = tmp_path / "termination-log"
        self.destination = tmp_path / "destination"
        self.marks = tmp_path / "marks"
        self.registries: dict[str, object] = {"plainHTTP": [registry.host]}

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code, and the sentence in the termination log."""
        self.termination_log.write_text("")
        script = (
            "import sys, pathlib; from kaito_hooks.artifacts.__main__ import main;"
            f"sys.exit(main(sys.argv[1:], termination_log=pathlib.Path({str(self.termination_log)!r})))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments), *self._into(arguments)],
            env=os.environ | {"KAITO_REGISTRIES": json.dumps(self.registries)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.said = done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, self.termination_log.read_text()

    def _into(self, arguments: tuple[str | Path, ...]) -> list[str]:
        if arguments[0] in ("check", "push", "push-right"):
            return []
        return ["--destination", str(self.destination), "--marks", str(self.marks)]

    def files(self) -> dict[str, bytes]:
        found = {}
        for path in self.destination.rglob("*"):
            if path.is_file():
                found[str(path.relative_to(self.destination))] = path.read_bytes()
        return found
