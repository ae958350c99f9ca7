"""Every family that can be tuned learns, by every method, from every form of rows, packed or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import save_file
from tests.unit.tuning.families import FAMILIES, make
from tests.unit.tuning.family_tokenizers import SPECIAL
from tests.unit.tuning.job import boxes
from tests.unit.tuning.trained import FOUR_BITS, configuration, job, losses, table, train
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kaito_serving.model.folder import ARCHITECTURES
from kaito_tuning.config.targets import NEVER_PACKED, TARGETS
from kaito_tuning.training import TrainResult, proof

Rows = Sequence[Mapping[str, Any]]

# Falcon's mask knows nothing of position ids (transformers 5.23): its packed documents would see each other.
PACK = frozenset(FAMILIES) - NEVER_PACKED
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lora": {},
    "lora in 16 bits": {"ModelConfig": {"torch_dtype": "bfloat16"}},
    "qlora": {"QuantizationConfig": FOUR_BITS | {"bnb_4bit_compute_dtype": "float32"}},
    "int8": {"QuantizationConfig": {"load_in_8bit": True}},
}
FORMS: Mapping[str, Callable[[], Rows]] = {
    "messages": boxes,
    "pairs": lambda: [
        {"prompt": row["messages"][0]["content"], "completion": " " + row["messages"][1]["content"]} for row in boxes()
    ],
    "pairs of messages": lambda: [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in boxes()
    ],
    "text": lambda: [{"text": " ".join(message["content"] for message in row["messages"])} for row in boxes()],
}


@pytest.fixture(scope="module")
def tiny(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: make(family, root / family, tokenizer=model))


PRESETS = Path(__file__).parents[3] / "presets" / "models"


def known_architectures() -> set[str]:
    """Those of the presets, and all that the model server runs, which serves what was tuned."""
    entries = [entry for path in sorted(PRESETS.glob("*.yaml")) for entry in yaml.safe_load(path.read_text()).values()]
    return {entry["architecture"] for entry in entries if "architecture" in entry} | ARCHITECTURES


def test_every_architecture_of_a_preset_and_of_the_server_can_be_tuned() -> None:
    types = {architecture: name for name, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    types |= {"Gemma3ForCausalLM": "gemma3_text"}  # its config.json; the library maps the model with images to it too
    assert {types[name] for name in known_architectures()} <= set(TARGETS)
    assert set(TARGETS) == set(FAMILIES) == set(SPECIAL)


@pytest.mark.parametrize("family", TARGETS)
def test_all_that_multiplies_by_weights_is_adapted_but_the_head(tiny: Callable[[str], Path], family: str) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny(family))
    linear = {name.rsplit(".", 1)[-1] for name, part in network.named_modules() if isinstance(part, torch.nn.Linear)}
    assert set(TARGETS[family]) == linear - {"lm_head"}


def check(result: TrainResult, folder: Path, output: Path, load: Callable[[], Any], *, chats: bool) -> None:
    """It learned, every kind of module has its part in it, and plain PEFT takes the files."""
    measured = losses(result)
    assert (result.chat_template is not None) is (chats and result.model_type != "phi3")
    assert measured[-1] < measured[0]
    family = result.model_type
    adapted = {name.removesuffix(".weight").removesuffix(".lora_B").rsplit(".", 1)[-1] for name in result.weights}
    assert set(TARGETS[family]) <= adapted | {"lora_A"}
    moved = {name: tensor for name, tensor in result.weights.items() if "lora_B" in name}
    assert all(float(tensor.abs().max()) > 0 for tensor in moved.values())
    adapter = output / "adapter"
    adapter.mkdir()
    save_file(dict(result.weights), adapter / proof.WEIGHTS, metadata={"format": "pt"})
    result.lora.save_pretrained(adapter)
    proof.usable(adapter, result.weights, load)
    base = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        before = base(input_ids=tokens).logits
        after = PeftModel.from_pretrained(base, adapter)(input_ids=tokens).logits
    assert not torch.equal(before, after)


def trained(
    folder: Path, output: Path, method: str, form: str, *, packed: bool
) -> tuple[TrainResult, Callable[[], Any]]:
    arguments = {"packing": packed, "max_length": 64, "max_steps": 4, "learning_rate": 5e-3}
    config = configuration(TrainingArguments=arguments, **METHODS[method])
    work = job(folder, output, config, table(FORMS[form]()))
    result = train(work)
    assert result.settings["packing"] is (packed and result.model_type in PACK), result.warnings
    return result, work.load_base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "form", "packed"), [("lora", "pairs", True), ("qlora", "messages", False)])
def test_a_family_learns(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, method: str, form: str, packed: bool
) -> None:
    result, load = trained(tiny(family), tmp_path, method, form, packed=packed)
    check(result, tiny(family), tmp_path, load, chats="messages" in form)


@pytest.mark.parametrize("method", ["int8", "lora in 16 bits"])
def test_a_base_model_in_eight_or_sixteen_bits_is_trained_on(
    tiny: Callable[[str], Path], tmp_path: Path, method: str
) -> None:
    result, load = trained(tiny("llama"), tmp_path, method, "messages", packed=False)
    check(result, tiny("llama"), tmp_path, load, chats=True)
    assert all(tensor.dtype == torch.float32 for tensor in result.weights.values())


@pytest.mark.soak
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one row each"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_by_every_method_on_every_form(
    tiny: Callable[[str], Path], tmp_path: Path, family: str, method: str, form: str, packed: bool
) -> None:
    result, load = trained(tiny(family), tmp_path, method, form, packed=packed)
    check(result, tiny(family), tmp_path, load, chats="messages" in form)


def test_ranks_and_alphas_by_pattern_reach_the_modules_that_they_name(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    patterns = {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 16}, "alpha_pattern": {"o_proj": 64}}
    config = configuration(LoraConfig=patterns, TrainingArguments={"max_steps": 1})
    result = train(job(tiny("llama"), tmp_path, config, table(boxes())))
    ranks = {
        name.split(".model.", 1)[-1]: tensor.shape[0] for name, tensor in result.weights.items() if "lora_A" in name
    }
    assert {rank for name, rank in ranks.items() if ".q_proj." in name} == {2}
    assert [ranks[f"model.layers.{layer}.mlp.down_proj.lora_A.weight"] for layer in (0, 1)] == [8, 16]
    assert {rank for name, rank in ranks.items() if ".k_proj." in name} == {8}
    assert result.lora.alpha_pattern == {"o_proj": 64}
