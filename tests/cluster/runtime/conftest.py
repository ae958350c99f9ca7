"""A fault proxy before the shared API server, and what the tests of the runtime watch through it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.proxy import FaultProxy

from kaito_hooks.runtime import Client


@pytest.fixture
def proxy(kubeconfig: Path, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy of the test's own before the shared API server."""
    with FaultProxy.start(kubeconfig, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: FaultProxy) -> Client:
    """A client that speaks through the proxy."""
    return Client.load(kubeconfig=str(proxy.kubeconfig), user_agent="kaito-test")
