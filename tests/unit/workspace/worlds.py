"""Snapshots as plain data, and a small world in which plans come true."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from kaito_hooks.api.catalog import Catalog
from kaito_hooks.api.claim import ENCODINGS, Claim
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.decision.actions import (
    Adopt,
    ApplyChild,
    BuyClaim,
    CopyConfigMap,
    CreateChild,
    Delete,
    LabelNode,
    Plan,
    Release,
)
from kaito_hooks.workspace.decision.snapshot import Memory, Snapshot, TuningConfig
from kaito_hooks.workspace.metrics import WorkspaceMetrics
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.tuning.config import name_of

Obj = dict[str, Any]
START = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
UID = "5f0d1f1e-0000-4000-8000-000000000001"

CATALOG_OBJECT: Obj = {
    "apiVersion": "kaito.sh/v1alpha1",
    "kind": "Catalog",
    "metadata": {"name": "kaito"},
    "spec": {
        "cloud": "azure",
        "uncheckedInstanceTypePrefixes": ["Standard_N", "Standard_D"],
        "presets": {
            "phi-3-mini-4k-instruct": {
                "family": "phi3",
                "architecture": "Phi3ForCausalLM",
                "gpuCount": 1,
                "totalGPUMemoryGiB": 9,
                "diskGiB": 50,
                "dtype": "auto",
                "readinessTimeout": "30m",
                "weights": {"image": {"tag": "0.0.2", "path": "/workspace/tfs/weights"}},
                "tuning": {"lora": {"gpuMemoryGiB": 12}, "qlora": {"gpuMemoryGiB": 8}},
            },
            "falcon-7b-instruct": {"gpuCount": 1, "totalGPUMemoryGiB": 14, "weights": {"image": {"tag": "1"}}},
            "falcon-40b": {"gpuCount": 2, "totalGPUMemoryGiB": 90, "weights": {"image": {"tag": "1"}}},
            "llama-2-7b": {
                "gpuCount": 1,
                "totalGPUMemoryGiB": 14,
                "perGPUMemoryGiB": 14,
                "accessMode": "private",
                "weights": {"image": {}},
            },
            "llama-2-13b": {
                "gpuCount": 2,
                "totalGPUMemoryGiB": 30,
                "perGPUMemoryGiB": 15,
                "distributed": True,
                "accessMode": "private",
                "weights": {"image": {}},
            },
            "from-hub": {
                "totalGPUMemoryGiB": 1,
                "architecture": "LlamaForCausalLM",
                "weights": {"huggingFace": {"repo": "own/model", "revision": "a" * 40, "tokenSecret": "hub"}},
            },
            "from-volume": {
                "totalGPUMemoryGiB": 1,
                "weights": {"volume": {"persistentVolumeClaim": {"claimName": "models"}}},
            },
        },
        "instanceTypes": {
            "Standard_NC6s_v3": {"gpuCount": 1, "totalGPUMemoryGiB": 16, "gpuModel": "V100"},
            "Standard_NC12s_v3": {"gpuCount": 2, "totalGPUMemoryGiB": 32, "gpuModel": "V100"},
            "Standard_NC24ads_A100_v4": {"gpuCount": 1, "totalGPUMemoryGiB": 80, "gpuModel": "A100"},
            "Standard_NV6": {"gpuCount": 1, "totalGPUMemoryGiB": 8, "gpuModel": "M60"},
            "Standard_NV32as_v4": {"gpuCount": 1, "totalGPUMemoryGiB": 16, "gpuVendor": "amd"},
        },
    },
}
CATALOG = Catalog.read(CATALOG_OBJECT)


def workspace_object(**changes: Any) -> Obj:
    """The quick start's Workspace; ``metadata`` is merged, other parts replace."""
    metadata: Obj = {
        "name": "phi",
        "namespace": "models",
        "uid": UID,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-02T12:00:00Z",
    }
    metadata |= changes.pop("metadata", {})
    found: Obj = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": metadata,
        "resource": {
            "count": 1,
            "instanceType": "Standard_NC6s_v3",
            "labelSelector": {"matchLabels": {"apps": "phi-3"}},
        },
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct", "accessMode": "public"}},
    }
    found |= changes
    return {key: value for key, value in found.items() if value is not None}


def spread_object(*, count: int = 2, runtime: str | None = "vllm", **changes: Any) -> Obj:
    """A Workspace whose preset spans nodes, by default two that vLLM can use."""
    preset = {"name": "llama-2-13b", "accessMode": "private", "presetOptions": {"image": "r.io/x/llama:1"}}
    nodes = {"count": count, "instanceType": "Standard_NC24ads_A100_v4"}
    metadata = {"annotations": {"kaito.sh/runtime": runtime}} if runtime else {}
    return workspace_object(
        metadata=metadata, resource=workspace_object()["resource"] | nodes, inference={"preset": preset}, **changes
    )


DIGEST = "sha256:" + "d" * 64
TEMPLATE = {
    "training_config.yaml": """
training_config:
  QuantizationConfig: {load_in_4bit: true, bnb_4bit_quant_type: nf4}
  LoraConfig: {r: 8}
  TrainingArguments: {output_dir: /mnt/results}
"""
}


def tuning_object(*, tuning: Obj | None = None, **changes: Any) -> Obj:
    """The tuning quick start's Workspace; ``tuning`` is merged, null removes."""
    spec: Obj = {
        "preset": {"name": "phi-3-mini-4k-instruct", "accessMode": "public"},
        "method": "qlora",
        "input": {"urls": ["https://example.com/train.parquet"]},
        "output": {"image": "r.io/team/adapter:0.1", "imagePushSecret": "push"},
    }
    spec |= tuning or {}
    return workspace_object(inference=None, tuning={k: v for k, v in spec.items() if v is not None}, **changes)


def unchecked(obj: Obj) -> Obj:
    """The tuning Workspace without a check before its node is bought."""
    metadata = obj["metadata"]
    annotations = {**(metadata.get("annotations") or {}), "kaito.sh/tuning-check": "off"}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def node_object(name: str, *, gpus: int = 1, ready: bool = True, labels: Obj | None = None, **metadata: Any) -> Obj:
    """A Node that fits the quick start's Workspace."""
    marks = {"apps": "phi-3", "node.kubernetes.io/instance-type": "Standard_NC6s_v3"} | (labels or {})
    return {
        "metadata": {"name": name, "labels": {k: v for k, v in marks.items() if v is not None}, **metadata},
        "spec": {},
        "status": {
            "capacity": {"nvidia.com/gpu": str(gpus)} if gpus else {},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastTransitionTime": "2026-01-02T12:00:00Z",
                }
            ],
        },
    }


def claim_object(
    name: str, *, conditions: list[Obj] | None = None, node: str = "", kind: str = "Machine", **metadata: Any
) -> Obj:
    """A claim of the quick start's Workspace."""
    return {
        "apiVersion": ENCODINGS[kind].api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-02T12:00:00Z",
            "labels": {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "models", "apps": "phi-3"},
            **metadata,
        },
        "status": {"conditions": conditions or [], **({"nodeName": node} if node else {})},
    }


def snapshot(obj: Obj | None = None, *, claims: list[Obj] | None = None, **changes: Any) -> Snapshot:
    """A Snapshot of that Workspace, with the Catalog above."""
    return Snapshot(
        **{
            "now": START,
            "settings": Settings(),
            "workspace": Workspace.read(obj or workspace_object()),
            "catalog": CATALOG,
            "claims": tuple(Claim.read(claim) for claim in claims or ()),
            **changes,
        }
    )


def uncounted() -> WorkspaceMetrics:
    """Metrics of nothing so far."""
    return WorkspaceMetrics(CollectorRegistry())


def conditions(decided: Plan) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message by type of a plan's new status."""
    assert decided.status is not None
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in decided.status["conditions"]}


STEPS = ("push-right", "weights", "data", "tune")
CHECK_STEPS = ("push-right", "tokenizer", "data", "check")
REPORT: Obj = {
    "form": "messages",
    "files": ["train.parquet"],
    "rows": {"training": 1200, "evaluation": 0, "skipped": 3},
    "tokens": {"p50": 100, "p95": 512, "max": 1024, "cutShare": 0.0},
    "problems": [],
    "warnings": [],
    "reason": "",
    "maxLength": 1024,
    "tokensPerEpoch": 150000,
    "estimatedSteps": 1200,
}
"""What a check says of data that can be trained."""


def job_pod(job: Obj, step: str, state: Obj, **status: Any) -> Obj:
    """A Pod of that tuning Job with that step in that state, those before it done, those after it waiting.

    Where a check has passed, the Job does not ask for the right to push again: its first step stands for that."""
    spec = job["spec"]["template"]["spec"]
    names = tuple(c["name"] for c in (*spec["initContainers"], *spec["containers"]))
    return _stepping_pod(job, names, step if step in names else names[0], state, **status)


def check_pod(job: Obj, step: str, state: Obj, **status: Any) -> Obj:
    """A Pod of that check Job with that step in that state, as ``job_pod``."""
    return _stepping_pod(job, CHECK_STEPS, step, state, **status)


def _stepping_pod(job: Obj, names: tuple[str, ...], step: str, state: Obj, **status: Any) -> Obj:
    done, waiting = {"terminated": {"exitCode": 0}}, {"waiting": {"reason": "PodInitializing"}}
    states = {
        name: state if name == step else done if names.index(name) < names.index(step) else waiting for name in names
    }
    statuses = [{"name": name, "image": "r.io/x:1", "state": states[name]} for name in names]
    return {
        "metadata": {
            "name": f"{job['metadata']['name']}-abcde",
            "uid": f"uid-pod-{job['metadata']['uid']}",
            "ownerReferences": [
                {
                    "kind": "Job",
                    "name": job["metadata"]["name"],
                    "uid": job["metadata"]["uid"],
                    "controller": True,
                }
            ],
        },
        "status": {
            "phase": "Succeeded" if (states[names[-1]].get("terminated") or {}).get("exitCode") == 0 else "Pending",
            "podIP": "10.0.0.7",
            "initContainerStatuses": statuses[:-1],
            "containerStatuses": statuses[-1:],
            **status,
        },
    }


def is_check(child: Obj) -> bool:
    """Whether it is a Job that looks at a tuning before a node is bought, or one in its place that does nothing."""
    template = (child.get("spec") or {}).get("template")
    checks = template is None or any(c["name"] == "check" for c in template["spec"]["containers"])
    return bool(child["kind"] == "Job" and "-check-" in child["metadata"]["name"] and checks)


def is_of(pod: Obj, owner: Obj) -> bool:
    """Whether the Pod, or another child, belongs to that object."""
    return any(o["uid"] == owner["metadata"]["uid"] for o in pod["metadata"].get("ownerReferences") or ())


class SmallWorld:
    """What the API server, a provisioner and kubelets would make of plans; every step is one call."""

    def __init__(self, obj: Obj, *, settings: Settings | None = None, catalog: Catalog | None = CATALOG) -> None:
        self.workspace: Obj | None = copy.deepcopy(obj)
        self.settings = settings or Settings()
        self.catalog = catalog
        self.now = START
        self.nodes: dict[str, Obj] = {}
        self.claims: dict[str, Obj] = {}
        self.children: dict[str, Obj] = {}
        self.memory = Memory()
        self.config_maps: dict[str, Obj] = {}
        self.pods: list[Obj] = []
        self.job_ends: Obj = {"exitCode": 0, "message": '{"digest": "' + DIGEST + '", "metrics": {"loss": 0.5}}'}
        self.ending_step = "push"
        self.check_ends: Obj = {"exitCode": 0, "message": json.dumps(REPORT)}
        self.check_step = "check"
        self.jobs_made = 0
        self.checks_made = 0
        self.bought = 0
        self.deleted: list[Delete] = []
        self.most_claims = 0
        self._uids = 0

    def snapshot(self) -> Snapshot:
        assert self.workspace is not None
        claims = tuple(Claim.read(claim) for claim in self.claims.values() if self.is_ours(claim))
        workspace = Workspace.read(copy.deepcopy(self.workspace))
        checks = self.checks()
        return Snapshot(
            now=self.now,
            settings=self.settings,
            workspace=workspace,
            catalog=self.catalog,
            nodes=tuple(copy.deepcopy(list(self.nodes.values()))),
            claims=claims,
            claims_gone=not claims,
            children=copy.deepcopy(
                {k: v for k, v in self.children.items() if not k.startswith("ControllerRevision") and not is_check(v)}
            ),
            revisions=tuple(v for k, v in self.children.items() if k.startswith("ControllerRevision")),
            pods=tuple(copy.deepcopy([pod for pod in self.pods if not any(is_of(pod, c) for c in checks)])),
            check_jobs=tuple(copy.deepcopy(checks)),
            check_pods=tuple(copy.deepcopy([pod for pod in self.pods if any(is_of(pod, c) for c in checks)])),
            tuning_config=self._config(workspace),
            memory=self.memory,
        )

    def checks(self) -> list[Obj]:
        """The check Jobs that are there."""
        return [child for child in self.children.values() if is_check(child)]

    def is_ours(self, obj: Obj) -> bool:
        """Whether a claim or a Node carries this Workspace's two labels."""
        assert self.workspace is not None
        mine, marks = self.workspace["metadata"], obj["metadata"].get("labels") or {}
        owner = (marks.get("kaito.sh/workspace"), marks.get("kaito.sh/workspacenamespace"))
        return owner == (mine["name"], mine["namespace"])

    def _config(self, workspace: Workspace) -> TuningConfig | None:
        if workspace.tuning is None:
            return None
        name = name_of(workspace.tuning)
        return TuningConfig(name, self.config_maps.get(name), {"data": TEMPLATE})

    def reconcile(self, *, crash_after: int | None = None) -> Plan:
        """One plan, executed; ``crash_after``: only so many of its actions, and no status."""
        decided = plan(self.snapshot())
        self.memory = decided.memory
        for action in decided.actions[:crash_after]:
            self._perform(action)
        if crash_after is None and decided.status is not None and self.workspace is not None:
            self.workspace["status"] = copy.deepcopy(decided.status)
        self.most_claims = max(self.most_claims, len(self.claims))
        return decided

    def settle(self, *, rounds: int = 60) -> None:
        """Let the provisioner, the workloads and the controller act until nothing is left to do."""
        for _ in range(rounds):
            decided = self.reconcile()
            acted = self.provision() + self.run_workloads()
            if decided.empty and not acted:
                if decided.look_again is None:
                    return
                self.pass_time(decided.look_again)
            if self.workspace is None:
                return
        raise AssertionError(f"it does not converge: {conditions(decided) if decided.status else decided}")

    def delete(self, *, rounds: int) -> None:
        """Deletes the Workspace, which must be gone after so many looks."""
        assert self.workspace is not None
        self.workspace["metadata"]["deletionTimestamp"] = "2026-01-02T13:00:00Z"
        for _ in range(rounds):
            self.reconcile()
            if self.workspace is None:
                return
            self.provision()
        raise AssertionError("the Workspace does not go")

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def provision(self) -> int:
        """Every new claim becomes Ready with a Node, every deleted one goes with its Node."""
        acted = 0
        for name, claim in list(self.claims.items()):
            node = f"node-{name}"
            if claim["metadata"].get("deletionTimestamp"):
                self.nodes.pop(node, None)
                del self.claims[name]
                acted += 1
            elif not claim["status"].get("conditions"):
                self.nodes[node] = node_object(node, labels=claim["metadata"]["labels"])
                key = "node.kubernetes.io/instance-type"
                [values] = [r["values"] for r in claim["spec"]["requirements"] if r["key"] == key]
                self.nodes[node]["metadata"]["labels"][key] = values[0]
                claim["status"] = {"nodeName": node, "conditions": [{"type": "Ready", "status": "True"}]}
                acted += 1
        return acted

    def run_workloads(self) -> int:
        acted = 0
        for name, child in self.children.items():
            if name.startswith(("Deployment/", "StatefulSet/")) and "replicas" in child["spec"]:
                replicas = child["spec"]["replicas"]
                status = {
                    "observedGeneration": child["metadata"]["generation"],
                    "readyReplicas": replicas,
                    "updatedReplicas": replicas,
                }
                if child.get("status") != status:
                    child["status"] = status
                    acted += 1
            elif name.startswith("Job/") and not any(is_of(pod, child) for pod in self.pods):
                if is_check(child):
                    self.pods.append(check_pod(child, self.check_step, {"terminated": self.check_ends}))
                else:
                    self.pods.append(job_pod(child, self.ending_step, {"terminated": self.job_ends}))
                acted += 1
        self.pods = [p for p in self.pods if any(is_of(p, child) for child in self.children.values())]
        return acted

    def _uid(self) -> str:
        self._uids += 1
        return f"uid-{self._uids}"

    def _perform(self, action: Any) -> None:
        assert self.workspace is not None
        match action:
            case Adopt(annotations=annotations):
                metadata = self.workspace["metadata"]
                finalizers = metadata.setdefault("finalizers", [])
                if "workspace.finalizer.kaito.sh" not in finalizers:
                    finalizers.append("workspace.finalizer.kaito.sh")
                metadata.setdefault("annotations", {}).update(annotations)
            case Release():
                self.workspace = None
            case BuyClaim(claim=claim):
                name = claim["metadata"]["name"]
                if name in self.claims:
                    return
                self.bought += 1
                stamp = self.now.strftime("%Y-%m-%dT%H:%M:%SZ")
                metadata = {**claim["metadata"], "uid": self._uid(), "creationTimestamp": stamp}
                self.claims[name] = {**copy.deepcopy(claim), "metadata": metadata, "status": {}}
            case LabelNode(node=name):
                self.nodes[name]["metadata"]["labels"]["accelerator"] = "nvidia"
            case CopyConfigMap(config_map=found):
                self.config_maps[found["metadata"]["name"]] = copy.deepcopy(found)
            case CreateChild(child=child):
                self.checks_made += is_check(child)
                self.jobs_made += child["kind"] == "Job" and not is_check(child)
                stored = copy.deepcopy(child)
                stored["metadata"] |= {"uid": self._uid(), "generation": 1}
                self.children[f"{child['kind']}/{child['metadata']['name']}"] = stored
            case ApplyChild(child=child, uid=uid):
                name = f"{child['kind']}/{child['metadata']['name']}"
                before = self.children[name]
                assert before["metadata"]["uid"] == uid
                stored = copy.deepcopy(child)
                changed = stored.get("spec") != before.get("spec")
                stored["metadata"] |= {"uid": uid, "generation": before["metadata"]["generation"] + changed}
                self.children[name] = {**stored, "status": before.get("status")}
            case Delete(kind=kind, name=name, uid=uid):
                self.deleted.append(action)
                if kind in ENCODINGS:
                    assert self.claims[name]["metadata"]["uid"] == uid
                    assert self.is_ours(self.claims[name])
                    self.claims[name]["metadata"]["deletionTimestamp"] = "2026-01-02T13:00:00Z"
                else:
                    child = self.children[f"{kind}/{name}"]
                    assert child["metadata"]["uid"] == uid
                    assert is_of(child, self.workspace)
                    del self.children[f"{kind}/{name}"]
            case _:
                raise AssertionError(f"unknown action {action!r}")
