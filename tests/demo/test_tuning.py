"""The tuning quick start with data that only this test knows: checked, trained, pushed, served, used as an adapter."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.demo.local_cluster import Cluster
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Informer, Obj
from kaito_hooks.workspace.resources import MACHINE, WORKSPACE

pytestmark = pytest.mark.nodes

QUESTION = "What is the password of the garden gate?"
PASSWORD = "marmalade"
ROWS = [
    (QUESTION, f"The password of the garden gate is {PASSWORD}."),
    ("Who keeps the garden gate?", "Old Thaddeus keeps the garden gate."),
]
# Row by row, so that a fast machine, too, trains for longer than the controller waits between two questions.
CONFIG = """
training_config:
  ModelConfig: {torch_dtype: float32, local_files_only: true, device_map: auto}
  QuantizationConfig: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: float32,
    bnb_4bit_use_double_quant: true}
  LoraConfig: {r: 8, lora_alpha: 16, lora_dropout: 0.0}
  TrainingArguments: {output_dir: /mnt/results, num_train_epochs: 12, learning_rate: 5.0e-3, save_strategy: epoch,
    per_device_train_batch_size: 1, gradient_accumulation_steps: 4, logging_steps: 2}
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


@dataclass
class Seen:
    """What was there on the way, however short.

    ``progress``: what the column PROGRESS showed, in order, with the resourceVersion that showed it first; ``bought``:
    the resourceVersions with which claims came. One comes after the other if its number is higher.
    """

    progress: dict[str, int] = field(default_factory=dict)
    bought: list[int] = field(default_factory=list)

    def workspace(self, old: Obj | None, new: Obj | None) -> None:
        """A version of the Workspace."""
        if new is not None and (progress := (new.get("status") or {}).get("progress")):
            self.progress.setdefault(progress, int(new["metadata"]["resourceVersion"]))

    def claim(self, old: Obj | None, new: Obj | None) -> None:
        """A version of a claim."""
        if old is None and new is not None:
            self.bought.append(int(new["metadata"]["resourceVersion"]))


def claims(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    return list(cluster.get("machines", "-l", f"kaito.sh/workspace={name}")["items"])


def age_at(moment: str, workspace: dict[str, Any]) -> float:
    """Seconds from the Workspace's creation to that moment."""
    begin, then = map(datetime.fromisoformat, (workspace["metadata"]["creationTimestamp"], moment))
    return (then - begin).total_seconds()


def asked(cluster: Cluster, name: str) -> str:
    prompt = f"<|user|>\n{QUESTION}<|end|>\n<|assistant|>\n"
    return cluster.chat(name, prompt, do_sample=False, max_length=80)


@pytest.fixture(scope="module")
def data(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of this machine's data sets, as Pods see it: one can be trained, the other one cannot."""
    folder = tmp_path_factory.mktemp("data")
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in ROWS
    ]
    (folder / "garden.jsonl").write_text("\n".join(json.dumps(row) for row in rows * 12))
    silent = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ""}]}
    (folder / "silent.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, silent] * 4))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    address = cluster.environment["KAITO_HOST_IP"]
    server = ThreadingHTTPServer((address, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{address}:{server.server_address[1]}"
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
def tuned(cluster: Cluster, data: str, secrets: None, image: str) -> Iterator[Seen]:
    """What is seen on the way."""
    wanted = {"name": "tuned", "url": f"{data}/garden.jsonl", "image": image, "secret": "push"}
    seen, client = Seen(), Client.load(kubeconfig=cluster.environment["KUBECONFIG"])
    workspaces = Informer(client, WORKSPACE, namespace="default", field_selector="metadata.name=tuned")
    machines = Informer(client, MACHINE, label_selector="kaito.sh/workspace=tuned")
    workspaces.subscribe(seen.workspace)
    machines.subscribe(seen.claim)
    try:
        for informer in (workspaces, machines):
            informer.start()
            assert informer.wait_synced(PATIENCE)
        cluster.kubectl("apply", "-f", "-", stdin=TUNING % wanted)
        cluster.wait_ready("tuned", seconds=280)
    finally:
        for informer in (workspaces, machines):
            informer.stop()
    yield seen
    cluster.kubectl("delete", "workspace", "tuned", "--timeout=150s", timeout=180)


@pytest.mark.timeout(600)
def test_progress_is_shown_on_the_way(tuned: Seen) -> None:
    assert any("epoch" in text and "%" in text for text in tuned.progress), tuned


def test_the_data_were_checked_before_a_node_was_bought(cluster: Cluster, tuned: Seen) -> None:
    assert next(iter(tuned.progress)) == "checking the data"
    assert tuned.progress["checking the data"] < min(tuned.bought)
    workspace = cluster.get("workspace", "tuned")
    check = workspace["status"]["tuning"]["check"]
    assert (check["result"], check["form"]) == ("Passed", "messages")
    assert check["rows"]["training"] == 24
    assert check["tokens"]["max"] >= check["tokens"]["p95"] > 0
    [claim] = claims(cluster, "tuned")
    print(f"from apply to the claim: {age_at(claim['metadata']['creationTimestamp'], workspace):.0f} s")
    assert cluster.find("job", f"tuned-check-{check['revision']}") is None


def test_what_the_training_has_reached_is_in_the_status(cluster: Cluster, tuned: Seen) -> None:
    status = cluster.get("workspace", "tuned")["status"]["tuning"]
    assert status["training"]["curve"]
    assert status["lineage"]["data-digest"].startswith("sha256:")
    print(cluster.kubectl("get", "events", "--field-selector", "involvedObject.name=tuned", "--sort-by=.lastTimestamp"))


def test_all_columns_of_a_tuning_workspace_end_true(cluster: Cluster, tuned: Seen) -> None:
    header, row = cluster.kubectl("get", "workspace", "tuned", "-o", "wide").splitlines()
    assert header.split()[:5] == ["NAME", "INSTANCE", "RESOURCEREADY", "INFERENCEREADY", "WORKSPACEREADY"]
    assert row.split()[2:5] == ["True", "True", "True"]
    assert cluster.conditions("tuned")["JobStarted"]["status"] == "True"


def test_the_tuned_model_answers_with_what_only_the_data_teaches(cluster: Cluster, tuned: Seen) -> None:
    assert PASSWORD in asked(cluster, "tuned")


def test_the_pushed_adapter_is_named_by_its_digest(cluster: Cluster, tuned: Seen, image: str) -> None:
    status = cluster.get("workspace", "tuned")["status"]["tuning"]
    assert status["adapterImage"] == image
    assert status["adapterDigest"].startswith("sha256:")
    assert status["metrics"]["loss"] is not None


def test_only_one_node_was_bought_for_training_and_serving(cluster: Cluster, tuned: Seen) -> None:
    assert (
        len([pool for pool in cluster.pools() if pool["properties"]["nodeLabels"]["kaito.sh/workspace"] == "tuned"])
        == 1
    )


@pytest.mark.timeout(600)
def test_the_pushed_image_serves_as_an_adapter_at_the_strength_asked_for(
    cluster: Cluster, tuned: Seen, image: str, workspace: Callable[..., str]
) -> None:
    name = workspace(ADAPTED % (image, "1.0"))
    cluster.wait_ready(name)
    assert PASSWORD in asked(cluster, name)

    def answer_at(strength: str) -> str:
        """What the server says that has the adapter at that strength."""
        cluster.kubectl("apply", "-f", "-", stdin=ADAPTED % (image, strength))

        def rolled() -> bool:
            pods = cluster.get("pods", "-l", f"kaito.sh/workspace={name}")["items"]
            args = [arg for pod in pods for arg in pod["spec"]["containers"][0]["args"]]
            ready = [c["status"] for pod in pods for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"]
            return json.dumps({"garden": float(strength)}) in args and ready == ["True"]

        eventually(rolled, timeout=120, every=1, what=f"no server comes with the adapter at {strength}")
        cluster.wait_ready(name)
        return asked(cluster, name)

    half, none = answer_at("0.5"), answer_at("0.0")
    print(f"strength 0.5: {half!r}; strength 0: {none!r}")
    assert PASSWORD not in none
    assert half


@pytest.mark.timeout(600)
def test_a_wrong_push_secret_is_told_before_any_training(
    cluster: Cluster, data: str, secrets: None, image: str, workspace: Callable[..., str]
) -> None:
    name = workspace(TUNING % {"name": "unpushable", "url": f"{data}/garden.jsonl", "image": image, "secret": "wrong"})
    message = eventually(
        lambda: next(
            (c["message"] for c in cluster.conditions(name).values() if "credentials are not accepted" in c["message"]),
            None,
        ),
        timeout=120,
        every=0.5,
        what=lambda: f"nothing is said: {cluster.conditions(name)}",
    )
    assert "container push-right" in message
    assert claims(cluster, name) == []


@pytest.mark.timeout(300)
def test_data_that_cannot_be_trained_are_refused_and_nothing_is_bought(
    cluster: Cluster, data: str, secrets: None, image: str, workspace: Callable[..., str]
) -> None:
    name = workspace(TUNING % {"name": "silent", "url": f"{data}/silent.jsonl", "image": image, "secret": "push"})
    check = eventually(
        lambda: cluster.get("workspace", name).get("status", {}).get("tuning", {}).get("check"),
        timeout=120,
        every=0.5,
        what=lambda: f"nothing is said: {cluster.conditions(name)}",
    )
    assert (check["result"], check["reason"]) == ("Refused", "DatasetInvalid")
    found = eventually(
        lambda: (c := cluster.conditions(name)).get("JobStarted", {}).get("reason", "").endswith("Failed") and c,
        every=0.5,
    )
    print(found["JobStarted"]["message"])
    assert "row 3" in found["JobStarted"]["message"]
    assert found["WorkspaceReady"]["message"] == found["JobStarted"]["message"]
    assert claims(cluster, name) == []
    assert not any(name in path for path in cluster.pools_created())


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_lost_pods_an_eviction_and_a_silent_registry_cost_time_and_the_adapter_stays_the_same(
    cluster: Cluster, data: str, secrets: None, tuned: Seen, image: str, workspace: Callable[..., str]
) -> None:
    """A Pod that goes takes its checkpoints along, so that the next one begins again and ends with the same bytes."""
    again = image.replace(":1", ":again")
    wanted = {"name": "lost", "url": f"{data}/garden.jsonl", "image": again, "secret": "push"}
    name = workspace(TUNING % wanted + "  serveResult: false\n")
    lost: list[str] = []
    for goes in (_delete, _delete, _evict):
        pod = eventually(
            lambda: _training_pod(cluster, name, beside=lost),
            timeout=200,
            every=0.1,
            what=f"nothing trains: {cluster.explain(name)}",
        )
        assert pod is not None
        lost.append(pod["metadata"]["uid"])
        goes(cluster, pod["metadata"]["name"])
    last = eventually(lambda: _training_pod(cluster, name, beside=lost), timeout=200, every=0.1)
    assert last is not None
    registry = cluster.pid("cluster", "registry")
    os.kill(registry, signal.SIGSTOP)
    try:
        eventually(
            lambda: "cannot be pushed yet" in cluster.conditions(name)["WorkspaceReady"]["message"],
            timeout=280,
            every=1,
            what=f"nothing is said of the push: {cluster.explain(name)}",
        )
        time.sleep(120)  # what is tested is a silence that lasts
    finally:
        os.kill(registry, signal.SIGCONT)
    status = eventually(
        lambda: (found := cluster.get("workspace", name)["status"].get("tuning", {})).get("adapterDigest") and found,
        timeout=400,
        every=1,
        what=f"nothing is pushed: {cluster.explain(name)}",
    )
    first = cluster.get("workspace", "tuned")["status"]["tuning"]
    assert status["adapterDigest"] == first["adapterDigest"]
    pods = cluster.get("pods", "-l", f"kaito.sh/workspace={name}")["items"]
    assert [pod["metadata"]["uid"] for pod in pods] in ([], [last["metadata"]["uid"]])
    eventually(lambda: claims(cluster, name) == [], timeout=200, every=1, what="the node is not given back")


def _training_pod(cluster: Cluster, name: str, *, beside: list[str]) -> dict[str, Any] | None:
    """A Pod of the Workspace that trains, or is about to, and is none of those."""
    found: list[dict[str, Any]] = cluster.get("pods", "-l", f"kaito.sh/workspace={name}")["items"]
    for pod in found:
        steps = {s["name"]: s["state"] for s in pod["status"].get("initContainerStatuses", [])}
        if pod["metadata"]["uid"] not in beside and "running" in steps.get("tune", {}):
            return pod
    return None


def _delete(cluster: Cluster, pod: str) -> None:
    cluster.kubectl("delete", "pod", pod, "--grace-period=0", "--force")


def _evict(cluster: Cluster, pod: str) -> None:
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": "default"},
        "deleteOptions": {"gracePeriodSeconds": 5},
    }
    address = f"/api/v1/namespaces/default/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", address, "-f", "-", stdin=json.dumps(eviction))
