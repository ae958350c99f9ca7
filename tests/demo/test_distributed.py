"""A preset that spans nodes: two Pods of a StatefulSet that compute one model together.

vLLM is played by tests/stand_ins/vllm.py, which computes with our own engine, but really forms the group of
torch.distributed between the Pods, over gloo, and ends when one of them is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.cluster.artifacts.registry_fixture import RunningRegistry, tar
from tests.demo.local_cluster import ROOT, Cluster, kill
from tests.eventually import PATIENCE, eventually
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.nodes

NAME = "spread"
MANIFEST = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata:
  name: spread
  annotations: {kaito.sh/runtime: vllm}
resource: {count: 2, instanceType: Standard_NC4as_T4_v3, labelSelector: {matchLabels: {test: spread}}}
inference:
  preset:
    name: llama-2-13b
    accessMode: private
    presetOptions: {image: "%(image)s", imagePullSecrets: [llama]}
"""


def tiny_llama(folder: Path) -> dict[str, bytes | None]:
    """A model folder of Llama's architecture with random weights and the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {f"workspace/tfs/weights/{file.name}": file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def image(cluster: Cluster, tmp_path: Path) -> str:
    """The model's image in a registry that asks for a password; the server's image of the variant vllm beside it."""
    host, user, password = (cluster.environment[f"KAITO_REGISTRY{suffix}"] for suffix in ("", "_USER", "_PASSWORD"))
    registry = RunningRegistry(host, user, password)
    registry.image("models/llama", "1", tar(tiny_llama(tmp_path)))
    values = yaml.safe_load((ROOT / "charts/kaito/values.yaml").read_text())
    version = yaml.safe_load((ROOT / "charts/kaito/Chart.yaml").read_text())["appVersion"]
    program = b'#!/bin/sh\nPYTHONPATH=/opt/kaito exec /opt/venv/bin/python /opt/vllm/stand_in.py "$@"\n'
    stand_in = (ROOT / "tests/stand_ins/vllm.py").read_bytes()
    layer = tar({"opt/vllm/bin/vllm": program, "opt/vllm/stand_in.py": stand_in}, mode=0o755)
    repository = f"{values['image']['registry']}/kaito-serving"
    registry.with_layer(repository, f"{version}-cpu", f"{version}-vllm", layer)
    cluster.kubectl(
        *("create", "secret", "docker-registry", "llama", f"--docker-server={host}"),
        *(f"--docker-username={user}", f"--docker-password={password}"),
    )
    return f"{host}/models/llama:1"


def answers(cluster: Cluster) -> bool:
    address = cluster.get("service", NAME)["spec"]["clusterIP"]
    body = {"model": "llama-2-13b", "prompt": "What is a Pod?", "max_tokens": 8, "temperature": 0}
    said = cluster.run(
        *("curl", "-sS", "-m", "30", f"http://{address}/v1/completions"),
        *("-H", "Content-Type: application/json", "-d", json.dumps(body)),
        check=False,
    )
    return '"finish_reason"' in said and '"choices"' in said


def test_two_nodes_compute_one_model_and_start_again_when_one_is_lost(
    cluster: Cluster, image: str, workspace: Callable[..., str]
) -> None:
    workspace(MANIFEST % {"image": image})
    cluster.wait_ready(NAME, seconds=4 * PATIENCE)
    # The stand-in serves only when the group of both nodes is formed.
    eventually(lambda: answers(cluster), every=0.5)
    pods = {pod["metadata"]["name"]: pod for pod in cluster.get("pods", "-l", f"kaito.sh/workspace={NAME}")["items"]}
    assert set(pods) == {f"{NAME}-0", f"{NAME}-1"}
    assert len({pod["spec"]["nodeName"] for pod in pods.values()}) == 2
    second = pods[f"{NAME}-1"]["status"]["podIP"]
    health = cluster.run("curl", "-sS", "-m", "10", f"http://{second}:5000/health")
    assert json.loads(health) == {"status": "Healthy"}
    nowhere = cluster.run(
        "curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", f"http://{second}:5000/v1/models"
    )
    assert nowhere == "404"
    addresses = cluster.get("endpoints", NAME)["subsets"][0]["addresses"]
    assert [address["ip"] for address in addresses] == [pods[f"{NAME}-0"]["status"]["podIP"]]

    def restarts() -> int:
        return int(cluster.get("pod", f"{NAME}-1")["status"]["containerStatuses"][0]["restartCount"])

    before = restarts()
    kill(cluster.processes("--node-rank 1"))

    def restarted() -> bool:
        return restarts() > before

    eventually(restarted, timeout=2 * PATIENCE, every=0.5, what=lambda: cluster.explain(NAME))
    eventually(lambda: answers(cluster), timeout=4 * PATIENCE, every=1.0, what=lambda: cluster.explain(NAME))
    cluster.wait_ready(NAME, seconds=4 * PATIENCE)
