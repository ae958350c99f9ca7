"""Loading: dtype, context, and what only shows while loading."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kaito_serving.errors import OptionError, WeightsError
from kaito_serving.model.load import choose_dtype, context_limit, load
from kaito_serving.options import Options

NOWHERE = Path("/nonexistent")


@pytest.mark.parametrize(
    ("asked", "config", "capability", "dtype"),
    [
        ("auto", {"dtype": "bfloat16"}, (9, 0), torch.bfloat16),
        ("auto", {"torch_dtype": "bfloat16"}, (8, 0), torch.bfloat16),
        ("auto", {"dtype": "bfloat16"}, (7, 0), torch.float16),
        ("bfloat16", {"dtype": "float32"}, (7, 5), torch.float16),
        ("auto", {"dtype": "float16"}, None, torch.bfloat16),
        ("float16", {"dtype": "float32"}, None, torch.bfloat16),
        ("auto", {}, None, torch.float32),
    ],
)
def test_the_dtype_is_what_the_device_computes(asked, config, capability, dtype):
    assert choose_dtype(asked, config, capability=capability) is dtype


def test_an_unknown_dtype_is_refused():
    with pytest.raises(WeightsError, match="float8_e4m3fn"):
        choose_dtype("auto", {"dtype": "float8_e4m3fn"}, capability=None)


@pytest.mark.parametrize(
    ("config", "tokenizer", "asked", "tokens"),
    [
        ({"max_position_embeddings": 4096}, 4096, 0, 4096),
        ({"max_position_embeddings": 4096}, 10**30, 1000, 1000),
        ({"max_position_embeddings": 4096}, 4096, 9000, 4096),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            131072,
            0,
            131072,
        ),
    ],
)
def test_the_context_is_the_smallest_limit(config, tokenizer, asked, tokens):
    assert context_limit(config, tokenizer, asked=asked) == tokens


def test_a_missing_tensor_is_refused_and_not_made_up(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensors are missing.*down_proj"):
        load(Options(weights=str(folder), adapters_dir=NOWHERE))


def test_weights_of_another_shape_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="Phi3ForCausalLM"):
        load(Options(weights=str(folder), adapters_dir=NOWHERE))


def test_a_model_that_computes_nan_never_becomes_ready(tiny_folder, tmp_path, make_engine):
    folder = shutil.copytree(tiny_folder, tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load(Options(weights=str(folder)))
    with pytest.raises(WeightsError, match="not finite"):
        make_engine(model)


def test_a_chat_template_may_be_text_or_a_file(tiny_folder, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0]['content'] }}")
    for given in (str(file), "{{ messages[0]['content'] }}"):
        loaded = load(Options(weights=str(tiny_folder), adapters_dir=NOWHERE, chat_template=given))
        text = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "x y"}], tokenize=False)
        assert text == "x y"
    with pytest.raises(OptionError, match="cannot be read"):
        load(Options(weights=str(tiny_folder), adapters_dir=NOWHERE, chat_template="/nonexistent.jinja"))


def test_loading_tells_which_part_of_the_tensors_is_there(tiny_folder):
    """A tensor at a time: the values are those of a count, whatever the machine's speed."""
    heard = []
    loaded = load(Options(weights=str(tiny_folder)), heard.append)
    parts = [part for part in heard if part is not None]
    tensors = len(list(loaded.network.state_dict()))
    assert heard[0] is None
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert {round(part * tensors, 6) % 1 for part in parts} == {0.0}
    assert len(parts) > tensors / 2


def test_only_while_the_model_loads_is_the_progress_bar_ours(tiny_folder):
    before = transformers.utils.logging.set_tqdm_hook(None)
    transformers.utils.logging.set_tqdm_hook(before)
    load(Options(weights=str(tiny_folder)))
    assert transformers.utils.logging.set_tqdm_hook(before) is before
