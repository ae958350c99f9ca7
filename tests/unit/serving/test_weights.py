"""What a folder of weights must be before anything is loaded."""

import json
import shutil

import pytest

from kaito_serving.errors import WeightsError
from kaito_serving.model.folder import inspect


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "weights")


def test_a_good_folder_names_its_architecture_and_size(folder):
    found = inspect(folder)
    assert found.architecture == "Phi3ForCausalLM"
    assert found.tensor_bytes < (folder / "model.safetensors").stat().st_size


def test_an_absent_folder_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"There is no folder .*/nothing"):
        inspect(tmp_path / "nothing")


def test_an_empty_folder_holds_no_model(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json is missing"):
        inspect(tmp_path)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds no weights"):
        inspect(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "training_args.bin", "x.PT"])
def test_a_pickle_beside_safetensors_is_left_alone_and_without_them_the_folder_is_refused(folder, name):
    (folder / name).write_bytes(b"\x80\x04.")
    assert inspect(folder).architecture == "Phi3ForCausalLM"
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="pickled weights only"):
        inspect(folder)


@pytest.mark.parametrize(
    "named", [["BertForMaskedLM"], ["Phi3ForCausalLM", "Phi3ForCausalLM"], [], None, "Phi3ForCausalLM"], ids=str
)
def test_other_architectures_are_refused(folder, named):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = named
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="architecture"):
        inspect(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_off_file_is_told_from_a_whole_one(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"cut off|damaged"):
        inspect(folder)


def test_every_shard_of_the_index_must_be_there(folder):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert inspect(folder).tensor_bytes > 0
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(WeightsError, match=r"lacks model-2\.safetensors"):
        inspect(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(WeightsError, match="outside"):
        inspect(folder)


def test_code_that_comes_with_weights_is_ignored(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('run')")
    assert inspect(folder).architecture == "Phi3ForCausalLM"
