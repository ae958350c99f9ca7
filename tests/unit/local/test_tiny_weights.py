"""When the tiny model is trained, and when the one that is there is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kaito_local.errors import BuildError
from kaito_local.images.weights import tiny_weights

PINS = "numpy==2.0.0\ntokenizers==0.22.0\ntorch==2.13.0\ntransformers==5.0.0\n"


@dataclass
class Training:
    """Writes a model; with ``error`` it fails half-way."""

    error: BaseException | None = None
    folders: list[Path] = field(default_factory=list)

    def __call__(self, folder: Path) -> None:
        assert not folder.exists(), "nothing of an earlier training may be mixed with this one"
        self.folders.append(folder)
        folder.mkdir(mode=0o700, parents=True)
        (folder / "config.json").write_text("{}")
        if self.error is not None:
            raise self.error
        (folder / "model.safetensors").write_text("weights")


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    def weights(train: Training, pins: str = PINS) -> Path:
        (tmp_path / "constraints.txt").write_text(pins)
        return tiny_weights(tmp_path / "cache", train=train, root=tmp_path)

    return weights


def test_the_model_is_trained_once_and_other_users_may_read_it(weights: Callable[..., Path]) -> None:
    training = Training()
    folder = weights(training)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert weights(training) == folder
    assert len(training.folders) == 1


@pytest.mark.parametrize(
    "pins",
    [
        PINS.replace("torch==2.13.0", "torch==2.14.0"),
        PINS.replace("transformers==5.0.0", "transformers==5.0.1"),
        PINS.replace("tokenizers==0.22.0", "tokenizers==0.22.1"),
    ],
    ids=["torch", "transformers", "tokenizers"],
)
def test_another_version_of_a_library_trains_another_model_and_the_old_one_goes(
    weights: Callable[..., Path], pins: str
) -> None:
    training = Training()
    old = weights(training)
    new = weights(training, pins)
    assert new != old
    assert len(training.folders) == 2
    assert sorted(new.parent.glob("tiny-*")) == [new]


def test_another_version_of_what_the_model_is_not_made_with_changes_nothing(weights: Callable[..., Path]) -> None:
    training = Training()
    pins = PINS.replace("numpy==2.0.0", "numpy==2.1.0") + "torchvision==0.1\n# torch is pinned above\n"
    assert weights(training) == weights(training, pins)
    assert len(training.folders) == 1


def test_what_the_user_keeps_beside_the_model_stays(weights: Callable[..., Path], tmp_path: Path) -> None:
    own = tmp_path / "cache" / "weights" / "own"
    own.mkdir(parents=True)
    weights(Training())
    assert own.is_dir()


@pytest.mark.parametrize("error", [BuildError("no disk"), KeyboardInterrupt()], ids=["failure", "interruption"])
def test_a_training_that_fails_leaves_no_model_and_the_next_call_trains_again(
    weights: Callable[..., Path], tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        weights(Training(error))
    assert list((tmp_path / "cache" / "weights").glob("tiny-*")) == []
    training = Training()
    assert (weights(training) / "model.safetensors").exists()
    assert len(training.folders) == 1
    assert {path.name for path in (tmp_path / "cache" / "weights").iterdir()} == {weights(training).name}


def test_a_training_that_fails_leaves_the_model_of_before(weights: Callable[..., Path]) -> None:
    before = weights(Training())
    with pytest.raises(BuildError):
        weights(Training(BuildError("no disk")), PINS.replace("torch==2.13.0", "torch==2.14.0"))
    assert (before / "model.safetensors").exists()
