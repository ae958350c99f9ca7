"""Where torch comes from: a folder of wheels, a named index, PyTorch's own, or (for a CPU only) the default wheel."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from kaito_local.errors import BuildError
from kaito_local.images import torch_index
from kaito_local.images.torch_index import chosen_index, takes_default_wheel


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").touch()
    return tmp_path


def test_a_wheel_of_the_variant_wins_over_every_index(wheels: Path) -> None:
    asked: list[str] = []
    found = torch_index.torch_index("cpu", wheels=wheels, environment={"TORCH_INDEX": "http://x"}, answers=asked.append)
    assert (found, asked) == ("", [])


@pytest.mark.parametrize("name", ["torch-2.1.0+cpu-cp311-cp311-x.whl", "torch-2.13.0+cpu-cp312-cp312-x.whl"])
def test_a_wheel_of_another_version_or_python_does_not_count(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert torch_index.torch_index("cpu", wheels=tmp_path, environment={}, answers=lambda _: False) is None


def test_a_named_index_is_taken_unasked() -> None:
    found = torch_index.torch_index(
        "cpu", wheels=None, environment={"TORCH_INDEX": "http://x"}, answers=lambda _: False
    )
    assert found == "http://x"


def test_pytorchs_index_is_that_of_the_variant_if_it_answers(wheels: Path) -> None:
    found = torch_index.torch_index("cu126", wheels=wheels, environment={}, answers=lambda _: True)
    assert found is not None
    assert found.endswith("/whl/cu126")
    assert torch_index.torch_index("cpu", wheels=None, environment={}, answers=lambda _: False) is None


def test_the_default_wheel_is_told_with_its_cost_and_is_none_for_a_gpu_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    monkeypatch.setattr(torch_index, "_INDEX", "http://127.0.0.1:9/whl")
    told: list[str] = []
    assert chosen_index("cpu", wheels=None, report=told.append) == ""
    assert len(told) == 1
    assert "GB more" in told[0]
    assert takes_default_wheel("cpu", wheels=None)
    with pytest.raises(BuildError, match="cu126 needs torch's wheel of that name"):
        chosen_index("cu126", wheels=None, report=told.append)


def test_an_index_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is accepted and nothing is said: without a bound the look would last for ever."""
    monkeypatch.delenv("TORCH_INDEX", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(torch_index, "_INDEX", f"http://127.0.0.1:{silent.getsockname()[1]}")
        done = threading.Event()
        begin = time.monotonic()
        threading.Thread(target=lambda: (takes_default_wheel("cpu", wheels=None), done.set()), daemon=True).start()
        assert done.wait(60)
        assert time.monotonic() - begin >= 2
