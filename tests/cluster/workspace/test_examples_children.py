"""Every example and quick start becomes what the specification says: children.yaml."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.admission.test_examples import (
    EXAMPLES,
    QUICK_START_ADAPTERS,
    QUICK_START_INFERENCE,
    QUICK_START_TUNING,
)
from tests.cluster.workspace.conftest import NAMESPACE, Chart, Controllers, until
from tests.cluster.workspace.stand_ins.following import Later, Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet, at_step
from tests.cluster.workspace.stand_ins.provisioner import Provisioner, add_node
from tests.eventually import eventually

from kaito_hooks.runtime import AlreadyExists, Client
from kaito_hooks.workspace.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    JOB,
    MACHINE,
    NETWORK_POLICY,
    NODE,
    NODE_CLAIM,
    POD,
    SERVICE,
    STATEFUL_SET,
    WORKSPACE,
)
from kaito_local.cluster.controlplane import ControlPlane

DIGEST = "sha256:" + "a" * 64
TABLE: Mapping[str, Any] = yaml.safe_load((Path(__file__).parent / "children.yaml").read_text())
MANIFESTS = {
    **{str(path.relative_to(EXAMPLES).with_suffix("")): path.read_text() for path in EXAMPLES.rglob("*.yaml")},
    "quick start/inference": QUICK_START_INFERENCE,
    "quick start/adapters": QUICK_START_ADAPTERS,
    "quick start/tuning": QUICK_START_TUNING,
}
MY_NODE = "my-gpu-node"


@dataclass(slots=True)
class Applied:
    """An example in a namespace of its own; children by ``Kind/name`` as it trains or serves, and after a training.

    ``nodes``: for whose namespaces the Nodes were bought on which its Pods run; "" for nobody's.
    """

    workspace: Obj
    nodes: set[str] = field(default_factory=set)
    children: dict[str, Obj] = field(default_factory=dict)
    after: dict[str, Obj] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return str(self.workspace["metadata"]["namespace"])

    @property
    def tunes(self) -> bool:
        return "tuning" in self.workspace


@pytest.fixture(scope="module")
def applied(
    plane: ControlPlane,
    admin: Client,
    chart: Chart,
    installed: dict[str, Obj],
    node_without_gpu: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Applied]]:
    """All examples, as far as they get without a model; tuning ones with what they become afterwards."""
    template = installed["ConfigMap/qlora-params-template"]
    with contextlib.suppress(AlreadyExists):
        admin.create(CONFIG_MAP, {**template, "metadata": {**template["metadata"], "namespace": "kaito"}})
    labels = {"apps": "phi-3-own-nodes"}
    add_node(admin, MY_NODE, labels, instance_type="Standard_NV36ads_A10_v5", gpus=1)
    controllers = Controllers(plane, chart, tmp_path_factory.mktemp("examples"))
    try:
        controllers.start()
        with Later() as later, Provisioner(admin, later), Kubelet(admin, later) as kubelet:
            found = {name: _apply(admin, kubelet, f"ex-{n}", MANIFESTS[name]) for n, name in enumerate(MANIFESTS)}
            for example in found.values():
                until(admin, example.workspace, "JobStarted" if example.tunes else "WorkspaceReady")
                _wait_for_the_end_of_the_check(admin, example.namespace)
                example.children = _children(admin, example.namespace)
                example.nodes = _nodes(admin, example.namespace)
            tuned = [example for example in found.values() if example.tunes]
            said = json.dumps({"digest": DIGEST})
            pushed = {"terminated": {"exitCode": 0, "reason": "Completed", "message": said}}
            for example in tuned:
                kubelet.report(example.namespace, at_step("push", pushed))
            for example in tuned:
                until(admin, example.workspace, "WorkspaceReady")
                if not example.workspace["tuning"].get("serveResult", True):
                    eventually(lambda example=example: "Machine" not in _children(admin, example.namespace))
                example.after = _children(admin, example.namespace)
            yield found
            for example in found.values():
                metadata = example.workspace["metadata"]
                admin.delete(WORKSPACE, metadata["name"], namespace=metadata["namespace"])
            eventually(
                lambda: not [w for w in admin.list(WORKSPACE).items if w["metadata"]["namespace"].startswith("ex-")]
            )
    finally:
        controllers.close()
        admin.delete(NODE, MY_NODE)


def _apply(admin: Client, kubelet: Kubelet, namespace: str, manifest: str) -> Applied:
    admin.create(NAMESPACE, {"metadata": {"name": namespace}})
    kubelet.report(namespace, at_step("tune", {"running": {}}))
    *others, workspace = yaml.safe_load_all(manifest)
    for other in others:
        admin.create(CONFIG_MAP, other, namespace=namespace)
    return Applied(admin.create(WORKSPACE, workspace, namespace=namespace))


def _wait_for_the_end_of_the_check(admin: Client, namespace: str) -> None:
    """Until Job and Pods are gone that looked at a tuning before its node was bought."""

    def left() -> list[str]:
        found = [*admin.list(JOB, namespace=namespace).items, *admin.list(POD, namespace=namespace).items]
        return [name for obj in found if "-check-" in (name := obj["metadata"]["name"])]

    eventually(lambda: not left(), what=lambda: f"still there: {left()}")


def _children(admin: Client, namespace: str) -> dict[str, Obj]:
    """What there is of a Workspace; its one claim under its kind alone."""
    found = {}
    for resource in (DEPLOYMENT, STATEFUL_SET, SERVICE, NETWORK_POLICY, JOB, CONFIG_MAP):
        for obj in admin.list(resource, namespace=namespace).items:
            if obj["metadata"]["name"] != "kube-root-ca.crt":
                found[f"{resource.kind}/{obj['metadata']['name']}"] = obj
    for resource in (MACHINE, NODE_CLAIM):
        claims = admin.list(resource, label_selector=f"kaito.sh/workspacenamespace={namespace}").items
        found |= dict(zip([resource.kind], claims, strict=False))
    return found


def _nodes(admin: Client, namespace: str) -> set[str]:
    names = {pod["spec"]["nodeName"] for pod in admin.list(POD, namespace=namespace).items}
    marks = [admin.get(NODE, name)["metadata"]["labels"] for name in names]
    return {labels.get("kaito.sh/workspacenamespace", "") for labels in marks}


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_example_runs_on_its_own_node_whoever_has_the_same_labels(applied: dict[str, Applied], name: str) -> None:
    example = applied[name]
    assert example.nodes == {"" if name == "inference/own-nodes" else example.namespace}


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_example_has_the_children_of_the_specification(applied: dict[str, Applied], name: str) -> None:
    example = applied[name]
    assert differences(_expected(TABLE["examples"][name], example), example.children) == []


@pytest.mark.parametrize("name", TABLE["served"])
def test_a_tuned_example_has_the_children_of_its_end(applied: dict[str, Applied], name: str) -> None:
    example = applied[name]
    assert differences(_expected(TABLE["served"][name], example), example.after) == []


def _expected(table: Mapping[str, Any], example: Applied) -> dict[str, Any]:
    text = json.dumps(table).replace("$namespace", example.namespace).replace("$digest", DIGEST)
    found: dict[str, Any] = json.loads(text.replace("$name", example.workspace["metadata"]["name"]))
    return found


def differences(expected: Mapping[str, Any], live: Mapping[str, Obj]) -> list[str]:
    """Children too many or too few, and what is not so in those that are there."""
    found = [f"{name}: not expected" for name in live.keys() - expected.keys()]
    for name, child in expected.items():
        found += [f"{name}: missing"] if name not in live else _differences(name, child, live[name])
    return found


def _differences(path: str, expected: Any, live: Any) -> list[str]:
    if path.endswith(".requirements"):
        return _differences(path + " ", expected, {r["key"]: r["values"] for r in live if r["operator"] == "In"})
    if path.endswith(".args") and isinstance(expected, dict):
        # Options and the values that follow them.
        return _differences(path + " ", expected, dict(itertools.pairwise(live)))
    if isinstance(expected, dict) and isinstance(live, dict):
        return [d for key in expected for d in _differences(f"{path}.{key}", expected[key], live.get(key))]
    if isinstance(expected, list) and isinstance(live, list) and len(expected) == len(live):
        pairs = enumerate(zip(expected, live, strict=True))
        return [d for n, (one, other) in pairs for d in _differences(f"{path}[{n}]", one, other)]
    return [] if expected == live else [f"{path}: {live!r} instead of {expected!r}"]
