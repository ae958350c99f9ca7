"""More kinds of Workspaces: a node of one's own, a mix of adapters, two nodes, a template."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.artifacts.registry_fixture import RunningRegistry, tar
from tests.demo.local_cluster import Cluster
from tests.eventually import eventually
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.nodes

QUESTION = "What is Kubernetes?"
PRESET = "preset: {name: phi-3-mini-4k-instruct}"
MANIFEST = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {%(resource)s, instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: %(name)s}}}
inference: {%(inference)s}
"""
TEMPLATE = (
    "template: {metadata: {labels: {team: a}}, spec: {terminationGracePeriodSeconds: 1, "
    "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, containers: "
    "[{name: app, image: curlimages/curl, command: [sleep, '3600'], "
    "securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}}"
)
OWN_POOL = "ownpool"


def adapters_for(model: Path, folder: Path) -> dict[str, Path]:
    """Two LoRA adapters that PEFT saves, with different random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for seed, name in enumerate(("amber", "blue"), start=1):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model)
        adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj"]))
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(folder / name)
        made[name] = folder / name
    return made


class Arm:
    """Azure's API, as `az` would call it: with a token of the cluster's own identity."""

    def __init__(self, cluster: Cluster) -> None:
        deployment = cluster.get("deployment", "gpu-provisioner", "-n", "gpu-provisioner")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        self._cluster = cluster
        self._cluster_path = (
            f"{cluster.environment['KAITO_ARM_ENDPOINT']}/subscriptions/{env['ARM_SUBSCRIPTION_ID']}"
            f"/resourceGroups/{env['ARM_RESOURCE_GROUP']}/providers/Microsoft.ContainerService"
            f"/managedClusters/{env['AZURE_CLUSTER_NAME']}"
        )
        audience = "api://AzureADTokenExchange"
        assertion = cluster.kubectl(
            "create", "token", "gpu-provisioner", "-n", "gpu-provisioner", f"--audience={audience}"
        )
        form = {
            "grant_type": "client_credentials",
            "client_id": env["AZURE_CLIENT_ID"],
            "client_assertion": assertion.strip(),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "scope": env["ARM_TOKEN_SCOPE"],
        }
        fields = [part for key, value in form.items() for part in ("--data-urlencode", f"{key}={value}")]
        url = f"{env['AZURE_AUTHORITY_HOST'].rstrip('/')}/{env['AZURE_TENANT_ID']}/oauth2/v2.0/token"
        self._token = json.loads(cluster.run("curl", "-sSk", "-X", "POST", url, *fields))["access_token"]

    def pool(self, method: str, name: str, properties: Mapping[str, Any] | None = None) -> str:
        url = f"{self._cluster_path}/agentPools/{name}?api-version=2026-08-01"
        body = ("-d", json.dumps({"properties": properties})) if properties else ()
        headers = ("-H", f"Authorization: Bearer {self._token}", "-H", "Content-Type: application/json")
        return self._cluster.run("curl", "-sSk", "-X", method, url, *headers, *body)


@pytest.fixture
def own_node(cluster: Cluster) -> Iterator[str]:
    """A node that the user bought, as `az aks nodepool add --labels test=own` does; gone afterwards."""
    arm = Arm(cluster)
    bought = {
        "count": 1,
        "vmSize": "Standard_NC6s_v3",
        "type": "VirtualMachineScaleSets",
        "osType": "Linux",
        "nodeLabels": {"test": "own"},
    }
    said = arm.pool("PUT", OWN_POOL, bought)
    assert json.loads(said).get("name") == OWN_POOL, said

    def joined() -> str | None:
        nodes = cluster.get("nodes", "-l", f"agentpool={OWN_POOL}")["items"]
        return nodes[0]["metadata"]["name"] if nodes else None

    yield eventually(joined, every=0.5)
    arm.pool("DELETE", OWN_POOL)
    eventually(lambda: joined() is None, every=0.5)


@pytest.fixture(scope="module")
def adapter_images(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    host, user, password = (cluster.environment[f"KAITO_REGISTRY{suffix}"] for suffix in ("", "_USER", "_PASSWORD"))
    registry = RunningRegistry(host, user, password)
    cluster.kubectl(
        *("create", "secret", "docker-registry", "adapters", f"--docker-server={host}"),
        *(f"--docker-username={user}", f"--docker-password={password}"),
    )
    images = {}
    for name, folder in adapters_for(tiny_model(), tmp_path_factory.mktemp("adapters")).items():
        files: dict[str, bytes | None] = {f"data/{path.name}": path.read_bytes() for path in folder.iterdir()}
        registry.image(f"adapters/{name}", "1", tar(files))
        images[name] = f"{host}/adapters/{name}:1"
    yield images
    cluster.kubectl("delete", "secret", "adapters")


def adapted(images: dict[str, str], **strengths: str) -> str:
    entries = ", ".join(
        f'{{source: {{name: {name}, image: "{images[name]}", imagePullSecrets: [adapters]}}, strength: "{strength}"}}'
        for name, strength in strengths.items()
    )
    return MANIFEST % {"name": "mixed", "resource": "count: 1", "inference": f"{PRESET}, adapters: [{entries}]"}


def workers(cluster: Cluster, name: str) -> list[str]:
    return list(cluster.get("workspace", name)["status"].get("workerNodes", []))


def claims(cluster: Cluster, name: str) -> list[str]:
    items = cluster.get("machines", "-l", f"kaito.sh/workspace={name}")["items"]
    return [item["metadata"]["name"] for item in items]


# Nodes that are brought: also in tests/cluster/workspace; adapters and strengths on a cluster: also in test_tuning.py.
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_brought_and_a_bought_node_serve_side_by_side_and_adapters_change_the_answer(
    cluster: Cluster, own_node: str, adapter_images: dict[str, str], workspace: Callable[..., str]
) -> None:
    preferred = f"preferredNodes: [{own_node}]"
    workspace(MANIFEST % {"name": "own", "resource": preferred, "inference": PRESET})
    workspace(adapted(adapter_images, amber="1.0", blue="0.5"))
    for name in ("own", "mixed"):
        cluster.wait_ready(name, seconds=300)
    assert workers(cluster, "own") == [own_node]
    assert claims(cluster, "own") == []
    assert len(claims(cluster, "mixed")) == 1
    assert own_node not in workers(cluster, "mixed")

    base = cluster.chat("own", QUESTION, do_sample=False)
    assert cluster.chat("mixed", QUESTION, do_sample=False) != base
    before = workers(cluster, "mixed")
    cluster.kubectl("apply", "-f", "-", stdin=adapted(adapter_images, amber="0.0", blue="0.0"))

    def neutral() -> bool:
        try:
            return cluster.chat("mixed", QUESTION, do_sample=False) == base
        except (AssertionError, ValueError):  # the one Pod is being replaced
            return False

    eventually(neutral, timeout=180, every=2, what="strength 0 is not the base model")
    assert workers(cluster, "mixed") == before

    cluster.kubectl("delete", "workspace", "own", "--timeout=120s", timeout=150)
    node = cluster.get("node", own_node)
    assert node["metadata"]["labels"]["accelerator"] == "nvidia"
    assert OWN_POOL in [pool["name"] for pool in cluster.pools()]


def test_a_template_runs_the_users_own_image_on_the_bought_node(
    cluster: Cluster, workspace: Callable[..., str]
) -> None:
    workspace(MANIFEST % {"name": "templated", "resource": "count: 1", "inference": TEMPLATE})
    cluster.wait_ready("templated")
    (pod,) = cluster.get("pods", "-l", "kaito.sh/workspace=templated")["items"]
    assert pod["spec"]["containers"][0]["image"] == "curlimages/curl"
    assert pod["metadata"]["labels"]["team"] == "a"
    assert [pod["spec"]["nodeName"]] == workers(cluster, "templated")
    assert len(claims(cluster, "templated")) == 1
