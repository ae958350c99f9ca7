"""Alerts fire on what they are about and on nothing else, as Prometheus' own engine evaluates them once a minute."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.unit.monitoring.queries import Fired, fired
from tests.unit.monitoring.test_dashboards import alerts, rendered

WAITING = 'kaito_workspaces{condition="ResourceReady", status="False"}'
LAUNCHING = 'kaito_provisioner_claims{kind="Machine", phase="Launching", instance="p"}'
LEADS = 'leader_election_master_status{{name="{}", instance="{}"}}'
CONTROLLER, OTHER = LEADS.format("workspace", "a"), LEADS.format("workspace", "b")
PROVISIONER = LEADS.format("gpu-provisioner", "p")
REFUSED = 'kaito_provisioner_launch_errors_total{{class="{}", instance="p"}}'
FAILED = 'kaito_provisioner_pools_failed_total{{class="{}", instance="p"}}'
REQUESTS = 'kaito_serving_requests_total{{namespace="models", workspace="phi", code="{}"}}'
WAITED = 'workqueue_queue_duration_seconds_bucket{{controller="workspace", name="workspace", instance="a", le="{}"}}'

HEALTHY: Mapping[str, str] = {
    CONTROLLER: "1x400",
    OTHER: "0x400",
    PROVISIONER: "1x400",
    **{f'kaito_events_dropped_total{{component="c", instance="{instance}"}}': "0x400" for instance in "abp"},
    'controller_runtime_reconcile_panics_total{controller="workspace", instance="a"}': "0x400",
    'kaito_claims_longest_pending_seconds{kind="Machine"}': "0+60x5 0x395",
    REFUSED.format("QuotaExceeded"): "0x400",
    FAILED.format("QuotaExceeded"): "0x400",
    WAITING: "1x5 0x395",
    LAUNCHING: "1x5 0x395",
    'kaito_provisioner_claims{kind="Machine", phase="Ready", instance="p"}': "0x5 1x395",
    "kaito_claims_lost_total": "0x400",
    "kaito_provisioner_orphan_pools": "0x400",
    "kaito_provisioner_arm_throttled_seconds_total": "0x400",
    'kaito_workspaces_longest_unready_seconds{type="inference"}': "0+60x8 0x392",
    'kaito_workspaces_longest_unready_seconds{type="tuning"}': "0+60x400",
    REQUESTS.format(200): "0+60x400",
    REQUESTS.format(503): "0x400",
    'kaito_serving_rejected_total{namespace="models", workspace="phi", reason="queue_full"}': "0x400",
    'kaito_tuning_phase{namespace="models", workspace="mine", phase="Pushing"}': "0x60 1x5 stale",
    'workqueue_longest_running_processor_seconds{controller="workspace", instance="a"}': "1x400",
    WAITED.format(10): "0+60x400",
    WAITED.format(60): "0+60x400",
    WAITED.format(600): "0+60x400",
    WAITED.format("+Inf"): "0+60x400",
}
"""Six hours and more: a start, a training and its push, requests; two replicas of the controller."""


def told(series: Mapping[str, str], *, minutes: int = 180) -> list[Fired]:
    """What fires when these series are otherwise than in a healthy cluster; "" takes one away."""
    there = {name: values for name, values in {**HEALTHY, **series}.items() if values}
    return fired(rendered()["PrometheusRule"]["spec"], there, minutes=minutes)


# By alert: what is wrong, the minute from which on it is told, and its labels.
WRONG: Mapping[str, tuple[Mapping[str, str], int, Mapping[str, str]]] = {
    "KaitoControllerHasNoLeader": ({CONTROLLER: "1x20 0x400"}, 26, {}),
    "GPUProvisionerHasNoLeader": ({PROVISIONER: "1x20 stale"}, 26, {}),
    "KaitoReconcilesFail": (
        {'controller_runtime_reconcile_panics_total{controller="workspace", instance="a"}': "0x10 1+1x400"},
        26,
        {"controller": "workspace"},
    ),
    "KaitoWorkWaits": (
        {WAITED.format(10): "0x400", WAITED.format(60): "0x400"},
        16,
        {"controller": "workspace"},
    ),
    "KaitoClaimsBecomeNoNodes": (
        {'kaito_claims_longest_pending_seconds{kind="Machine"}': "0+60x400"},
        26,
        {"kind": "Machine"},
    ),
    "KaitoLaunchesRefused": (
        # Refused at once, and again each hour and a little, as a type is that is not offered.
        {
            REFUSED.format("InstanceTypeUnavailable"): "0x10 1x72 2x72 3x400",
            FAILED.format("InstanceTypeUnavailable"): "0x400",
            WAITING: "0x10 1x400",
        },
        71,
        {"class": "InstanceTypeUnavailable"},
    ),
    "KaitoClaimsLost": ({"kaito_claims_lost_total": "0x10 3x400"}, 11, {}),
    "KaitoNodesLeaked": ({"kaito_provisioner_orphan_pools": "0x10 2x400"}, 41, {}),
    "KaitoNodeCannotBeDrained": (
        {'kaito_provisioner_drain_blocked_seconds{node="n"}': "0+60x400"},
        36,
        {"node": "n"},
    ),
    "KaitoARMThrottled": (
        {"kaito_provisioner_arm_throttled_seconds_total": "0x10 20+20x400"},
        117,
        {},
    ),
    "KaitoWorkspaceNotReady": (
        {'kaito_workspaces_longest_unready_seconds{type="inference"}': "0+60x400"},
        66,
        {},
    ),
    "KaitoModelFails": (
        # 6 of 66 requests a minute: more than a twentieth of those of ten minutes after five and a half.
        {REQUESTS.format(503): "0x10 6+6x400"},
        26,
        {"namespace": "models", "workspace": "phi"},
    ),
    "KaitoModelOverloaded": (
        {'kaito_serving_rejected_total{namespace="models", workspace="phi", reason="queue_full"}': "0x10 1+1x400"},
        26,
        {"namespace": "models", "workspace": "phi"},
    ),
    "KaitoAdapterNotPushed": (
        {'kaito_tuning_phase{namespace="models", workspace="mine", phase="Pushing"}': "0x60 1x400"},
        91,
        {"namespace": "models", "workspace": "mine"},
    ),
}


def test_every_alert_is_tried() -> None:
    assert set(WRONG) == {alert["alert"] for alert in alerts()}


def test_nothing_is_told_of_a_healthy_cluster() -> None:
    assert told({}, minutes=400) == []


@pytest.mark.parametrize("name", WRONG)
def test_an_alert_tells_of_what_is_wrong_and_no_other_does(name: str) -> None:
    series, minute, labels = WRONG[name]
    found = told(series)
    assert [each.alert for each in found] == [name]
    [alert] = found
    assert {key: value for key, value in alert.labels.items() if key != "severity"} == labels
    assert abs(alert.begin / 60 - minute) <= 2, f"from minute {alert.begin / 60} on"
    assert alert.end == 180 * 60 or name == "KaitoClaimsLost", "it holds for as long as that is so"
    assert "<no value>" not in str(alert.annotations)


def test_the_refusals_of_a_claim_that_belongs_to_no_workspace_are_told() -> None:
    # Tried again after ever longer pauses, as where a quota is used up.
    refused = {REFUSED.format("QuotaExceeded"): "0x10 1x5 2x10 3x20 4x60 5x62 6x400", LAUNCHING: "0x10 1x400"}
    [alert] = told(refused)
    assert (alert.alert, alert.labels["class"], alert.end) == ("KaitoLaunchesRefused", "QuotaExceeded", 180 * 60)
    assert abs(alert.begin / 60 - 71) <= 2


# What looks like trouble and is none.
HARMLESS: Mapping[str, Mapping[str, str]] = {
    "a controller that restarts": {
        CONTROLLER: "1x60 stale",
        OTHER: "0x61 1x400",
        "kaito_claims_lost_total": "2x60 0x400",
        'kaito_workspaces_longest_unready_seconds{type="inference"}': "0+60x8 0x50 _x3 0x400",
        'controller_runtime_reconcile_panics_total{controller="workspace", instance="a"}': "5x60 0x400",
    },
    "two refusals before a machine that is bought": {
        REFUSED.format("InsufficientCapacity"): "0x10 1x4 2x400",
        FAILED.format("InsufficientCapacity"): "0x400",
        WAITING: "0x10 1x25 0x400",
    },
    "a Workspace that is deleted while its node is refused": {
        REFUSED.format("InstanceTypeUnavailable"): "0x10 1x400",
        FAILED.format("InstanceTypeUnavailable"): "0x400",
        WAITING: "0x10 1x30 0x400",
        'kaito_claims_longest_pending_seconds{kind="Machine"}': "0x10 0+60x15 0x400",
        'kaito_workspaces_longest_unready_seconds{type="inference"}': "0x10 0+60x55 0x400",
    },
    "a claim of no Workspace that is deleted while it is refused": {
        REFUSED.format("QuotaExceeded"): "0x10 1x10 2x400",
        LAUNCHING: "0x10 1x30 0x400",
    },
    "refusals for which nobody waits any more": {
        REFUSED.format("QuotaExceeded"): "0x10 1x10 2x400",
        LAUNCHING: "0x10 1x30 stale",
        WAITING: "stale",
    },
    "a request that fails, of few": {REQUESTS.format(200): "0x400", REQUESTS.format(503): "0x10 1x400"},
    "a panic": {'controller_runtime_reconcile_panics_total{controller="workspace", instance="a"}': "0x10 1x400"},
    "a node that dies": {"kaito_claims_lost_total": "0x10 1x400"},
    "a node with a budget": {'kaito_provisioner_drain_blocked_seconds{node="n"}': "0+60x29 stale"},
    "pools that are collected": {"kaito_provisioner_orphan_pools": "0x10 3x10 0x400"},
    "a wait of ARM": {"kaito_provisioner_arm_throttled_seconds_total": "0x10 600x400"},
    "a burst of requests": {
        'kaito_serving_rejected_total{namespace="models", workspace="phi", reason="queue_full"}': "0x10 50x400"
    },
    "a follower whose queue nobody empties": {
        'workqueue_depth{controller="workspace", name="workspace", instance="b"}': "20x400"
    },
    "a Workspace that is deleted while its server fails": {
        REQUESTS.format(200): "0+60x15 stale",
        REQUESTS.format(503): "0x10 6+6x4 stale",
    },
    # Series of controller-runtime and client-go, whose names ours share.
    "what is wrong with other operators of the cluster": {
        'controller_runtime_reconcile_panics_total{controller="certificates", instance="c", job="c"}': "0+1x400",
        'controller_runtime_reconcile_panics_total{controller="nodeclaim.lifecycle", instance="k"}': "0+1x400",
        'workqueue_longest_running_processor_seconds{name="endpoint", instance="m", job="apiserver"}': "0+60x400",
        **{
            f'workqueue_queue_duration_seconds_bucket{{name="endpoint", instance="m", le="{le}"}}': values
            for le, values in (("60", "0x400"), ("600", "0+60x400"), ("+Inf", "0+60x400"))
        },
        'leader_election_master_status{name="kube-scheduler", instance="m"}': "1x20 0x400",
    },
    "a cluster whose provisioner is Karpenter": {
        PROVISIONER: "",
        LAUNCHING: "",
        'kaito_provisioner_claims{kind="Machine", phase="Ready", instance="p"}': "",
        REFUSED.format("QuotaExceeded"): "",
        FAILED.format("QuotaExceeded"): "",
        "kaito_provisioner_orphan_pools": "",
        "kaito_provisioner_arm_throttled_seconds_total": "",
    },
}


@pytest.mark.parametrize("name", HARMLESS)
def test_nothing_is_told_of(name: str) -> None:
    assert [(each.alert, each.begin / 60, each.end / 60) for each in told(HARMLESS[name])] == []
