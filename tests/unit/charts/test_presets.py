"""The catalogue's files: complete, consistent, and what the charts' schemas expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_hooks.api.catalog import Catalog, ImageWeights, fits

ROOT = Path(__file__).parents[3]
PRESETS = ROOT / "presets"
CATALOG_CRD = ROOT / "charts" / "kaito" / "crds" / "kaito.sh_catalogs.yaml"
VALUES_SCHEMA = ROOT / "charts" / "kaito" / "values.schema.json"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def models() -> dict[str, Any]:
    return {name: entry for path in sorted((PRESETS / "models").glob("*.yaml")) for name, entry in load(path).items()}


def types(cloud: str) -> dict[str, Any]:
    return dict(load(PRESETS / "instance-types" / f"{cloud}.yaml"))


def catalog(cloud: str) -> Catalog:
    return Catalog.read({"spec": {"cloud": cloud, "presets": models(), "instanceTypes": types(cloud)}})


def test_all_presets_are_there() -> None:
    assert sorted(models()) == [
        "falcon-40b",
        "falcon-40b-instruct",
        "falcon-7b",
        "falcon-7b-instruct",
        "llama-2-13b",
        "llama-2-13b-chat",
        "llama-2-70b",
        "llama-2-70b-chat",
        "llama-2-7b",
        "llama-2-7b-chat",
        "mistral-7b",
        "mistral-7b-instruct",
        "phi-2",
        "phi-3-medium-128k-instruct",
        "phi-3-medium-4k-instruct",
        "phi-3-mini-128k-instruct",
        "phi-3-mini-4k-instruct",
        "phi-3.5-mini-instruct",
    ]


@pytest.mark.parametrize(
    ("preset", "gpus", "total", "per_gpu", "disk", "minutes"),
    [
        ("falcon-7b", 1, 14, 0, 50, 30),
        ("falcon-40b-instruct", 2, 90, 0, 400, 30),
        ("mistral-7b", 1, 14, 0, 100, 30),
        ("mistral-7b-instruct", 1, 16, 0, 100, 30),
        ("phi-2", 1, 12, 0, 50, 30),
        ("phi-3-mini-128k-instruct", 1, 9, 0, 50, 30),
        ("phi-3-medium-4k-instruct", 1, 28, 0, 50, 30),
        ("phi-3.5-mini-instruct", 1, 8, 0, 50, 30),
        ("llama-2-7b", 1, 14, 14, 34, 10),
        ("llama-2-7b-chat", 1, 16, 14, 34, 10),
        ("llama-2-13b-chat", 2, 30, 15, 46, 20),
        ("llama-2-70b", 8, 152, 19, 158, 30),
        ("llama-2-70b-chat", 8, 192, 19, 158, 30),
    ],
)
def test_a_preset_needs_what_upstream_says(
    preset: str, gpus: int, total: int, per_gpu: int, disk: int, minutes: int
) -> None:
    found = catalog("azure").presets[preset]
    assert (found.gpu_count, found.total_gpu_memory_gib, found.per_gpu_memory_gib) == (gpus, total, per_gpu)
    assert (found.disk_gib, found.readiness_timeout) == (disk, minutes * 60)


def test_private_presets_name_no_image_and_public_ones_do() -> None:
    for name, preset in catalog("azure").presets.items():
        assert isinstance(preset.weights, ImageWeights)
        assert (preset.access_mode == "private") == (preset.family == "llama2"), name
        assert bool(preset.weights.tag) == (preset.access_mode == "public"), name


def test_only_models_over_several_nodes_are_distributed() -> None:
    assert {name for name, preset in catalog("azure").presets.items() if preset.distributed} == {
        "llama-2-13b",
        "llama-2-13b-chat",
        "llama-2-70b",
        "llama-2-70b-chat",
    }


def test_every_preset_names_its_engines_and_one_that_spans_nodes_vllm_alone() -> None:
    for name, entry in models().items():
        assert entry["engines"] == (["vllm"] if entry["distributed"] else ["transformers", "vllm"]), name


def test_every_nvidia_gpu_of_the_files_is_one_whose_compute_capability_is_known() -> None:
    """Rules about vLLM go by the model: one that is not in these lists must be looked up first."""
    found = {entry.gpu_model for cloud in ("azure", "aws") for entry in catalog(cloud).instance_types.values()
             if entry.gpu_vendor == "nvidia"}  # fmt: skip
    assert found == {
        *("K80", "M60", "P40", "P100", "V100"),  # below 7.5
        *("T4", "A10", "A10G", "A100", "L4", "L40S", "H100", "H200"),
    }


def test_qlora_needs_less_than_lora() -> None:
    tunable = {name: preset.tuning for name, preset in catalog("azure").presets.items() if preset.tuning}
    assert sorted(tunable) == [
        "falcon-40b",
        "falcon-7b",
        "mistral-7b",
        "phi-2",
        "phi-3-medium-128k-instruct",
        "phi-3-medium-4k-instruct",
        "phi-3-mini-128k-instruct",
        "phi-3-mini-4k-instruct",
        "phi-3.5-mini-instruct",
    ]
    assert all(0 < needs["qlora"] < needs["lora"] for needs in tunable.values())


@pytest.mark.parametrize(("cloud", "count"), [("azure", 46), ("aws", 68)])
def test_all_instance_types_are_there(cloud: str, count: int) -> None:
    found = types(cloud)
    assert len(found) == count
    assert len({name.lower() for name in found}) == count, "two names differ only in case"


@pytest.mark.parametrize(
    ("cloud", "name", "gpus", "memory", "vendor"),
    [
        ("azure", "Standard_NC6s_v3", 1, 16, "nvidia"),
        ("azure", "Standard_ND96amsr_A100_v4", 8, 640, "nvidia"),
        ("azure", "Standard_NV6ads_A10_v5", 1, 4, "nvidia"),
        ("azure", "Standard_ND96isr_H200_v5", 8, 1128, "nvidia"),
        ("azure", "Standard_NV32as_v4", 1, 16, "amd"),
        ("aws", "p2.16xlarge", 16, 192, "nvidia"),
        ("aws", "g6.48xlarge", 8, 192, "nvidia"),
        ("aws", "g6e.48xlarge", 8, 357, "nvidia"),
        ("aws", "p5en.48xlarge", 8, 1128, "nvidia"),
        ("aws", "g4ad.8xlarge", 2, 16, "amd"),
        ("aws", "inf2.48xlarge", 12, 384, "neuron"),
    ],
)
def test_an_instance_type_has_what_its_cloud_says(cloud: str, name: str, gpus: int, memory: int, vendor: str) -> None:
    found = catalog(cloud).instance_types[name]
    assert (found.gpu_count, found.total_gpu_memory_gib, found.gpu_vendor) == (gpus, memory, vendor)


@pytest.mark.parametrize(
    ("date", "sizes"),
    [
        ("2023-09-06", "NC6 NC12 NC24 NC24r NC6s_v2 NC12s_v2 NC24s_v2 NC24rs_v2 ND6s ND12s ND24s ND24rs NV6 NV12 NV24"),
        ("2025-09-30", "NC6s_v3 NC12s_v3 NC24s_v3 NC24rs_v3"),
        ("2026-09-30", "NV12s_v3 NV24s_v3 NV48s_v3 NV32as_v4"),
    ],
)
def test_sizes_that_azure_retires_are_not_advised(date: str, sizes: str) -> None:
    of_cloud = catalog("azure")
    names = {f"Standard_{size}" for size in sizes.split()}
    assert {name for name, found in of_cloud.instance_types.items() if found.retired == date} == names
    assert not names & of_cloud.on_sale.keys()


@pytest.mark.parametrize(
    ("preset", "cloud", "name", "count"),
    [
        ("phi-2", "azure", "Standard_NC6s_v3", 1),
        ("phi-3-mini-4k-instruct", "azure", "Standard_NC6s_v3", 1),
        ("falcon-7b", "azure", "Standard_NC12s_v3", 1),
        ("mistral-7b-instruct", "azure", "Standard_NC12s_v3", 1),
        ("llama-2-7b", "azure", "Standard_NC12s_v3", 1),
        ("llama-2-13b", "azure", "Standard_NC12s_v3", 1),
        ("phi-3.5-mini-instruct", "azure", "Standard_NC12s_v3", 1),
        ("phi-3-medium-4k-instruct", "azure", "Standard_NC24ads_A100_v4", 1),
        ("falcon-40b", "azure", "Standard_NC96ads_A100_v4", 1),
        ("llama-2-70b", "azure", "Standard_NC96ads_A100_v4", 2),
        ("falcon-7b", "aws", "g5.4xlarge", 1),
    ],
)
def test_upstream_examples_fit(preset: str, cloud: str, name: str, count: int) -> None:
    of_cloud = catalog(cloud)
    assert fits(of_cloud.presets[preset], of_cloud.instance_types[name], count=count) is None


def test_only_nvidia_gpus_hold_a_preset() -> None:
    of_cloud = catalog("aws")
    short = fits(of_cloud.presets["phi-2"], of_cloud.instance_types["trn1.32xlarge"], count=1)
    assert short is not None
    assert (short.kind, short.provides) == ("gpuCount", 0)


@pytest.mark.parametrize(("method", "four_bits"), [("lora", False), ("qlora", True)])
def test_the_default_tuning_configurations_fit_their_methods(method: str, four_bits: bool) -> None:
    configuration = load(PRESETS / "tuning" / f"{method}.yaml")
    assert list(configuration) == ["training_config"]
    sections = configuration["training_config"]
    assert list(sections) == [
        "ModelConfig",
        "QuantizationConfig",
        "LoraConfig",
        "TrainingArguments",
        "DataCollator",
        "DatasetConfig",
    ]
    assert sections["QuantizationConfig"]["load_in_4bit"] is four_bits
    assert sections["TrainingArguments"]["output_dir"] == "/mnt/results"


@pytest.mark.parametrize(("kind", "definition"), [("presets", "preset"), ("instanceTypes", "instanceType")])
def test_values_and_catalog_have_the_same_fields(kind: str, definition: str) -> None:
    crd = load(CATALOG_CRD)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    values = json.loads(VALUES_SCHEMA.read_text())["$defs"][definition]
    assert _fields(crd[kind]["additionalProperties"]) == _fields(values)


def _fields(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted paths of all fields below a schema."""
    found = set()
    for name, below in schema.get("properties", {}).items():
        found |= {f"{prefix}{name}"} | _fields(below, f"{prefix}{name}.")
    return found
