"""What the provisioner counts: claims by phase, pools that failed, pools that nobody owns."""

from __future__ import annotations

from typing import get_args

import pytest
from tests.driven.budget import Budget
from tests.unit.provisioner.budget import FAILURE, LAUNCH, looks
from tests.unit.provisioner.world import World

from kaito_hooks.api.claim import Claim, NodeAPI
from kaito_hooks.provisioner import resources
from kaito_hooks.provisioner.errors import QuotaExceeded
from kaito_hooks.provisioner.metrics import ClaimCensus

NAME = "ws000000001"


class Counted:
    """A world whose metrics are read."""

    def __init__(self, node_api: NodeAPI) -> None:
        self.world, self.leads = World(node_api=node_api), True
        self.registry = self.world.registry
        self.registry.register(ClaimCensus(self._claims, leading=lambda: self.leads))

    def _claims(self) -> list[Claim]:
        return [Claim.read(obj) for obj in self.world.cluster.all(resources.CLAIMS[self.world.node_api])]

    def phases(self) -> dict[str, float]:
        """The phases in which claims are, of the kind that is bought."""
        samples = [
            s for family in self.registry.collect() if family.name == "kaito_provisioner_claims" for s in family.samples
        ]
        return {s.labels["phase"]: s.value for s in samples if s.value and s.labels["kind"] == self.world.node_api}

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture(params=get_args(NodeAPI))
def counted(request: pytest.FixtureRequest) -> Counted:
    return Counted(request.param)


def test_a_claim_is_counted_in_each_of_its_phases(counted: Counted) -> None:
    world = counted.world
    world.allow(LAUNCH + Budget(reconciles=8, requests=6))
    world.ask()
    assert counted.phases() == {"Launching": 1}
    world.run(300)
    assert counted.phases() == {"Ready": 1}
    world.give_back()
    assert counted.phases() == {"Terminating": 1}


def test_who_does_not_lead_counts_no_claims(counted: Counted) -> None:
    counted.world.ready_claim()
    counted.leads = False
    assert counted.phases() == {}


def test_a_pool_that_failed_is_counted_by_its_class(counted: Counted) -> None:
    world = counted.world
    world.allow(LAUNCH + FAILURE + looks(60) + LAUNCH)
    world.cloud.fail_creation = [QuotaExceeded("QuotaExceeded", "not enough cores")]
    world.ask()
    world.run(1200)
    assert world.there().ready
    assert counted.value("kaito_provisioner_pools_failed_total", **{"class": "QuotaExceeded"}) == 1
    assert counted.value("karpenter_nodeclaims_created_total", kind=world.node_api) == 2


def test_a_pool_without_its_claim_is_told_until_it_is_collected(counted: Counted) -> None:
    world = counted.world
    world.ready_claim()
    world.cluster.drop(resources.CLAIMS[world.node_api], NAME)
    world.sweep()
    assert counted.value("kaito_provisioner_orphan_pools") == 1
    assert counted.value("kaito_provisioner_orphan_pools_deleted_total") == 0
    world.sweep()
    assert counted.value("kaito_provisioner_orphan_pools_deleted_total") == 1
    world.sweep()
    assert counted.value("kaito_provisioner_orphan_pools") == 0
