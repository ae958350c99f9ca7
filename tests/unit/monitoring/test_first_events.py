"""The first event of a process is seen by rate() and increase(): its counter was there before, at 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.monitoring.queries import series
from tests.unit.monitoring.test_dashboards import alerts
from tests.unit.monitoring.test_metrics_page import KUBECONFIG

from kaito_hooks.api.claim import ENCODINGS
from kaito_hooks.provisioner.errors import CloudError, reasons
from kaito_hooks.provisioner.metrics import ProvisionerMetrics
from kaito_hooks.runtime import Client
from kaito_hooks.workspace.__main__ import build
from kaito_hooks.workspace.configuration.settings import Process, Settings
from kaito_serving.http.metrics import ServingMetrics

COMPARED = {"kaito_serving_requests_total"}
"""A share of requests, of which an alert is due only after minutes of failures; its codes are not known before."""


@pytest.fixture
def fresh(tmp_path: Path) -> list[CollectorRegistry]:
    """What the programs export before anything has happened."""
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    controller = build(Client.load(kubeconfig=str(file)), Settings(), Process()).metrics.registry
    provisioner = CollectorRegistry()
    ProvisionerMetrics(provisioner)
    return [controller, provisioner, ServingMetrics(model="m", version="1").registry]


def samples(registries: list[CollectorRegistry], name: str) -> list[Any]:
    return [s for each in registries for family in each.collect() for s in family.samples if s.name == name]


def test_what_an_alert_counts_is_there_from_the_start(fresh: list[CollectorRegistry]) -> None:
    counted = {name for alert in alerts() for name in series(alert["expr"]) if name.endswith("_total")} - COMPARED
    assert counted
    missing = sorted(name for name in counted if not samples(fresh, name))
    assert missing == []
    assert {s.value for name in counted for s in samples(fresh, name)} == {0.0}


def test_a_refusal_of_every_class_is_counted_from_the_start(fresh: list[CollectorRegistry]) -> None:
    for name in ("kaito_provisioner_launch_errors_total", "kaito_provisioner_pools_failed_total"):
        assert {s.labels["class"] for s in samples(fresh, name)} == set(reasons())
    assert {"QuotaExceeded", "WrongCluster", "LaunchFailed"} <= set(reasons())
    assert CloudError.__name__ not in reasons()


@pytest.mark.parametrize(
    "name",
    [
        "kaito_claims_created_total",
        "kaito_claims_released_total",
        "karpenter_nodeclaims_created_total",
        "karpenter_nodeclaims_terminated_total",
    ],
)
def test_what_is_bought_and_given_back_is_counted_from_the_start(fresh: list[CollectorRegistry], name: str) -> None:
    assert {s.labels["kind"] for s in samples(fresh, name)} == set(ENCODINGS)
