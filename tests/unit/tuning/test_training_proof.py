"""What proves a result: the weights moved, and the files give them to a base model that never saw the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tests.unit.tuning.families import make
from transformers import AutoModelForCausalLM

from kaito_tuning.errors import ConfigInvalid, NonFiniteLoss, TrainingFailed
from kaito_tuning.training import proof
from kaito_tuning.training.model import BaseModel

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("families") / "llama", tokenizer=model)


@pytest.fixture
def load(folder: Path) -> Callable[[], BaseModel]:
    def loaded() -> BaseModel:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        return BaseModel(model=model, tokenizer=None, dtype="bfloat16", model_type="llama", warnings=())

    return loaded


@pytest.fixture
def tuned(load: Callable[[], BaseModel]) -> Any:
    torch.manual_seed(1)
    return get_peft_model(load().model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))


def moved(tuned: Any, by: float) -> Weights:
    """Its weights after each lora_B changed so much."""
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += by
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(tuned).items()}


def written(folder: Path, tuned: Any, weights: Weights) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / proof.WEIGHTS, metadata={"format": "pt"})
    tuned.peft_config["default"].save_pretrained(folder)
    return folder


def test_a_short_training_counts_though_no_answer_has_changed_yet(tuned: Any) -> None:
    tokens = torch.arange(16).unsqueeze(0)
    start = proof.fingerprint(tuned)
    with pytest.raises(ConfigInvalid, match="the training changed nothing"):
        proof.learned(tuned, start)
    moved(tuned, 1e-8)
    with torch.no_grad():
        after = tuned(input_ids=tokens).logits
        with tuned.disable_adapter():
            before = tuned(input_ids=tokens).logits
    assert torch.equal(before, after)
    proof.learned(tuned, start)


def test_weights_that_are_not_finite_are_no_result(tuned: Any) -> None:
    start = proof.fingerprint(tuned)
    moved(tuned, float("nan"))
    with pytest.raises(NonFiniteLoss):
        proof.learned(tuned, start)


def test_files_are_taken_by_a_fresh_base_model(tmp_path: Path, tuned: Any, load: Callable[[], BaseModel]) -> None:
    weights = moved(tuned, 1e-2)
    proof.usable(written(tmp_path / "good", tuned, weights), weights, load)

    changed = {name: tensor * (2 if "lora_A" in name else 1) for name, tensor in weights.items()}
    with pytest.raises(TrainingFailed, match="does not hold the weights that were trained"):
        proof.usable(written(tmp_path / "other", tuned, changed), weights, load)

    # The file is what was trained, but its names are none that the base model has.
    renamed = {name.replace("q_proj", "x_proj"): tensor for name, tensor in weights.items()}
    with pytest.raises(TrainingFailed, match="the base model does not take the weights"):
        proof.usable(written(tmp_path / "renamed", tuned, renamed), renamed, load)
