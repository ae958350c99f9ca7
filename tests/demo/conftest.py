"""One local cluster for all tests of this folder."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.demo.local_cluster import KAITO, ROOT, Cluster, environment_of

from kaito_local.cluster import preflight
from kaito_local.machine.progress import Progress


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """What real nodes need is installed before the first of them boots."""
    if os.geteuid() == 0:
        preflight.complete_path()
        preflight.require_packages(ROOT / "local" / "packages.sh", progress=Progress.to(sys.stderr))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("real nodes need root")
    name = f"t{secrets.token_hex(2)}"
    begin = time.monotonic()
    up = subprocess.run(
        [str(KAITO), "up", "--name", name, "--values", str(Path(__file__).parent / "values.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        print(f"\nkaito up: {time.monotonic() - begin:.1f} s")
        printed = subprocess.run([str(KAITO), "env", "--name", name], capture_output=True, text=True, check=True).stdout
        yield Cluster(name=name, environment=environment_of(printed))
    finally:
        subprocess.run([str(KAITO), "down", "--name", name, "--purge"], capture_output=True, text=True, check=False)


@pytest.fixture
def workspace(cluster: Cluster) -> Iterator[Callable[..., str]]:
    """Applies a Workspace; whatever the test leaves is deleted afterwards, and its nodes are given back."""
    applied: list[str] = []

    def apply(manifest: str) -> str:
        said = cluster.kubectl("apply", "-f", "-", "-o", "name", stdin=manifest)
        name = said.strip().split("/")[-1]
        applied.append(name)
        return name

    yield apply
    for name in applied:
        cluster.kubectl("delete", "workspace", name, "--ignore-not-found", "--timeout=120s", timeout=150)
