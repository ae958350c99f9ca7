"""Which other instance types are offered to a user whose own cannot be had."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.workspace.worlds import CATALOG, Obj, SmallWorld, tuning_object, workspace_object

from kaito_hooks.api.catalog import Catalog, Engine, InstanceType
from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.purchases.alternatives import alternatives

ANNOTATION = "kaito.sh/fitting-instance-types"
RESOURCE = {"count": 1, "instanceType": "Standard_NV6", "labelSelector": {"matchLabels": {"a": "b"}}}
TEMPLATE = {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}


def catalog(**types: Obj) -> Catalog:
    return replace(CATALOG, instance_types=Catalog.read({"spec": {"instanceTypes": types}}).instance_types)


def offered(obj: Obj, found: Catalog | None = CATALOG) -> tuple[str, ...]:
    return alternatives(Workspace.read(obj), found)


def served(preset: str, **resource: Any) -> Obj:
    asked = {**RESOURCE, "instanceType": "Standard_NC6s_v3", **resource}
    return workspace_object(resource=asked, inference={"preset": {"name": preset, "accessMode": "public"}})


def test_every_other_type_that_fits_is_offered_the_smallest_first() -> None:
    # Not the 8 GiB of NV6, and not the AMD GPU of NV32as_v4.
    names = ("Standard_NC6s_v3", "Standard_NC24ads_A100_v4")
    assert offered(served("phi-3-mini-4k-instruct", instanceType="Standard_NV6")) == names


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        ("Standard_NC4as_T4_v3", ("Standard_NC6s_v3", "g4dn.xlarge")),
        ("standard_nc6S_V3", ("Standard_NC4as_T4_v3", "g4dn.xlarge")),
        ("g4dn.2xlarge", ("Standard_NC4as_T4_v3", "Standard_NC6s_v3")),
    ],
)
def test_no_size_of_the_series_is_offered_whose_quota_is_used_up(asked: str, others: tuple[str, ...]) -> None:
    names = ("Standard_NC4as_T4_v3", "Standard_NC8as_T4_v3", "Standard_NC6s_v3", "Standard_NC12s_v3", "g4dn.xlarge")
    found = catalog(**{name: {"gpuCount": 1, "totalGPUMemoryGiB": 16} for name in (*names, "g4dn.2xlarge")})
    assert sorted(offered(served("phi-3-mini-4k-instruct", instanceType=asked), found)) == sorted(others)


@pytest.mark.parametrize(
    ("asked", "of_its_series"),
    [
        # https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ncadsh100v5-series
        ("Standard_NC40ads_H100_v5", "Standard_NC80adis_H100_v5"),
        # https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/nvadsa10v5-series
        ("Standard_NV36ads_A10_v5", "Standard_NV36adms_A10_v5"),
        # https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ncv3-series
        ("Standard_NC24s_v3", "Standard_NC24rs_v3"),
        ("Standard_ND96asr_v4", "Standard_ND96asr_A100_v4"),
    ],
    ids=["isolated", "more memory", "with RDMA", "another spelling"],
)
def test_a_size_with_more_features_is_of_the_same_series(asked: str, of_its_series: str) -> None:
    names = (asked, of_its_series, "Standard_NC24ads_A100_v4")
    found = catalog(**{name: {"gpuCount": 1, "totalGPUMemoryGiB": 80} for name in names})
    for one in (asked, of_its_series):
        assert offered(served("phi-3-mini-4k-instruct", instanceType=one), found) == ("Standard_NC24ads_A100_v4",)


def test_the_series_with_more_memory_of_the_largest_machines_has_a_quota_of_its_own() -> None:
    # https://learn.microsoft.com/azure/virtual-machines/sizes/gpu-accelerated/ndma100v4-series
    names = ("Standard_ND96asr_v4", "Standard_ND96amsr_A100_v4")
    found = catalog(**{name: {"gpuCount": 8, "totalGPUMemoryGiB": 640} for name in names})
    assert offered(served("phi-3-mini-4k-instruct", instanceType=names[0]), found) == names[1:]


@pytest.mark.parametrize(
    ("annotations", "default", "names"),
    [
        ({"kaito.sh/runtime": "vllm"}, "transformers", ("Standard_NC24ads_A100_v4",)),
        ({}, "vllm", ("Standard_NC24ads_A100_v4",)),
        ({"kaito.sh/runtime": "transformers"}, "vllm", ("Standard_NC6s_v3", "Standard_NC24ads_A100_v4")),
    ],
)
def test_no_type_is_offered_that_the_engine_cannot_use(
    annotations: dict[str, str], default: Engine, names: tuple[str, ...]
) -> None:
    obj = workspace_object(metadata={"annotations": annotations}, resource=RESOURCE)
    assert offered(obj, replace(CATALOG, default_engine=default)) == names


def test_a_tuning_whose_model_is_served_counts_what_the_engine_can_use() -> None:
    vllm = {"annotations": {"kaito.sh/runtime": "vllm"}}
    assert offered(tuning_object(metadata=vllm, resource=RESOURCE)) == ("Standard_NC24ads_A100_v4",)
    unserved = tuning_object(metadata=vllm, resource=RESOURCE, tuning={"serveResult": False})
    assert "Standard_NC6s_v3" in offered(unserved)


def test_the_cheapest_comes_first_and_what_has_no_price_last() -> None:
    found = catalog(
        small={"gpuCount": 1, "totalGPUMemoryGiB": 16},
        dear={"gpuCount": 1, "totalGPUMemoryGiB": 24, "pricePerHour": 9.5},
        cheap={"gpuCount": 8, "totalGPUMemoryGiB": 640, "pricePerHour": 1},
    )
    assert offered(workspace_object(), found) == ("cheap", "dear", "small")


def test_what_its_cloud_retires_is_not_offered() -> None:
    found = catalog(
        gone={"gpuCount": 1, "totalGPUMemoryGiB": 16, "retired": "2025-09-30"},
        going={"gpuCount": 1, "totalGPUMemoryGiB": 16, "retired": "2099-12-31"},
        sold={"gpuCount": 8, "totalGPUMemoryGiB": 640},
    )
    assert offered(workspace_object(), found) == ("sold",)


def test_one_of_each_series_is_offered_and_never_more_than_five() -> None:
    sizes = {
        f"Standard_N{series}{cores}s_v3": {"gpuCount": cores // 6, "totalGPUMemoryGiB": 16 * cores // 6}
        for series in "ABCDEFG"
        for cores in (6, 12, 24)
    }
    found = catalog(**sizes, **{"g5.xlarge": {"gpuCount": 1, "totalGPUMemoryGiB": 24}})
    assert offered(workspace_object(), found) == (
        "Standard_NA6s_v3",
        "Standard_NB6s_v3",
        "Standard_ND6s_v3",
        "Standard_NE6s_v3",
        "Standard_NF6s_v3",
    )
    clouds = catalog(
        **{f"g5.{size}": {"gpuCount": 1, "totalGPUMemoryGiB": 24} for size in ("xlarge", "2xlarge")},
        **{"p3.2xlarge": {"gpuCount": 1, "totalGPUMemoryGiB": 16}},
    )
    cores = catalog(
        **{f"Standard_NC{n}as_T4_v3": {"gpuCount": 1, "totalGPUMemoryGiB": 16} for n in (16, 4, 8)},
    )
    assert offered(workspace_object(), cores) == ("Standard_NC4as_T4_v3",)
    assert offered(served("phi-3-mini-4k-instruct", instanceType="g4dn.xlarge"), clouds) == ("p3.2xlarge", "g5.xlarge")


def test_gpus_and_memory_of_all_nodes_count_for_a_preset_that_is_distributed_over_them() -> None:
    assert offered(served("falcon-40b", instanceType="Standard_NC48ads_A100_v4")) == ()
    assert offered(served("falcon-40b", instanceType="Standard_NC48ads_A100_v4", count=2)) == ()
    assert offered(served("llama-2-13b", instanceType="Standard_NC48ads_A100_v4")) == ("Standard_NC12s_v3",)
    assert offered(served("llama-2-13b", instanceType="Standard_NC48ads_A100_v4", count=2)) == ("Standard_NC6s_v3",)


def test_tuning_counts_what_its_method_needs() -> None:
    # 12 GiB for lora, 8 for qlora, of one GPU.
    assert offered(tuning_object(tuning={"method": "lora"})) == ("Standard_NC24ads_A100_v4",)
    assert "Standard_NV6" in offered(tuning_object(tuning={"method": "qlora"}))
    assert offered(tuning_object(tuning={"preset": {"name": "falcon-40b", "accessMode": "public"}})) == ()


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(workspace_object(inference=TEMPLATE), id="a template"),
        pytest.param(served("unknown"), id="an unknown preset"),
        pytest.param(workspace_object(resource=None), id="no resource"),
    ],
)
def test_nothing_is_offered_for_needs_that_nobody_knows(obj: Obj) -> None:
    assert offered(obj) == ()


def test_nothing_is_offered_without_a_catalog() -> None:
    assert offered(workspace_object(), None) == ()


def test_a_processor_of_another_kind_is_not_offered() -> None:
    arm = InstanceType("Standard_ARM_v1", 1, 80, architecture="arm64")
    assert offered(workspace_object(), replace(CATALOG, instance_types={arm.name: arm})) == ()


def test_a_type_that_is_spelt_in_another_case_is_not_its_own_alternative() -> None:
    assert "Standard_NC6s_v3" not in offered(served("phi-3-mini-4k-instruct", instanceType="standard_nc6S_V3"))


@pytest.mark.parametrize("node_api", ["Machine", "NodeClaim"])
def test_the_claim_carries_what_is_offered(node_api: NodeAPI) -> None:
    world = SmallWorld(workspace_object(), settings=Settings(node_api=node_api))
    world.reconcile()
    (claim,) = world.claims.values()
    assert claim["kind"] == node_api
    assert claim["metadata"]["annotations"][ANNOTATION] == "Standard_NC24ads_A100_v4"


def test_the_claim_of_a_template_carries_nothing() -> None:
    world = SmallWorld(workspace_object(inference=TEMPLATE))
    world.reconcile()
    (claim,) = world.claims.values()
    assert "annotations" not in claim["metadata"]
