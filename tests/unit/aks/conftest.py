from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.mgmt.containerservice import ContainerServiceClient
from tests.unit.aks.sdk import sdk

from kaito_local.aks import Durations, Emulator, Settings


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Emulator]:
    """A cloud whose clock stands still until a test moves it; creations take 600 s, deletions 60 s."""
    durations = Durations(create_cpu=600, create_gpu=600, update=30, delete=60, abort=5)
    with Emulator(Settings(directory=tmp_path / "cloud", clock_speed=0, durations=durations)) as emulator:
        yield emulator


@pytest.fixture
def aks(cloud: Emulator, tmp_path: Path) -> Iterator[ContainerServiceClient]:
    with sdk(cloud, tmp_path) as client:
        yield client
