"""What the tests of artifacts share: a registry on loopback, and transfers that never wait."""

from __future__ import annotations

import random
import ssl
from collections.abc import Iterator

import pytest
from tests.unit.artifacts.fake_registry import FakeRegistry

from kaito_hooks.artifacts.transfer.http import Patience, Transfer


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    running = FakeRegistry()
    yield running
    running.stop()


@pytest.fixture
def storage() -> Iterator[FakeRegistry]:
    """Where the registry may point to: another origin."""
    running = FakeRegistry()
    yield running
    running.stop()


@pytest.fixture
def transfer() -> Transfer:
    patience = Patience(connect=2, read=2, tries=3)
    return Transfer(
        tls=ssl.create_default_context(), patience=patience, sleep=lambda seconds: None, rng=random.Random(1)
    )
