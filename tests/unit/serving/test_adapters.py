"""Adapters are exact: against PEFT on the same weights, one by one, mixed, and mixed differently within one batch."""

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kaito_serving.engine.base import Request, SamplingParams
from kaito_serving.errors import AdapterError, UnknownModel
from kaito_serving.lora import layer
from kaito_serving.lora import read as lora
from kaito_serving.model.load import load
from kaito_serving.options import Options

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SHAPES = {
    "one": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "two": {"r": 8, "lora_alpha": 4, "target_modules": ["qkv_proj", "down_proj"]},
    "three": {"r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "layers_to_transform": [1]},
}


def loaded(options, environment=()):
    """A model with its adapters beside its layers."""
    model = load(options)
    adapters = layer.attach(
        model.network,
        options.adapters_dir,
        strengths=options.adapter_strengths,
        environment=dict(environment),
        dtype=model.network.dtype,
        device=model.device,
    )
    return model, adapters


def base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def make(model_folder, folder, *, seed, **config) -> None:
    """A PEFT adapter that changes answers, saved as PEFT saves it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(base(model_folder), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def adapters_dir(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(SHAPES.items()):
        make(tiny_folder, folder / name, seed=seed, **config)
    return folder


@pytest.fixture(scope="module")
def with_peft(tiny_folder, adapters_dir):
    """The same mix by PEFT: a network whose adapters are summed exactly."""

    def mixed(mix):
        network = base(tiny_folder)
        if not mix:
            return network
        model = peft.PeftModel.from_pretrained(network, adapters_dir / next(iter(mix)), adapter_name=next(iter(mix)))
        for name in list(mix)[1:]:
            model.load_adapter(adapters_dir / name, adapter_name=name)
        model.add_weighted_adapter(list(mix), list(mix.values()), "mix", combination_type="cat")
        model.set_adapter("mix")
        return model.eval()

    return mixed


def logits(network, ids):
    with torch.inference_mode():
        return network(input_ids=ids).logits


@pytest.mark.parametrize(
    "mix", [{"one": 1.0}, {"one": 0.3, "two": 0.9}, {"one": 0.5, "two": 0.25, "three": 1.0}, {"two": 0.0}], ids=str
)
def test_a_mix_is_the_exact_sum(tiny_folder, adapters_dir, with_peft, mix):
    ours, adapters = loaded(Options(weights=str(tiny_folder), adapters_dir=adapters_dir))
    ids = torch.arange(40, 80)[None]
    adapters.scales.active = adapters.vector(mix)
    ours_logits = logits(ours.network, ids)
    used = {name: value for name, value in mix.items() if value}
    assert torch.allclose(ours_logits, logits(with_peft(used), ids), atol=1e-4, rtol=1e-5)
    plain = logits(base(tiny_folder), ids)
    assert torch.allclose(ours_logits, plain, atol=1e-4) is (not used)


def test_rank_stabilised_adapters_have_their_own_factor(tiny_folder, tmp_path):
    make(tiny_folder, tmp_path / "stable", seed=5, r=16, lora_alpha=8, target_modules=ALL, use_rslora=True)
    ours, adapters = loaded(Options(weights=str(tiny_folder), adapters_dir=tmp_path))
    adapters.scales.active = adapters.vector(None)
    theirs = peft.PeftModel.from_pretrained(base(tiny_folder), tmp_path / "stable").eval()
    ids = torch.arange(40, 80)[None]
    assert torch.allclose(logits(ours.network, ids), logits(theirs, ids), atol=1e-4, rtol=1e-5)


def test_the_deployments_strengths_come_from_the_option_then_the_environment_then_one(tiny_folder, adapters_dir):
    options = Options(weights=str(tiny_folder), adapters_dir=adapters_dir, adapter_strengths={"one": 0.5})
    _, adapters = loaded(options, {"one": "0.1", "two": "0.25", "PATH": "/bin"})
    assert adapters.default_mix == {"one": 0.5, "two": 0.25, "three": 1.0}
    assert adapters.names == ("one", "three", "two")


def test_every_request_of_a_batch_has_its_own_mix(tiny_folder, adapters_dir, with_peft, make_engine, greedy):
    model, adapters = loaded(
        Options(weights=str(tiny_folder), adapters_dir=adapters_dir, adapter_strengths={"two": 0.0})
    )
    deployment = {"one": 1.0, "three": 1.0}
    mixes = [None, {}, {"one": 0.2}, {"two": 1.0}, {"one": 0.5, "two": 0.5, "three": 0.5}]
    prompts = [tuple(range(50 + 7 * i, 60 + 9 * i)) for i in range(len(mixes))]
    networks = [with_peft(deployment if mix is None else mix) for mix in mixes]
    expected = [greedy(prompt, 30, network=net) for prompt, net in zip(prompts, networks, strict=True)]
    expected_bans = greedy(prompts[2], 30, network=networks[2], no_repeat_ngram_size=2)
    engine = make_engine(model, adapters, max_batch_tokens=32)

    async def tokens_of(request):
        return [token for chunk in [c async for c in engine.submit(request)] for token in chunk.token_ids]

    async def work():
        await engine.start()
        try:
            params = SamplingParams(max_tokens=30, temperature=0.0)
            requests = [
                Request(prompt_ids=prompt, params=params, adapters=mix)
                for prompt, mix in zip(prompts, mixes, strict=True)
            ]
            bans = dataclasses.replace(params, no_repeat_ngram_size=2)
            requests.append(Request(prompt_ids=prompts[2], params=bans, adapters=mixes[2]))
            return await asyncio.gather(*(tokens_of(request) for request in requests))
        finally:
            await engine.stop()

    *answers, without_repetition = asyncio.run(work())
    assert answers == expected
    assert without_repetition == expected_bans
    assert len({tuple(answer) for answer in answers}) == len(mixes)


def test_a_mix_with_an_unknown_name_is_refused(tiny_folder, adapters_dir):
    _, adapters = loaded(Options(weights=str(tiny_folder), adapters_dir=adapters_dir))
    with pytest.raises(UnknownModel, match="Unknown adapter four; loaded adapters: one, three, two"):
        adapters.vector({"four": 1.0})


def test_folders_without_a_config_are_no_adapters(tmp_path):
    (tmp_path / "lost+found").mkdir()
    assert lora.find(tmp_path) == []
    assert lora.find(tmp_path / "absent") == []


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"fan_in_fan_out": True},
        {"rank_pattern": {"o_proj": 2}},  # not what its matrices are
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": 7},
        {"peft_type": "IA3"},
        {"r": 7},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"something_from_the_future": 3},
        {"lora_alpha": float("nan")},
        {"lora_alpha": 1e308},
        {"lora_alpha": 10**400},
        {"alpha_pattern": {"o_proj": float("inf")}},
        {"rank_pattern": {"o_proj": 10**400}},
        {"r": float("nan")},
    ],
    ids=str,
)
def test_what_cannot_be_served_exactly_is_refused(adapters_dir, tmp_path, changes):
    folder = shutil.copytree(adapters_dir / "one", tmp_path / "one")
    change_config(folder, **changes)
    with pytest.raises(AdapterError, match="adapter one"):
        lora.read(folder)


def test_pickles_beside_safetensors_are_never_opened_and_alone_they_are_refused(adapters_dir, tmp_path):
    folder = shutil.copytree(adapters_dir / "one", tmp_path / "one")
    for name in ("training_args.bin", "adapter_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"\x80 no pickle that could be loaded")
    assert lora.read(folder).rank == 4
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="pickled"):
        lora.read(folder)


def test_ranks_and_alphas_of_single_layers_are_served_as_peft_has_them(tiny_folder, tmp_path):
    patterns = {"rank_pattern": {"o_proj": 2, r"layers\.1\..*down_proj": 6}, "alpha_pattern": {"qkv_proj": 32}}
    make(tiny_folder, tmp_path / "uneven", seed=6, r=4, lora_alpha=8, target_modules=ALL, **patterns)
    ours, adapters = loaded(Options(weights=str(tiny_folder), adapters_dir=tmp_path))
    adapters.scales.active = adapters.vector(None)
    theirs = peft.PeftModel.from_pretrained(base(tiny_folder), tmp_path / "uneven").eval()
    ids = torch.arange(40, 80)[None]
    assert torch.allclose(logits(ours.network, ids), logits(theirs, ids), atol=1e-4, rtol=1e-5)


def test_the_head_is_never_changed(tiny_folder, tmp_path):
    make(tiny_folder, tmp_path / "head", seed=7, r=2, lora_alpha=2, target_modules=["lm_head"])
    with pytest.raises(AdapterError, match="changes lm_head"):
        lora.read(tmp_path / "head")


def test_adapters_come_and_go_while_requests_run(tiny_folder, adapters_dir, with_peft, make_engine, greedy):
    model = load(Options(weights=str(tiny_folder)))
    adapters = layer.AdapterSet(model.network, ranks=6, dtype=model.network.dtype, device=model.device)
    prompt = tuple(range(60, 75))
    with_one, with_three, plain = (greedy(prompt, 30, network=with_peft(m)) for m in ({"one": 1}, {"three": 1}, {}))
    engine = make_engine(model, adapters)

    async def ask(mix, new=30):
        params = SamplingParams(max_tokens=new, temperature=0.0)
        request = Request(prompt_ids=prompt, params=params, adapters=mix)
        return [token async for chunk in engine.submit(request) for token in chunk.token_ids]

    async def work():
        await engine.start()
        try:
            running = asyncio.create_task(ask({}, 400))
            await engine.load_adapter("one", adapters_dir / "one")
            await engine.load_adapter("three", adapters_dir / "three")
            assert engine.adapters == ("one", "three")
            with pytest.raises(AdapterError, match="rank 8, and 0 of"):
                await engine.load_adapter("two", adapters_dir / "two")
            assert await ask({"one": 1.0}) == with_one
            using = asyncio.create_task(ask({"three": 1.0}))
            await asyncio.sleep(0)
            await engine.unload_adapter("three")
            assert await using == with_three
            with pytest.raises(UnknownModel):
                await ask({"three": 1.0})
            await engine.load_adapter("again", adapters_dir / "three")
            assert await ask({"again": 1.0}) == with_three
            assert await ask(None) == plain
            return (await running)[:30]
        finally:
            await engine.stop()

    assert asyncio.run(work()) == plain


@pytest.mark.parametrize("text", ["[" * 100_000, '"r"', "[]", "null"], ids=["deep", "a text", "a list", "null"])
def test_a_config_that_is_none_is_refused(adapters_dir, tmp_path, text):
    folder = shutil.copytree(adapters_dir / "one", tmp_path / "one")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match="adapter one has no readable adapter_config"):
        lora.read(folder)


@pytest.mark.parametrize("damage", ["cut", "absent", "nan", "half", "foreign"])
def test_a_damaged_adapter_is_refused(adapters_dir, tmp_path, damage):
    folder = shutil.copytree(adapters_dir / "one", tmp_path / "one")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-5])
        case "absent":
            file.unlink()
        case "nan":
            tensors[first][0, 0] = float("nan")
            save_file(tensors, file)
        case "half":
            save_file({key: value for key, value in tensors.items() if key != first}, file)
        case "foreign":
            save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(AdapterError, match="adapter one"):
        lora.read(folder)


def test_an_adapter_of_another_model_does_not_fit(tiny_folder, adapters_dir, tmp_path):
    folder = shutil.copytree(adapters_dir / "one", tmp_path / "adapters" / "one")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    wider = {key: torch.cat([value, value], dim=1) if "lora_A" in key else value for key, value in tensors.items()}
    save_file(wider, file)
    with pytest.raises(AdapterError, match="does not fit the model"):
        loaded(Options(weights=str(tiny_folder), adapters_dir=tmp_path / "adapters"))
    renamed = {key.replace("qkv_proj", "q_proj"): value for key, value in tensors.items() if "qkv_proj" in key}
    save_file(renamed, file)
    with pytest.raises(AdapterError, match="no linear layer"):
        loaded(Options(weights=str(tiny_folder), adapters_dir=tmp_path / "adapters"))


def test_a_strength_for_an_absent_adapter_is_a_mistake(tiny_folder, tmp_path):
    with pytest.raises(AdapterError, match="names ghost"):
        loaded(Options(weights=str(tiny_folder), adapters_dir=tmp_path, adapter_strengths={"ghost": 1.0}))
