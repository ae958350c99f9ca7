"""What tests of every room share: the built programs and real control planes without nodes."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.eventually import eventually
from tests.rooms import pytest_terminal_summary

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress

if TYPE_CHECKING:
    from kaito_hooks.runtime import Client

__all__ = ["pytest_terminal_summary"]

# A background job of a shell ignores Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
LONG_FILES = (
    *("test_tuning_signals.py", "test_tuning_faults.py", "test_tuning_job.py"),
    *("test_fault_matrix.py", "test_killed_controllers.py", "test_release_upgrade.py"),
    *("test_crash_matrix.py", "test_taxonomy.py", "test_conformance.py", "test_helm_versions.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process of pytest-xdist is left alone with one in the end."""
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def programs() -> Mapping[str, Path]:
    """The control plane's programs and helm, by name; built into the user's cache by the first run that needs them."""
    names = [*gotools.CONTROL_PLANE, *gotools.CHARTS]
    return gotools.ensure(names, tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))


@pytest.fixture(scope="session")
def control_plane(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One control plane for the whole run: use namespaces or unique names, and never stop it."""
    with ControlPlane.start(tmp_path_factory.mktemp("control-plane"), programs=programs) as plane:
        yield plane


@pytest.fixture
def fresh_control_plane(programs: Mapping[str, Path], tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of the test's own, to be stopped, started and filled at will."""
    with ControlPlane.start(tmp_path / "control-plane", programs=programs) as plane:
        yield plane


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    """The kubeconfig of the shared control plane's administrator."""
    return control_plane.kubeconfig


@pytest.fixture
def client(kubeconfig: Path) -> Client:
    """The product's own client, as the shared control plane's administrator."""
    from kaito_hooks.runtime import Client

    return Client.load(kubeconfig=str(kubeconfig))


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace of the shared control plane, in which Pods may be created at once."""
    name = f"test-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    eventually(
        lambda: control_plane.kubectl("get", "serviceaccount", "default", "-n", name), every=0.1, despite=CommandError
    )
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
