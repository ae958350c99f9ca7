"""A LoraConfig that passes the check is one that PEFT puts into the model and that learns; PEFT itself is asked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.unit.tuning import families
from tests.unit.tuning.checked import check, model_folder, write_rows
from tests.unit.tuning.test_tuning_config import QLORA, changed
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from kaito_tuning.config import KnownFields, parse
from kaito_tuning.config.modules import FAMILIES
from kaito_tuning.config.targets import TARGETS, adapted
from kaito_tuning.errors import ConfigInvalid

VOCABULARY = 256
TOKENS = torch.arange(8).unsqueeze(0)

STARTS = [True, False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica"]
PREPARED = ["eva", "corda", "loftq", "lora_ga", "pissa_niter_", "pissa_niter_x", "Pissa", "true", ""]
TAKEN: list[dict[str, Any]] = [
    *({"init_lora_weights": start} for start in STARTS),
    *({name: True} for name in ("lora_bias", "use_dora", "use_rslora", "ensure_weight_tying")),
    *({"layers_to_transform": layers} for layers in (0, [0], [1, 0], [])),
    {"layers_to_transform": [1], "layers_pattern": "layers"},
    {"rank_pattern": {"o_proj": 4}, "alpha_pattern": {r"layers\.0\.mlp\.down_proj": 4}},
    *({"modules_to_save": names} for names in (["lm_head"], ["norm", "embed_tokens"], [])),
    *({"exclude_modules": names} for names in (["o_proj"], r".*layers\.0\..*", [])),
    *({"bias": bias} for bias in ("all", "lora_only")),
    *({"trainable_token_indices": tokens} for tokens in ([1, 255], {"embed_tokens": [1]})),
    {"layer_replication": [[0, 2], [0, 2]], "layers_to_transform": [3]},
    {"alora_invocation_tokens": [1]},
    {"target_modules": ["o_proj", "down_proj"], "lora_dropout": 0.1},
    {"target_modules": ["embed_tokens"]},
    {"target_modules": ["lm_head"]},
    {"velora_config": {"num_groups": 2}},
]
REFUSED: list[dict[str, Any]] = [
    *({"init_lora_weights": start} for start in PREPARED if start),
    {"init_lora_weights": "orthogonal", "r": 3},
    {"init_lora_weights": "orthogonal", "rank_pattern": {"o_proj": 3}},
    {"lora_bias": True, "init_lora_weights": "gaussian"},
    {"lora_bias": True, "use_dora": True},
    {"use_dora": True, "alora_invocation_tokens": [1]},
    {"use_dora": True, "init_lora_weights": "mica"},
    {"alora_invocation_tokens": []},
    *({"layers_to_transform": layers} for layers in (7, [0, 7], -1, ["0"], [True])),
    {"layers_to_transform": [0], "layers_pattern": "nope"},
    {"layers_to_transform": [0], "exclude_modules": r".*layers\.0\..*"},
    {"rank_pattern": {"o_proj": 4}, "exclude_modules": ["o_proj"]},
    {"alpha_pattern": {r"layers\.1\..*": 4}, "layers_to_transform": [0]},
    {"rank_pattern": {r"layers\.7\..*": 4}},
    *({"modules_to_save": names} for names in (["nope"], ["o_proj"], ["mlp"], [""])),
    *({"target_modules": names} for names in (["nope"], ["norm"], ["self_attn"], [""], ["word_embeddings"])),
    *({"target_parameters": names} for names in (["nope"], ["o_proj.weight"])),
    *({"exclude_modules": names} for names in (["nope"], ".*", "(", "nope")),
    *({"trainable_token_indices": tokens} for tokens in ([VOCABULARY], [-1], [], {"nope": [1]}, ["a"])),
    *({"layer_replication": layers} for layers in ([[0, 9]], [[1, 1]], [0, 2])),
    *({name: {}} for name in ("arrow_config", "use_bdlora", "runtime_config", "megatron_config", "kasa_config")),
    {"inference_mode": True},
    {"use_qalora": True},
    {"peft_type": "IA3"},
    {"task_type": "SEQ_CLS"},
]


MEETING: list[dict[str, Any]] = [
    *({name: True} for name in ("lora_bias", "use_dora")),
    {"init_lora_weights": "mica"},
    {"layers_to_transform": [0]},
    *({"modules_to_save": [name]} for name in ("lm_head", "embed_tokens")),
    *({"target_modules": [name]} for name in ("lm_head", "embed_tokens")),
    *({"trainable_token_indices": tokens} for tokens in ([1], {"lm_head": [1]})),
    {"alora_invocation_tokens": [1]},
    {"velora_config": {"num_groups": 2}},
]
"""Those that may be in one another's way."""


def shown(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


@pytest.fixture(scope="module")
def known() -> KnownFields:
    return KnownFields.installed()


def config_of(family: str) -> Any:
    return AutoConfig.for_model(
        family, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **families.SETTINGS[family]
    )


@cache
def base(*, quantized: bool) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("phi3"))
    if quantized:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
            model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options)
    model.config.use_cache = False
    return model


def passes(known: KnownFields, values: Mapping[str, Any], *, quantized: bool) -> dict[str, Any] | None:
    """What the check, which has no model, gives to PEFT; None if it refuses."""
    document = changed("LoraConfig", **values)
    document["training_config"]["QuantizationConfig"] = {"load_in_4bit": quantized}
    try:
        lora = parse(document, known=known).lora
        names = FAMILIES["phi3"].names(2)
        found, _ = adapted(lora, model_type="phi3", module_names=names, vocabulary=VOCABULARY)
    except ConfigInvalid:
        return None
    return {name: value for name, value in found.items() if name != "task_type"}


def refusal_of_peft(lora: Mapping[str, Any], folder: Path | None, *, quantized: bool) -> str:
    """Why no adapter learns with it, or can be loaded again from a folder; "" if one does."""
    try:
        model = get_peft_model(copy.deepcopy(base(quantized=quantized)), LoraConfig(task_type="CAUSAL_LM", **lora))
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        if folder is not None:
            model.save_pretrained(folder)
            PeftModel.from_pretrained(copy.deepcopy(base(quantized=quantized)), folder)
    except Exception as error:  # whatever it is, it would end the job on its node
        return f"{type(error).__name__}: {error}"
    learns = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    return "" if learns and bool(torch.isfinite(loss)) else "it learns nothing"


@pytest.mark.parametrize("quantized", [False, True], ids=["16 bit", "4 bit"])
@pytest.mark.parametrize("values", [*TAKEN, *REFUSED], ids=shown)
def test_what_passes_the_check_is_taken_by_the_library(
    known: KnownFields, tmp_path: Path, values: dict[str, Any], quantized: bool
) -> None:
    lora = passes(known, values, quantized=quantized)
    if values in REFUSED:
        assert lora is None
    if lora is not None:
        assert refusal_of_peft(lora, tmp_path, quantized=quantized) == ""
    elif values in TAKEN:  # only what the library does not take of a quantised model
        assert quantized
        assert refusal_of_peft(values, tmp_path, quantized=True) != ""


def test_two_values_that_pass_together_are_taken_together(known: KnownFields) -> None:
    passed = []
    for first, second in combinations(MEETING, 2):
        if first.keys() & second.keys() or (lora := passes(known, first | second, quantized=False)) is None:
            continue
        if why := refusal_of_peft(lora, None, quantized=False):
            passed.append(f"{shown(first | second)}: {why}")
    assert not passed


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_modules_of_a_family_are_those_of_the_library(family: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(family))
    found = {name for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    known = set(FAMILIES[family].names(2))
    assert found <= known
    assert family == "falcon" or found == known  # whose sizes have other norms
    linear = {name.rsplit(".", 1)[-1] for name in found if isinstance(model.get_submodule(name), torch.nn.Linear)}
    assert linear - {"lm_head"} == {*TARGETS[family]}


@pytest.mark.parametrize("decoder", [True, False], ids=["falcon-40b", "falcon-7b"])
def test_the_modules_of_every_falcon_are_known(decoder: bool) -> None:
    config = config_of("falcon")
    config.new_decoder_architecture, config.parallel_attn, config.num_kv_heads = decoder, decoder, 2
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = {name for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    assert found <= set(FAMILIES["falcon"].names(2))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"layers_to_transform": [40]}, "LoraConfig.layers_to_transform must hold numbers of layers from 0 to 31"),
        ({"modules_to_save": ["score"]}, "LoraConfig.modules_to_save: 'score' is no module that can be trained whole"),
        ({"trainable_token_indices": [40000]}, "must hold ids of tokens from 0 to 32,063, got [40000]"),
        ({"init_lora_weights": "pissa"}, "LoraConfig.init_lora_weights must not be pissa where the base model is"),
        ({"exclude_modules": ["lm_head"]}, "LoraConfig.exclude_modules: 'lm_head' matches no module that is adapted"),
    ],
    ids=lambda value: shown(value) if isinstance(value, dict) else "",
)
def test_the_check_says_so_before_a_node_is_bought(tmp_path: Path, values: dict[str, Any], sentence: str) -> None:
    folder = model_folder(tmp_path / "model", "phi3")
    (folder / "config.json").write_text('{"model_type": "phi3", "num_hidden_layers": 32, "vocab_size": 32064}')
    write_rows(tmp_path / "data", {"text": "a"})
    found = check(tmp_path, document=changed("LoraConfig", **values), SERVE_RESULT="false")
    assert (found.code, found.report["reason"]) == (2, "ConfigInvalid")
    assert sentence in found.report["problems"][0]


def test_layers_of_a_model_that_nobody_describes_are_not_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "data", {"text": "a"})
    document = copy.deepcopy(QLORA)
    document["training_config"]["LoraConfig"] |= {"layers_to_transform": [40], "trainable_token_indices": [40000]}
    assert check(tmp_path, document=document, MODEL_TYPE="phi3", SERVE_RESULT="false").report["problems"] == []
