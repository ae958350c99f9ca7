import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_hooks.api.catalog import Catalog, HubWeights, ImageWeights, InstanceType, Shortage, fits, fits_tuning

CATALOG = {
    "apiVersion": "kaito.sh/v1alpha1",
    "kind": "Catalog",
    "metadata": {"name": "kaito"},
    "spec": {
        "cloud": "azure",
        "uncheckedInstanceTypePrefixes": ["Standard_N", "Standard_D"],
        "presets": {
            "phi-3-mini-4k-instruct": {
                "family": "phi3",
                "architecture": "Phi3ForCausalLM",
                "gpuCount": 1,
                "totalGPUMemoryGiB": 9,
                "readinessTimeout": "1h30m",
                "weights": {"image": {"tag": "0.0.2", "path": "/workspace/tfs/weights"}},
                "tuning": {"qlora": {"gpuMemoryGiB": 8}},
            },
            "falcon-40b": {"gpuCount": 2, "totalGPUMemoryGiB": 90},
            "sharded": {"gpuCount": 2, "perGPUMemoryGiB": 15, "totalGPUMemoryGiB": 30, "distributed": True},
        },
        "instanceTypes": {
            "Standard_NC6s_v3": {"gpuCount": 1, "totalGPUMemoryGiB": 16, "gpuModel": "V100"},
            "Standard_NV6": {"gpuCount": 1, "totalGPUMemoryGiB": 8},
            "Standard_NC24ads_A100_v4": {"gpuCount": 1, "totalGPUMemoryGiB": 80},
        },
    },
}


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.read(CATALOG)


def test_a_preset_is_read_with_its_units(catalog: Catalog) -> None:
    phi = catalog.presets["phi-3-mini-4k-instruct"]
    assert phi.architecture == "Phi3ForCausalLM"
    assert phi.readiness_timeout == 5400.0
    assert phi.weights == ImageWeights(tag="0.0.2", path="/workspace/tfs/weights")
    assert phi.tuning == {"qlora": 8}
    assert phi.access_mode == "public"


def test_hub_weights_are_read() -> None:
    spec = {"presets": {"own": {"weights": {"huggingFace": {"repo": "a/b", "revision": "f" * 40}}}}}
    assert Catalog.read({"spec": spec}).presets["own"].weights == HubWeights("a/b", "f" * 40, "")


@pytest.mark.parametrize(
    ("written", "engines"),
    [
        ({}, ("transformers", "vllm")),
        ({"distributed": True}, ("vllm",)),
        ({"engines": ["vllm"]}, ("vllm",)),
        ({"engines": ["vllm", "transformers"]}, ("vllm", "transformers")),
        ({"distributed": True, "engines": ["vllm"]}, ("vllm",)),
    ],
)
def test_a_preset_names_its_engines_and_one_that_spans_nodes_has_vllm_alone(
    written: dict[str, object], engines: tuple[str, ...]
) -> None:
    assert Catalog.read({"spec": {"presets": {"p": written}}}).presets["p"].engines == engines


@pytest.mark.parametrize(("written", "engine"), [({}, "transformers"), ({"defaultEngine": "vllm"}, "vllm")])
def test_the_default_engine_is_read(written: dict[str, object], engine: str) -> None:
    assert Catalog.read({"spec": written}).default_engine == engine


# Compute capabilities as in https://developer.nvidia.com/cuda-gpus and /cuda-legacy-gpus.
@pytest.mark.parametrize(
    ("model", "capability"),
    [
        *(("K80", 3.7), ("M60", 5.2), ("P100", 6.0), ("P40", 6.1), ("V100", 7.0), ("T4", 7.5), ("A100", 8.0)),
        *(("A10", 8.6), ("A10G", 8.6), ("L4", 8.9), ("H100", 9.0), ("H200", 9.0)),
    ],
)
def test_vllm_runs_on_compute_capability_7_5_and_newer(model: str, capability: float) -> None:
    found = InstanceType("t", 1, 80, gpu_model=model)
    assert found.runs("vllm") is (capability >= 7.5)
    assert found.runs("transformers")


def test_a_gpu_whose_model_is_not_known_may_run_vllm() -> None:
    assert InstanceType("t", 1, 80).runs("vllm")


@pytest.mark.parametrize("name", ["Standard_NC6s_v3", "standard_nc6s_V3", "STANDARD_NC6S_V3"])
def test_case_does_not_matter_for_an_instance_type(catalog: Catalog, name: str) -> None:
    found = catalog.find_instance_type(name)
    assert found is not None
    assert found.name == "Standard_NC6s_v3"


@pytest.mark.parametrize(("written", "read"), [({}, None), ({"pricePerHour": 3}, 3.0), ({"pricePerHour": 0.5}, 0.5)])
def test_a_price_is_read_if_there_is_one(written: dict[str, object], read: float | None) -> None:
    found = Catalog.read({"spec": {"instanceTypes": {"t": written}}}).instance_types["t"]
    assert found.price_per_hour == read


@pytest.mark.parametrize(
    ("instance_type", "shortage"),
    [
        (InstanceType("t", 2, 32), None),
        (InstanceType("t", 4, 32), Shortage("perGPUMemory", 8, 16)),
        (InstanceType("t", 1, 80, gpu_vendor="amd"), Shortage("gpuCount", 0, 1)),
    ],
    ids=["fits", "memory of one GPU", "other maker"],
)
def test_tuning_needs_the_memory_of_one_gpu(instance_type: InstanceType, shortage: Shortage | None) -> None:
    assert fits_tuning(16, instance_type) == shortage


def test_an_unlisted_type_is_accepted_by_its_prefix_only(catalog: Catalog) -> None:
    assert catalog.find_instance_type("Standard_Nsku") is None
    assert catalog.is_unchecked("Standard_Nsku")
    assert catalog.is_unchecked("standard_dsku")
    assert not catalog.is_unchecked("Standard_invalid_sku")


@pytest.mark.parametrize(
    ("preset", "instance_type", "count", "shortage"),
    [
        pytest.param("phi-3-mini-4k-instruct", "Standard_NC6s_v3", 1, None, id="phi-3 fits a V100"),
        pytest.param("phi-3-mini-4k-instruct", "Standard_NV6", 1, Shortage("totalGPUMemory", 8, 9), id="total memory"),
        pytest.param(
            "phi-3-mini-4k-instruct", "Standard_NV6", 2, Shortage("totalGPUMemory", 8, 9), id="memory per node"
        ),
        pytest.param("falcon-40b", "Standard_NC24ads_A100_v4", 1, Shortage("gpuCount", 1, 2), id="GPUs"),
        pytest.param("falcon-40b", "Standard_NC24ads_A100_v4", 2, Shortage("gpuCount", 1, 2), id="GPUs per node"),
        pytest.param("sharded", "Standard_NC6s_v3", 1, Shortage("gpuCount", 1, 2), id="too few for a distributed one"),
        pytest.param("sharded", "Standard_NC6s_v3", 2, None, id="nodes of a distributed preset add up"),
        pytest.param("sharded", "Standard_NV6", 2, Shortage("perGPUMemory", 8, 15), id="memory of one GPU"),
    ],
)
def test_a_preset_fits_or_says_what_is_short(
    catalog: Catalog, preset: str, instance_type: str, count: int, shortage: Shortage | None
) -> None:
    assert fits(catalog.presets[preset], catalog.instance_types[instance_type], count=count) == shortage


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"presets": {"p": {"gpuCount": "many"}}}, "spec.presets.p.gpuCount is 'many'"),
        ({"presets": {"p": {"gpuCount": -1}}}, "spec.presets.p.gpuCount is -1"),
        ({"presets": ["p"]}, "spec.presets is"),
        ({"presets": {"p": {"readinessTimeout": "soon"}}}, "not a duration"),
        ({"presets": {"p": {"engines": ["onnx"]}}}, "spec.presets.p.engines is ['onnx'], not a list of transformers"),
        ({"presets": {"p": {"engines": []}}}, "spec.presets.p.engines is []"),
        ({"presets": {"p": {"engines": "vllm"}}}, "spec.presets.p.engines is 'vllm'"),
        ({"presets": {"p": {"engines": [{}]}}}, "spec.presets.p.engines is [{}]"),
        (
            {"presets": {"p": {"distributed": True, "engines": ["transformers", "vllm"]}}},
            "spec.presets.p.engines is ['transformers', 'vllm'], but a distributed preset is served by vllm alone",
        ),
        ({"defaultEngine": "onnx"}, "spec.defaultEngine is 'onnx', not transformers or vllm"),
        ({"instanceTypes": {"t": {"pricePerHour": "dear"}}}, "spec.instanceTypes.t.pricePerHour is 'dear'"),
        ({"instanceTypes": {"t": {"pricePerHour": -1}}}, "not a number of 0 or more"),
    ],
)
def test_nonsense_is_an_error_that_names_the_field(spec: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match="Catalog: ") as error:
        Catalog.read({"spec": spec})
    assert words in str(error.value)


FIELDS = (
    *("presets", "instanceTypes", "uncheckedInstanceTypePrefixes", "cloud", "gpuCount", "weights", "image"),
    *("engines", "defaultEngine", "distributed"),
    *("huggingFace", "volume", "readinessTimeout", "tuning", "qlora", "gpuMemoryGiB", "pricePerHour"),
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JSON = st.recursive(
    LEAF,
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), below, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(spec=JSON, preset=JSON, instance_type=JSON, weights=JSON)
def test_whatever_is_stored_is_a_catalog_or_a_value_error(
    spec: object, preset: object, instance_type: object, weights: object
) -> None:
    for stored in (
        spec,
        {"presets": {"p": preset}, "instanceTypes": {"i": instance_type}},
        {"presets": {"p": {"weights": weights}}},
    ):
        with contextlib.suppress(ValueError):
            Catalog.read({"spec": stored})
