"""Whatever is killed in the middle: the Workspace gets there, and no node is bought twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.demo.local_cluster import TEMPLATE, Cluster, kill
from tests.eventually import eventually

pytestmark = pytest.mark.nodes

MANIFEST = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: %(name)s}}}
inference: {preset: {name: phi-3-mini-4k-instruct}}
"""
WORKSPACE_CONTROLLER = "kaito_hooks.workspace"
PROVISIONER = "kaito_hooks.provisioner"
SERVER = "-m kaito_serving"


def claims(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return cluster.get("machines", "-l", f"kaito.sh/workspace={name}")["items"]


def nodes(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return cluster.get("nodes", "-l", f"kaito.sh/workspace={name}")["items"]


def readiness(cluster: Cluster, name: str) -> tuple[str, str]:
    """Whether the Workspace is ready, and since when: another moment tells who looks late that it was not."""
    found = cluster.conditions(name)["WorkspaceReady"]
    return found["status"], found["lastTransitionTime"]


def created_since(cluster: Cluster, before: list[str]) -> int:
    """How many agent pools the cloud created since then; one that comes again under its name counts again."""
    return len(cluster.pools_created()) - len(before)


@pytest.fixture(scope="module")
def serving(cluster: Cluster) -> Iterator[str]:
    """A Workspace that serves; what is killed below it must come back."""
    cluster.kubectl("apply", "-f", "-", stdin=MANIFEST % {"name": "killed"})
    cluster.wait_ready("killed")
    yield "killed"
    cluster.kubectl("delete", "workspace", "killed", "--timeout=120s", timeout=150)


# Each victim once; the other moment is a matrix.
@pytest.mark.parametrize(
    "moment", ["the claim is written", pytest.param("the node has joined", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("victim", [WORKSPACE_CONTROLLER, PROVISIONER, "the cloud"])
def test_a_killed_controller_or_cloud_converges_on_one_node(
    cluster: Cluster, workspace: Callable[..., str], victim: str, moment: str
) -> None:
    before = cluster.pools_created()
    kind = {WORKSPACE_CONTROLLER: "w", PROVISIONER: "p"}.get(victim, "c")
    name = workspace(TEMPLATE % {"name": f"killed-{kind}-{'claim' if 'claim' in moment else 'node'}"})
    wanted = claims if "claim" in moment else nodes
    eventually(lambda: wanted(cluster, name), every=0.1)
    if victim == "the cloud":
        os.kill(cluster.pid("this machine", "aks-emulator"), signal.SIGKILL)
    else:
        kill(cluster.processes(victim))
    cluster.wait_ready(name)
    # A Workspace may be ready before a killed cloud is there again to be asked.
    eventually(cluster.pools, despite=AssertionError)
    assert created_since(cluster, before) == 1
    assert len(claims(cluster, name)) == 1
    assert len(cluster.pools()) == 1


def test_a_killed_model_server_answers_again_on_the_same_node(cluster: Cluster, serving: str) -> None:
    before = cluster.pools_created()
    first = cluster.chat(serving, "What is Kubernetes?", do_sample=False)
    ready = readiness(cluster, serving)
    kill(cluster.processes(SERVER)[:1])
    eventually(lambda: readiness(cluster, serving) != ready, what="nobody noticed that the server is gone")
    cluster.wait_ready(serving)
    assert cluster.chat(serving, "What is Kubernetes?", do_sample=False) == first
    assert created_since(cluster, before) == 0


def test_a_killed_node_is_replaced_and_given_back(cluster: Cluster, serving: str) -> None:
    name, before = serving, cluster.pools_created()
    (old,) = nodes(cluster, name)
    ready = readiness(cluster, name)
    kill([cluster.pid(f"node {old['metadata']['name']}", "(all of it)")])
    eventually(
        lambda: readiness(cluster, name) != ready,
        timeout=90,
        every=0.5,
        what="nobody noticed that the node is gone",
    )
    eventually(
        lambda: old["metadata"]["uid"] not in {n["metadata"]["uid"] for n in nodes(cluster, name)},
        timeout=120,
        every=0.5,
        what="the dead node is still there",
    )
    cluster.wait_ready(name)
    assert created_since(cluster, before) == 1
    assert len(cluster.pools()) == 1
    assert cluster.chat(name, "What is Kubernetes?", do_sample=False)
