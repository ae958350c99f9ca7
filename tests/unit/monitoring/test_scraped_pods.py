"""Which containers of the controller's Pods a Prometheus asks, and when: those that answer, each once.

The chart's relabelings are applied by Prometheus' own code to the targets that it discovers in a Pod:
https://prometheus.io/docs/prometheus/latest/configuration/configuration/#pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.monitoring.queries import relabelled
from tests.unit.monitoring.test_dashboards import rendered
from tests.unit.workspace.worlds import (
    STEPS,
    TEMPLATE,
    node_object,
    snapshot,
    spread_object,
    tuning_object,
    unchecked,
    workspace_object,
)

from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import CreateChild
from kaito_hooks.workspace.decision.snapshot import TuningConfig
from kaito_hooks.workspace.plan import plan

Obj = dict[str, Any]
RUNNING: Obj = {"running": {}}
DONE: Obj = {"terminated": {"exitCode": 0}}
A100 = {"node.kubernetes.io/instance-type": "Standard_NC24ads_A100_v4"}


def child(obj: Obj, kind: str, *, nodes: tuple[Obj, ...] = (node_object("mine"),)) -> Obj:
    """What the controller makes of that Workspace."""
    config = TuningConfig("qlora-params-template", found={"data": TEMPLATE})
    settings = Settings(release_namespace="kaito")
    decided = plan(snapshot(obj, nodes=nodes, settings=settings, tuning_config=config))
    return next(a.child for a in decided.actions if isinstance(a, CreateChild) and a.child["kind"] == kind)


def pod(workload: Obj, *, controller: str, phase: str, labels: Obj | None = None, began: tuple[str, ...] = ()) -> Obj:
    """A Pod of a workload; ``began``: the containers that the kubelet has made."""
    template = workload["spec"]["template"]
    metadata = {"labels": {**template["metadata"]["labels"], **(labels or {})}, "controller": controller}
    return {"metadata": metadata, "spec": template["spec"], "status": {"phase": phase, "began": began}}


def server(phase: str = "Running", *, began: tuple[str, ...] = ("weights", "phi"), obj: Obj | None = None) -> Obj:
    made = child(obj or workspace_object(), "Deployment")
    return pod(made, controller="ReplicaSet", phase=phase, began=began)


def rank(index: int) -> Obj:
    nodes = tuple(node_object(name, labels=A100) for name in ("a", "b"))
    made = child(spread_object(), "StatefulSet", nodes=nodes)
    labels = {"apps.kubernetes.io/pod-index": str(index)}
    return pod(made, controller="StatefulSet", phase="Running", labels=labels, began=("weights", "phi"))


def training(step: str, state: Obj) -> Obj:
    """A Pod of a tuning Job with that step in that state and those before it done."""
    made = child(unchecked(tuning_object()), "Job")
    steps = (*STEPS, "push")
    began = steps[: steps.index(step) + ("waiting" not in state)]
    phase = {"push": "Succeeded" if state == DONE else "Running"}.get(step, "Pending")
    return pod(made, controller="Job", phase=phase, began=began)


def discovered(pod: Obj) -> Iterator[dict[str, str]]:
    """The targets that Prometheus finds in a Pod, and of them those that the operator keeps for its endpoints."""
    meta = "__meta_kubernetes_pod_"
    labels = {
        f"{meta}label_{key.replace('.', '_').replace('/', '_').replace('-', '_')}": value
        for key, value in pod["metadata"]["labels"].items()
    }
    of_pod = {f"{meta}phase": pod["status"]["phase"], f"{meta}controller_kind": pod["metadata"]["controller"]} | labels
    if pod["status"]["phase"] in ("Succeeded", "Failed"):
        return
    for part in ("containers", "initContainers"):
        for container in pod["spec"].get(part) or ():
            name = container["name"]
            for port in container.get("ports") or ():
                yield of_pod | {
                    "__address__": f"10.0.0.7:{port['containerPort']}",
                    f"{meta}container_name": name,
                    f"{meta}container_init": "true" if part == "initContainers" else "false",
                    f"{meta}container_id": f"containerd://{name}" if name in pod["status"]["began"] else "",
                    f"{meta}container_port_name": port.get("name", ""),
                }


def asked(pod: Obj) -> list[tuple[str, str]]:
    """Container and Workspace of all that is asked."""
    found = []
    for endpoint in rendered()["PodMonitor"]["spec"]["podMetricsEndpoints"]:
        at = [t for t in discovered(pod) if t["__meta_kubernetes_pod_container_port_name"] == endpoint["port"]]
        kept = [labels for labels in relabelled(endpoint["relabelings"], at) if labels is not None]
        found += [(labels["__meta_kubernetes_pod_container_name"], labels["workspace"]) for labels in kept]
    return found


@pytest.mark.parametrize(
    ("found", "container"),
    [
        (server(), "phi"),
        (rank(0), "phi"),
        (training("tune", RUNNING), "tune"),
        (training("push", RUNNING), "push"),
    ],
    ids=["a server", "the first of several nodes", "a trainer", "a push"],
)
def test_what_answers_is_asked_once(found: Obj, container: str) -> None:
    assert asked(found) == [(container, "phi")]


@pytest.mark.parametrize(
    "found",
    [
        server("Pending", began=("weights",)),
        server("Running", began=("weights",)),
        rank(1),
        training("weights", RUNNING),
        training("data", RUNNING),
        training("push", DONE),
        pod(
            child(tuning_object(), "Job"),
            controller="Job",
            phase="Running",
            began=("push-right", "tokenizer", "data", "check"),
        ),
        server(
            obj=workspace_object(
                inference={
                    "template": {
                        "spec": {
                            "containers": [
                                {
                                    "name": "mine",
                                    "image": "r.io/mine:1",
                                    "ports": [{"name": "http", "containerPort": 80}],
                                }
                            ]
                        }
                    }
                }
            ),
            began=("mine",),
        ),
    ],
    ids=[
        "weights that are fetched",
        "a server without a container",
        "another node",
        "a training's weights",
        "a training's data",
        "a push that is over",
        "a check",
        "a template of the user's own",
    ],
)
def test_what_does_not_answer_is_not_asked(found: Obj) -> None:
    assert asked(found) == []
