"""The environment of the process: upstream's variables, ours, and what is wrong with them."""

from __future__ import annotations

import pytest

from kaito_hooks.provisioner.configuration import Configuration, ConfigurationInvalid

ENVIRONMENT = {
    "ARM_SUBSCRIPTION_ID": "sub",
    "ARM_RESOURCE_GROUP": "group",
    "AZURE_CLUSTER_NAME": "cluster",
    "AZURE_TENANT_ID": "tenant",
    "AZURE_CLIENT_ID": "client",
    "AZURE_FEDERATED_TOKEN_FILE": "/token",
    "LEADER_ELECTION_NAMESPACE": "kaito",
}


def test_the_defaults_are_upstreams_and_safe() -> None:
    found = Configuration.read(ENVIRONMENT)
    assert (found.metrics_port, found.health_port, found.bind_address) == (8080, 8081, "")
    assert found.node_api == "Machine"
    assert found.leader_election is not None
    assert found.leader_election.name == "gpu-provisioner-leader-election"
    assert (
        found.leader_election.lease_duration,
        found.leader_election.renew_deadline,
        found.leader_election.retry_period,
    ) == (15, 10, 2)
    assert found.settings.registration_timeout == 900
    assert found.settings.launch_timeout == 0
    assert found.settings.node_repair_timeout == 600
    assert found.settings.termination_grace_period == 3600
    assert found.settings.gc_interval == 120
    assert not found.settings.manage_by_label
    assert not found.settings.delete_on_insufficient_capacity


def test_everything_can_be_set() -> None:
    found = Configuration.read(
        ENVIRONMENT
        | {
            "NODE_API": "NodeClaim",
            "REGISTRATION_TIMEOUT": "1m30s",
            "LAUNCH_TIMEOUT": "1h",
            "NODE_REPAIR_TIMEOUT": "15s",
            "TERMINATION_GRACE_PERIOD": "90m",
            "GC_INTERVAL": "5s",
            "POOL_POLL_INTERVAL": "500ms",
            "MANAGE_BY_LABEL": "true",
            "DELETE_ON_INSUFFICIENT_CAPACITY": "True",
            "DISABLE_LEADER_ELECTION": "true",
            "ARM_ENDPOINT": "https://arm.local:1234/",
            "AZURE_AUTHORITY_HOST": "https://login.local/",
            "METRICS_PORT": "0",
            "NODE_CLASS_GROUP": "example.com",
            "NODE_CLASS_KIND": "Class",
            "ARM_API_VERSION": "2026-05-02-preview",
            "AGENT_POOL": '{"tags":{"costCenter":"42"}}',
        }
    )
    assert found.node_api == "NodeClaim"
    assert found.leader_election is None
    assert found.settings.registration_timeout == 90
    assert found.settings.node_repair_timeout == 15
    assert found.settings.termination_grace_period == 5400
    assert found.settings.pool_poll_interval == 0.5
    assert found.settings.manage_by_label
    assert found.settings.delete_on_insufficient_capacity
    assert (found.settings.node_class.group, found.settings.node_class.kind) == ("example.com", "Class")
    assert found.azure.arm_endpoint == "https://arm.local:1234"
    assert found.azure.token_scope == "https://arm.local:1234/.default"
    assert found.azure.api_version == "2026-05-02-preview"
    assert found.azure.agent_pool == {"tags": {"costCenter": "42"}}


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("ARM_SUBSCRIPTION_ID", "subscription ID not set"),
        ("AZURE_TENANT_ID", "tenant ID not set"),
        ("ARM_RESOURCE_GROUP", "resource group not set"),
        ("AZURE_CLUSTER_NAME", "cluster name not set"),
        ("AZURE_CLIENT_ID", "client ID not set"),
        ("AZURE_FEDERATED_TOKEN_FILE", "federated token file not set"),
    ],
)
def test_what_is_missing_is_named(variable: str, sentence: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=sentence):
        Configuration.read({key: value for key, value in ENVIRONMENT.items() if key != variable})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NODE_API", "Node"),
        ("DEPLOYMENT_MODE", "hosted"),
        ("REGISTRATION_TIMEOUT", "15"),
        ("GC_INTERVAL", "0s"),
        ("NODE_REPAIR_TIMEOUT", "-1s"),
        ("METRICS_PORT", "70000"),
        ("MANAGE_BY_LABEL", "maybe"),
        ("ARM_ENDPOINT", "http://arm.local"),
        ("AZURE_AUTHORITY_HOST", "login.local"),
        ("ARM_API_VERSION", "latest"),
        ("AGENT_POOL", "tags: {}"),
        ("AGENT_POOL", "[1]"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=variable) as caught:
        Configuration.read(ENVIRONMENT | {variable: value})
    assert value in str(caught.value)


def test_managed_mode_needs_no_workload_identity() -> None:
    environment = ENVIRONMENT | {"DEPLOYMENT_MODE": "managed", "AZURE_CLIENT_ID": "", "AZURE_FEDERATED_TOKEN_FILE": ""}
    assert Configuration.read(environment).azure.managed


def test_the_feature_gate_switches_repair_off() -> None:
    assert Configuration.read(ENVIRONMENT | {"FEATURE_GATES": "NodeRepair=true"}).settings.node_repair_timeout == 600
    assert Configuration.read(ENVIRONMENT | {"FEATURE_GATES": "X=1,NodeRepair=false"}).settings.node_repair_timeout == 0
