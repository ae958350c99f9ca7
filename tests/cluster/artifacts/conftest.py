"""What the tests of artifacts share: a real registry, a Secret that opens it, the commands of our containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.artifacts.command import ADAPTER, Command
from tests.cluster.artifacts.registry_fixture import RegistryServer, RunningRegistry


@pytest.fixture(scope="module")
def registry_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    server = RegistryServer(tmp_path_factory.mktemp("registry"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def registry(registry_server: RegistryServer) -> RunningRegistry:
    return registry_server.running


@pytest.fixture
def secret(registry: RunningRegistry, tmp_path: Path) -> Path:
    path = tmp_path / "secret" / ".dockerconfigjson"
    path.parent.mkdir()
    path.write_text(registry.docker_config())
    return path


@pytest.fixture
def command(registry: RunningRegistry, tmp_path: Path) -> Command:
    return Command(registry, tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "adapter"
    folder.mkdir(parents=True)
    for name, data in ADAPTER.items():
        (folder / Path(name).name).write_bytes(data)
    return folder
