"""What a Workspace may expect of whoever sells its nodes: the same tests for every provider."""

from __future__ import annotations

from itertools import chain, pairwise, repeat

import pytest
from tests.cluster.interchange.conftest import KARPENTER, OURS, Bought, claims_of, give_back, nodes_of
from tests.cluster.interchange.providers import Provider
from tests.cluster.workspace.conftest import conditions, submit, until, workspace
from tests.eventually import eventually

from kaito_hooks.runtime import Client
from kaito_hooks.workspace.resources import DEPLOYMENT, NETWORK_POLICY, NODE, POD, SERVICE, WORKSPACE

PATIENCE = 90.0


def test_a_workspace_gets_its_node_serves_there_and_gives_everything_back(
    admin: Client, place: str, provider: Provider
) -> None:
    ws = submit(admin, workspace("phi", place))
    until(admin, ws, "WorkspaceReady", timeout=PATIENCE)
    found = conditions(admin, ws)
    for condition in (f"{provider.kind}Ready", "ResourceReady", "InferenceReady"):
        assert found[condition]["status"] == "True"
    [claim] = claims_of(admin, provider, ws)
    node = admin.get(NODE, claim["status"]["nodeName"])
    expected = {
        "apps": place,
        "kaito.sh/workspace": "phi",
        "kaito.sh/workspacenamespace": place,
        "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
        "accelerator": "nvidia",
    }
    assert expected.items() <= node["metadata"]["labels"].items()
    assert [t for t in node["spec"]["taints"] if t["effect"] != "NoSchedule" or t["key"] != "sku"] == []
    assert [t["value"] for t in node["spec"]["taints"]] == ["gpu"]
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "1"
    now = admin.get(WORKSPACE, "phi", namespace=place)
    assert now["status"]["workerNodes"] == [node["metadata"]["name"]]
    [pod] = admin.list(POD, namespace=place).items
    assert pod["spec"]["nodeName"] == node["metadata"]["name"]
    for resource in (DEPLOYMENT, SERVICE, NETWORK_POLICY):
        [owner] = admin.get(resource, "phi", namespace=place)["metadata"]["ownerReferences"]
        assert owner["uid"] == ws["metadata"]["uid"]
    give_back(admin, provider, ws)


def test_a_node_that_somebody_deletes_is_bought_again_and_no_other(
    admin: Client, place: str, provider: Provider
) -> None:
    ws = workspace("pair", place)
    ws["resource"]["count"] = 2
    submit(admin, ws)
    with Bought(admin, provider.kind) as bought:
        until(admin, ws, "WorkspaceReady", timeout=PATIENCE)
        kept, lost = nodes_of(admin, ws)
        admin.delete(NODE, lost["metadata"]["name"])

        def replaced() -> bool:
            # By uid: the new Node may have the old one's name.
            uids = {node["metadata"]["uid"] for node in nodes_of(admin, ws)}
            return len(uids) == 2 and kept["metadata"]["uid"] in uids and lost["metadata"]["uid"] not in uids

        eventually(replaced, timeout=PATIENCE, every=0.1)
        until(admin, ws, "WorkspaceReady", timeout=PATIENCE)
        assert len(bought.times(ws)) == 3
    give_back(admin, provider, ws)


def test_a_claim_that_cannot_be_had_is_explained_and_bought_again_with_a_back_off(
    admin: Client, place: str, provider: Provider
) -> None:
    provider.refuse()
    try:
        with Bought(admin, provider.kind) as bought:
            ws = submit(admin, workspace("late", place))
            told = until(admin, ws, "ResourceReady", status="False", words=provider.refusal, timeout=PATIENCE)
            assert told["reason"] == "workspaceResourceStatusFailed"
            eventually(lambda: len(bought.times(ws)) >= 2, timeout=PATIENCE)
            provider.relent()
            until(admin, ws, "WorkspaceReady", timeout=PATIENCE)
            # 1 s, then 2 s, 4 s and 8 s, as the values say; a little less because what is seen may be seen late.
            pauses = [after - before for before, after in pairwise(bought.times(ws))]
            least = chain((0.8, 1.7, 3.7), repeat(7.7))
            assert [pause for pause, shortest in zip(pauses, least, strict=False) if pause < shortest] == []
    except BaseException:
        provider.relent()
        raise
    give_back(admin, provider, ws)


# Not Karpenter's: its fake cloud makes a Node whatever has become of the claim, and forgets it.
@pytest.mark.parametrize("provider", OURS, indirect=True)
def test_a_workspace_that_is_deleted_while_its_node_comes_leaves_nothing(
    admin: Client, place: str, provider: Provider
) -> None:
    ws = submit(admin, workspace("hasty", place))
    eventually(lambda: claims_of(admin, provider, ws), timeout=PATIENCE)
    give_back(admin, provider, ws)


@pytest.mark.parametrize("provider", [pytest.param(KARPENTER, marks=pytest.mark.karpenter)], indirect=True)
def test_an_instance_type_that_karpenter_does_not_know_is_told_in_its_words(
    admin: Client, place: str, provider: Provider
) -> None:
    ws = workspace("unknown", place)
    ws["resource"]["instanceType"] = "Standard_NC12s_v3"
    submit(admin, ws)
    until(admin, ws, "ResourceReady", status="False", words="LaunchFailed: ", timeout=PATIENCE)
    until(admin, ws, "ResourceReady", status="False", words="instance type not found (instance-type=Standard_NC12s_v3)")
    [claim] = claims_of(admin, provider, ws)
    assert claim["spec"]["nodeClassRef"] == {
        "group": "karpenter.kwok.sh",
        "kind": "KWOKNodeClass",
        "name": "default",
    }
    assert claim["spec"]["expireAfter"] == "Never"
    assert claim["spec"]["resources"]["requests"] == {"ephemeral-storage": "50Gi"}
    assert claim["metadata"]["labels"]["karpenter.sh/nodepool"] == "kaito"
    give_back(admin, provider, ws)
