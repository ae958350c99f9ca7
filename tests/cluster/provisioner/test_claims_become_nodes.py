"""Claims in, agent pools and Nodes out: the real process, the real SDK, a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster.provisioner.conftest import Claims, Provisioners, created, emulated, nodes_of

from kaito_hooks.runtime import Client, Obj
from kaito_local.aks import Emulator, Identity
from kaito_local.cluster.controlplane import ControlPlane


def test_a_claim_becomes_a_ready_node_and_its_deletion_gives_everything_back(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    provisioners.start(cloud, nodeAPI=claims.kind)
    claims.ask("ws0000000a1", disk_gib=50)
    claim = claims.until_ready("ws0000000a1")
    (node,) = nodes_of(admin, "ws0000000a1")
    assert claim.node_name == node["metadata"]["name"]
    assert claim.provider_id == node["spec"]["providerID"]
    assert node["metadata"]["labels"]["apps"] == "phi-3"
    assert node["metadata"]["labels"]["karpenter.sh/initialized"] == "true"
    (pool,) = cloud.agent_pools()
    assert pool.properties["osDiskSizeGB"] == 50
    assert pool.properties["nodeTaints"] == ["sku=gpu:NoSchedule"]

    claims.delete("ws0000000a1")
    claims.until_gone("ws0000000a1")
    assert cloud.agent_pools() == []
    assert nodes_of(admin, "ws0000000a1") == []
    assert created(cloud) == ["ws0000000a1"]
    assert [flag for request in cloud.requests() for flag in request["flags"]] == []


@pytest.fixture
def identified(plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Emulator]:
    """A cloud whose machines have the identity themselves."""
    yield from emulated(plane, tmp_path / "cloud", admin, identity=Identity(of_machines=True))


def test_a_claim_becomes_a_node_with_the_managed_identity_of_the_machine(
    plane: ControlPlane,
    account: str,
    chart: Callable[..., list[Obj]],
    identified: Emulator,
    machines: Claims,
    tmp_path: Path,
) -> None:
    """No token file, no secret: azure-identity asks the metadata service where its own variable says."""
    found = Provisioners(plane, account, chart, tmp_path)
    environment = {
        "DEPLOYMENT_MODE": "managed",
        "AZURE_FEDERATED_TOKEN_FILE": "",
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": identified.endpoints.arm,
    }
    try:
        found.start(identified, environment=environment)
        machines.ask("ws0000000a2")
        machines.until_ready("ws0000000a2")
        machines.delete("ws0000000a2")
        machines.until_gone("ws0000000a2")
    finally:
        found.close()
    asked = {r["path"] for r in identified.requests() if r["verb"] == "TOKEN"}
    assert asked == {"/metadata/identity/oauth2/token"}
    assert created(identified) == ["ws0000000a2"]
