"""Whether a training learned anything, and whether the files that it wrote are what it learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from kaito_tuning.errors import ConfigInvalid, NonFiniteLoss, TrainingFailed
from kaito_tuning.training.model import BaseModel

WEIGHTS = "adapter_model.safetensors"
TOKENS = 16


def fingerprint(model: Any) -> dict[str, str]:
    """A digest of each tensor of a PeftModel's adapter."""
    return {name: _digest(tensor) for name, tensor in get_peft_model_state_dict(model).items()}


def learned(model: Any, start: Mapping[str, str]) -> None:
    """Raises NonFiniteLoss if a tensor of the adapter is not finite, ConfigInvalid if all are as at the start.

    The weights are compared, not answers: a short, honest training changes them, but perhaps no answer yet.
    """
    weights = get_peft_model_state_dict(model)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise NonFiniteLoss("the adapter's weights are not finite; lower TrainingArguments.learning_rate")
    if fingerprint(model) == start:
        raise ConfigInvalid("the training changed nothing; raise TrainingArguments.num_train_epochs or learning_rate")


def usable(folder: Path, weights: Mapping[str, torch.Tensor], load_base: Callable[[], BaseModel]) -> None:
    """Loads the adapter's files on a base model that never saw the training.

    Raises TrainingFailed if it gets other weights than those, NonFiniteLoss if its logits for 16 tokens are not finite.
    """
    written = load_file(folder / WEIGHTS)
    if not _equal(written, weights):
        raise TrainingFailed(f"{folder / WEIGHTS} does not hold the weights that were trained")
    base = load_base().model
    tuned = PeftModel.from_pretrained(base, folder, is_trainable=False)
    loaded = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(tuned).items()}
    if not _equal(loaded, weights):
        raise TrainingFailed(f"the base model does not take the weights of {folder / WEIGHTS}")
    embeddings = tuned.get_input_embeddings().weight
    tokens = torch.arange(TOKENS, device=embeddings.device).remainder(embeddings.shape[0]).unsqueeze(0)
    tuned.eval()
    with torch.no_grad():
        logits = tuned(input_ids=tokens, use_cache=False).logits
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLoss("the tuned model's answers are not finite; lower TrainingArguments.learning_rate")


def _equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        tensor.shape == second[name].shape and bool((tensor.float() == second[name].float()).all())
        for name, tensor in first.items()
    )


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
