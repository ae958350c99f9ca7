"""What the tests of the training share: the tiny model's folder and a folder below /mnt."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny_model import tiny_model


@pytest.fixture(scope="session")
def model() -> Path:
    return tiny_model()


@pytest.fixture
def output() -> Iterator[str]:
    """A folder strictly below /mnt, as the configuration demands."""
    yield from _below_mnt()


@pytest.fixture(scope="module")
def module_output() -> Iterator[str]:
    """The same for all tests of a module."""
    yield from _below_mnt()


def _below_mnt() -> Iterator[str]:
    if not os.access("/mnt", os.W_OK):
        pytest.skip("/mnt is not writable here")
    folder = tempfile.mkdtemp(prefix="kaito-test-", dir="/mnt")
    yield folder
    shutil.rmtree(folder)
