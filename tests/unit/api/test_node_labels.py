"""Which labels of Nodes are not free to choose."""

from __future__ import annotations

import pytest

from kaito_hooks.api import node_labels


@pytest.mark.parametrize(
    "key",
    [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "node-role.kubernetes.io/control-plane",
        "team.node-restriction.kubernetes.io/secure",
        "kops.k8s.io/instancegroup",
        "k8s.io/x",
        "karpenter.sh/capacity-type",
        "kubernetes.azure.com/mode",
        "agentpool",
        "accelerator",
    ],
)
def test_what_describes_the_node_itself_is_reserved(key: str) -> None:
    assert node_labels.is_reserved(key)


@pytest.mark.parametrize(
    "key",
    ["apps", "kaito.sh/workspace", "kubernetes.io", "mykubernetes.io/x", "agentpool.example.com/x", "example.com/zone"],
)
def test_everything_else_is_free(key: str) -> None:
    assert not node_labels.is_reserved(key)


@pytest.mark.parametrize("key", ["topology.kubernetes.io/zone", "kubernetes.io/arch", "kubernetes.io/os", "apps"])
def test_what_a_claim_may_ask_for(key: str) -> None:
    assert node_labels.is_requestable(key)


@pytest.mark.parametrize(
    "key",
    ["agentpool", "kubernetes.io/hostname", "node.kubernetes.io/instance-type", "node-restriction.kubernetes.io/a"],
)
def test_what_no_claim_can_ask_for(key: str) -> None:
    assert not node_labels.is_requestable(key)


@pytest.mark.parametrize("key", ["a", "example.com/a", "a.b_c-D", "a" * 63])
def test_keys(key: str) -> None:
    assert node_labels.is_key(key)


@pytest.mark.parametrize("key", ["", "-a", "a/", "/a", "a b", "a" * 64, "Example.com/a"])
def test_what_is_no_key(key: str) -> None:
    assert not node_labels.is_key(key)


@pytest.mark.parametrize("value", ["", "a", "A.b_c-1", "a" * 63])
def test_values(value: str) -> None:
    assert node_labels.is_value(value)


@pytest.mark.parametrize("value", ["-a", "a-", "a b", "a/b", "a" * 64, "a\n"])
def test_what_is_no_value(value: str) -> None:
    assert not node_labels.is_value(value)
