"""AKS upgrades the machine of a claim: the real process, the real SDK, a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cluster.provisioner.conftest import SWIFT, Claims, Provisioners, created, emulated, nodes_of
from tests.eventually import eventually

from kaito_hooks.api import labels
from kaito_hooks.runtime import Client, Obj
from kaito_local.aks import Emulator
from kaito_local.cluster.controlplane import ControlPlane

NAME = "ws0000000b1"


@pytest.fixture
def cloud(plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Emulator]:
    """Four seconds between the deletion of a Node and the registration of the next."""
    yield from emulated(plane, tmp_path / "cloud", admin, durations=replace(SWIFT, upgrade=12.0))


def test_a_claim_and_its_pool_outlive_a_node_image_upgrade(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    provisioners.start(cloud, nodeAPI=claims.kind)
    claims.ask(NAME)
    before = claims.until_ready(NAME)
    (old,) = nodes_of(admin, NAME)

    cloud.pools.upgrade(NAME)
    new = eventually(lambda: successor(admin, old), every=0.1, what="no Node registered and was initialized anew")
    eventually(lambda: cloud.agent_pools()[0].state == "Succeeded", every=0.1)
    eventually(lambda: len(nodes_of(admin, NAME)) == 1, every=0.1)
    assert new["metadata"]["name"] == old["metadata"]["name"]
    assert labels.TERMINATION_FINALIZER in new["metadata"]["finalizers"]
    after = claims.until_ready(NAME)
    assert (after.uid, after.deleting, after.node_name) == (before.uid, False, before.node_name)
    assert created(cloud) == [NAME]

    claims.delete(NAME)
    claims.until_gone(NAME)
    assert cloud.agent_pools() == []
    assert nodes_of(admin, NAME) == []


def successor(admin: Client, old: Obj) -> Obj | None:
    """The Node that has the old one's name and is not it, once it is initialized."""
    for node in nodes_of(admin, NAME):
        metadata = node["metadata"]
        if metadata["name"] == old["metadata"]["name"] and metadata["uid"] != old["metadata"]["uid"]:
            return node if metadata["labels"].get(labels.INITIALIZED) == "true" else None
    return None
