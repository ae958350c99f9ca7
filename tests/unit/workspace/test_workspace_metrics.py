"""What the controller counts, and how its Workspaces and claims stand."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.driven.clock import SteppedClock
from tests.unit.workspace.running import START, RunningWorld, one
from tests.unit.workspace.worlds import Obj, claim_object, tuning_object, workspace_object

from kaito_hooks.runtime import Key, format_time
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.metrics import CONDITIONS, STATUSES, Census, WorkspaceMetrics


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def running(registry: CollectorRegistry) -> RunningWorld:
    world = RunningWorld()
    world.metrics = WorkspaceMetrics(registry)
    world.start()
    world.apply(one())
    world.allow(3 * START)
    world.run(600)
    return world


def test_a_claim_counts_when_it_is_made_and_when_it_is_given_back(registry: CollectorRegistry) -> None:
    world = running(registry)
    assert value(registry, "kaito_claims_created_total", kind="Machine") == 1
    assert value(registry, "kaito_claims_released_total", kind="Machine") == 0
    world.delete()
    world.allow(3 * START)
    world.run(600)
    assert value(registry, "kaito_claims_released_total", kind="Machine") == 1
    assert value(registry, "kaito_claims_lost_total") == 0


def test_a_claim_counts_once_whose_deletion_is_asked_for_again_by_a_cache_that_is_behind(
    registry: CollectorRegistry,
) -> None:
    world = running(registry)
    informers = world.informers
    world.delete()
    world.sync()
    # The watch of Machines stands still.
    machines: object = world.caches.machines
    world.informers = [informer for informer in informers if informer is not machines]
    world.allow(3 * START)
    world.run(30)
    for workspace in world.cluster.all(resources.WORKSPACE):
        world.controller.enqueue(Key.of(workspace))
    world.run(30)
    deletions = [write for write in world.cluster.writes if write[:2] == ("delete", "Machine")]
    assert len(deletions) > 1
    assert value(registry, "kaito_claims_released_total", kind="Machine") == 1


def test_a_claim_that_goes_by_itself_is_lost_and_another_made(registry: CollectorRegistry) -> None:
    world = running(registry)
    world.delete_claim(world.claims()[0])
    world.allow(3 * START)
    world.run(1200)
    assert world.told()[0] == "True"
    assert value(registry, "kaito_claims_lost_total") == 1
    assert value(registry, "kaito_claims_created_total", kind="Machine") == 2
    assert value(registry, "kaito_claims_released_total", kind="Machine") == 0


def test_a_start_is_observed_once_whatever_restarts(registry: CollectorRegistry) -> None:
    world = running(registry)
    assert value(registry, "kaito_workspace_time_to_ready_seconds_count") == 1
    total = world.workspace()["status"]["startup"]["totalSeconds"]
    assert total >= world.create_seconds
    assert value(registry, "kaito_workspace_time_to_ready_seconds_sum") == total
    [node] = world.worker_nodes()
    world.allow(3 * START)
    world.set_ready(node, False)
    world.run(60)
    assert world.told()[0] == "False"
    world.set_ready(node, True)
    world.run(60)
    assert world.told()[0] == "True"
    assert value(registry, "kaito_workspace_time_to_ready_seconds_count") == 1
    assert world.workspace()["status"]["startup"]["totalSeconds"] == total


def test_the_times_to_claim_and_node_are_sums_of_phases(registry: CollectorRegistry) -> None:
    phases = [
        {"name": "Bought", "seconds": 2},
        {"name": "NodeReady", "seconds": 240},
        {"name": "Answering", "seconds": 9},
    ]
    after = {"startup": {"phases": phases, "totalSeconds": 251}}
    metrics = WorkspaceMetrics(registry)
    metrics.wrote({"startup": {"phases": []}}, after)
    metrics.wrote(after, after)
    sums = [value(registry, f"kaito_workspace_time_to_{what}_seconds_sum") for what in ("claim", "node", "ready")]
    assert sums == [2, 242, 251]
    assert value(registry, "kaito_workspace_startup_phase_seconds_sum", phase="NodeReady") == 240
    assert value(registry, "kaito_workspace_startup_phase_seconds_count", phase="ModelLoaded") == 0


class Stands:
    """A census of given objects."""

    def __init__(self, *, workspaces: list[Obj] | None = None, claims: list[Obj] | None = None) -> None:
        self.clock, self.leads = SteppedClock(), True
        self.registry = CollectorRegistry()
        self.registry.register(
            Census(
                workspaces=lambda: workspaces or [],
                claims=lambda: claims or [],
                leading=lambda: self.leads,
                clock=self.clock,
            )
        )

    def value(self, name: str, **labels: str) -> Any:
        return value(self.registry, name, **labels)


def stands(obj: Obj, status: str, *, since: str) -> Obj:
    ready = {"type": "WorkspaceReady", "status": status, "lastTransitionTime": since}
    foreign = {"type": "Theirs", "status": "True", "lastTransitionTime": since}
    return {**obj, "status": {"conditions": [ready, foreign]}}


def test_every_workspace_counts_once_under_workspace_ready() -> None:
    now = format_time(SteppedClock().now())
    found = Stands(
        workspaces=[
            stands(workspace_object(), "True", since=now),
            stands(workspace_object(), "False", since=now),
            workspace_object(),
        ]
    )
    counts = [found.value("kaito_workspaces", condition="WorkspaceReady", status=status) for status in STATUSES]
    assert counts == [1, 1, 1]
    assert found.value("kaito_workspaces", condition="Theirs", status="True") is None
    assert found.value("kaito_workspaces", condition=CONDITIONS[1], status="True") == 0


def test_the_workspace_that_waits_longest_is_told_apart_from_trainings() -> None:
    clock = SteppedClock()
    hour, day = (format_time(clock.now() - timedelta(hours=hours)) for hours in (1, 24))
    going = stands(workspace_object(metadata={"deletionTimestamp": day}), "False", since=day)
    found = Stands(
        workspaces=[
            stands(workspace_object(), "False", since=hour),
            stands(workspace_object(), "True", since=day),
            stands(tuning_object(), "False", since=day),
            going,
        ]
    )
    assert found.value("kaito_workspaces_longest_unready_seconds", type="inference") == pytest.approx(3600, abs=1)
    assert found.value("kaito_workspaces_longest_unready_seconds", type="tuning") == pytest.approx(86400, abs=1)


def test_claims_are_counted_by_phase_and_the_oldest_purchase_is_told() -> None:
    old = format_time(SteppedClock().now() - timedelta(hours=2))
    ready = {"type": "Ready", "status": "True"}
    initialized = {"type": "MachineInitialized", "status": "True"}
    found = Stands(
        claims=[
            claim_object("a", conditions=[ready], creationTimestamp=old),
            claim_object("b", creationTimestamp=old),
            claim_object("c", creationTimestamp=old, deletionTimestamp=old),
            claim_object("d", conditions=[initialized], creationTimestamp="2020-01-01T00:00:00Z"),
        ]
    )
    counts = {
        phase: found.value("kaito_claims", kind="Machine", phase=phase) for phase in ("Pending", "Ready", "Deleting")
    }
    assert counts == {"Pending": 2, "Ready": 1, "Deleting": 1}
    assert found.value("kaito_claims_longest_pending_seconds", kind="Machine") == pytest.approx(7200, abs=1)
    assert found.value("kaito_claims_longest_pending_seconds", kind="NodeClaim") == 0


def test_who_does_not_lead_counts_nothing() -> None:
    found = Stands(workspaces=[workspace_object()])
    found.leads = False
    assert found.value("kaito_workspaces", condition="WorkspaceReady", status="Unknown") is None
