"""The tuning quick start with data that only this test knows: trained, pushed, served, used as an adapter."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.demo.local_cluster import Cluster
from tests.eventually import eventually

pytestmark = pytest.mark.nodes

QUESTION = "What is the password of the garden gate?"
PASSWORD = "marmalade"
ROWS = [
    (QUESTION, f"The password of the garden gate is {PASSWORD}."),
    ("Who keeps the garden gate?", "Old Thaddeus keeps the garden gate."),
]
CONFIG = """
training_config:
  ModelConfig: {torch_dtype: float32, local_files_only: true, device_map: auto}
  QuantizationConfig: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: float32,
    bnb_4bit_use_double_quant: true}
  LoraConfig: {r: 8, lora_alpha: 16, lora_dropout: 0.0}
  TrainingArguments: {output_dir: /mnt/results, num_train_epochs: 12, learning_rate: 5.0e-3, save_strategy: epoch,
    per_device_train_batch_size: 4, logging_steps: 2}
  DatasetConfig: {shuffle_dataset: true, train_test_split: 1}
"""
TUNING = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: %(name)s}}}
tuning:
  preset: {name: phi-3-mini-4k-instruct}
  method: qlora
  config: garden
  input: {urls: ["%(url)s"]}
  output: {image: "%(image)s", imagePushSecret: %(secret)s}
"""
ADAPTED = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: adapted}
resource: {instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: adapted}}}
inference:
  preset: {name: phi-3-mini-4k-instruct}
  adapters: [{source: {name: garden, image: "%s", imagePullSecrets: [push]}, strength: "%s"}]
"""


def asked(cluster: Cluster, name: str) -> str:
    prompt = f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n"
    return cluster.chat(name, prompt, do_sample=False, max_length=80)


@pytest.fixture(scope="module")
def data(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a data set on this machine, as Pods see it."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in ROWS
    ]
    Path(folder / "garden.jsonl").write_text("\n".join(json.dumps(row) for row in rows * 12))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    address = cluster.environment["KAITO_HOST_IP"]
    server = ThreadingHTTPServer((address, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{address}:{server.server_address[1]}/garden.jsonl"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def secrets(cluster: Cluster) -> Iterator[None]:
    host, user, password = (cluster.environment[f"KAITO_REGISTRY{suffix}"] for suffix in ("", "_USER", "_PASSWORD"))
    for name, secret in (("push", password), ("wrong", "wrong")):
        cluster.kubectl(
            *("create", "secret", "docker-registry", name, f"--docker-server={host}"),
            *(f"--docker-username={user}", f"--docker-password={secret}"),
        )
    cluster.kubectl("create", "configmap", "garden", f"--from-literal=training_config.yaml={CONFIG}")
    yield
    cluster.kubectl("delete", "secret", "push", "wrong")
    cluster.kubectl("delete", "configmap", "garden")


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> str:
    return f"{cluster.environment['KAITO_REGISTRY']}/adapters/garden:1"


@pytest.fixture(scope="module")
def tuned(cluster: Cluster, data: str, secrets: None, image: str) -> Iterator[list[str]]:
    """What the column PROGRESS showed on the way."""
    cluster.kubectl("apply", "-f", "-", stdin=TUNING % {"name": "tuned", "url": data, "image": image, "secret": "push"})
    shown: list[str] = []

    def ready() -> bool:
        found = cluster.get("workspace", "tuned")["status"]
        progress = found.get("progress", "")
        if progress and progress not in shown[-1:]:
            shown.append(progress)
        return cluster.conditions("tuned").get("WorkspaceReady", {}).get("status") == "True"

    eventually(ready, timeout=280, every=0.5, what=f"not ready: {cluster.explain('tuned')}")
    yield shown
    cluster.kubectl("delete", "workspace", "tuned", "--timeout=150s", timeout=180)


@pytest.mark.timeout(600)
def test_progress_is_shown_on_the_way(tuned: list[str]) -> None:
    assert any("epoch" in text and "%" in text for text in tuned), tuned


def test_all_columns_of_a_tuning_workspace_end_true(cluster: Cluster, tuned: list[str]) -> None:
    header, row = cluster.kubectl("get", "workspace", "tuned", "-o", "wide").splitlines()
    assert header.split()[:5] == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY"]
    assert row.split()[2:5] == ["True", "True", "True"]
    assert cluster.conditions("tuned")["JobStarted"]["status"] == "True"


def test_the_tuned_model_answers_with_what_only_the_data_teaches(cluster: Cluster, tuned: list[str]) -> None:
    assert PASSWORD in asked(cluster, "tuned")


def test_the_pushed_adapter_is_named_by_its_digest(cluster: Cluster, tuned: list[str], image: str) -> None:
    status = cluster.get("workspace", "tuned")["status"]["tuning"]
    assert status["adapterImage"] == image
    assert status["adapterDigest"].startswith("sha256:")
    assert status["metrics"]["loss"] is not None


def test_only_one_node_was_bought_for_training_and_serving(cluster: Cluster, tuned: list[str]) -> None:
    assert (
        len([pool for pool in cluster.pools() if pool["properties"]["nodeLabels"]["kaito.sh/workspace"] == "tuned"])
        == 1
    )


@pytest.mark.timeout(600)
def test_the_pushed_image_serves_as_an_adapter_at_the_strength_asked_for(
    cluster: Cluster, tuned: list[str], image: str, workspace: Callable[..., str]
) -> None:
    name = workspace(ADAPTED % (image, "1.0"))
    cluster.wait_ready(name)
    assert PASSWORD in asked(cluster, name)
    cluster.kubectl("apply", "-f", "-", stdin=ADAPTED % (image, "0.0"))

    def forgotten() -> bool:
        try:
            return PASSWORD not in asked(cluster, name)
        except (AssertionError, ValueError):  # the one Pod is being replaced
            return False

    eventually(forgotten, timeout=120, every=2, what="the strength did not change")


@pytest.mark.timeout(600)
def test_a_wrong_push_secret_is_told_before_any_training(
    cluster: Cluster, data: str, secrets: None, image: str, workspace: Callable[..., str]
) -> None:
    name = workspace(TUNING % {"name": "unpushable", "url": data, "image": image, "secret": "wrong"})
    message = eventually(
        lambda: next(
            (c["message"] for c in cluster.conditions(name).values() if "credentials are not accepted" in c["message"]),
            None,
        ),
        timeout=120,
        every=0.5,
        what=f"nothing is said: {cluster.conditions(name)}",
    )
    assert "container check" in message
    assert not cluster.get("workspace", name)["status"].get("progress", "").startswith("epoch")
