"""The driven world with Jobs in it: their Pods find a node, run for a while, and say how they ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from tests.unit.workspace.running import RunningWorld, accepts
from tests.unit.workspace.worlds import DIGEST, REPORT, check_pod, is_check, job_pod

from kaito_hooks.runtime import Obj, format_time, parse_time
from kaito_hooks.workspace import resources

PUSHED = {"exitCode": 0, "message": json.dumps({"digest": DIGEST, "metrics": {"loss": 0.5}})}
PASSED = {"exitCode": 0, "message": json.dumps(REPORT)}
WITHOUT_GPU = "without-gpu"


class TuningWorld(RunningWorld):
    """A Job's Pod runs for ``job_seconds`` once it has a node; ``room``: whether there is one without GPU.

    ``check_ends`` and ``job_ends``: how main containers end.
    """

    def __init__(self, *objects: Obj, job_seconds: float = 20.0, room: bool = True, **changes: Any) -> None:
        self.job_seconds, self.room = job_seconds, room
        self.check_ends, self.job_ends = PASSED, PUSHED
        super().__init__(*objects, **changes)
        if room:
            self.bring_node(WITHOUT_GPU, gpus=0, labels={"apps": None, "node.kubernetes.io/instance-type": "small"})

    def jobs(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.cluster.all(resources.JOB)]

    def _run_pods(self) -> None:
        for job in self.cluster.all(resources.JOB):
            metadata, template = job["metadata"], job["spec"]["template"]
            name = f"{metadata['name']}-abcde"
            if self.cluster.find(resources.POD, name, "models") is None:
                owner = {"kind": "Job", "name": metadata["name"], "uid": metadata["uid"], "controller": True}
                marks = template["metadata"]["labels"]
                named = {"name": name, "namespace": "models", "labels": marks, "ownerReferences": [owner]}
                spec = {"affinity": template["spec"].get("affinity")}
                self.cluster.put(resources.POD, {"metadata": named, "spec": spec, "status": {"phase": "Pending"}})
        super()._run_pods()

    def _run_pod(self, pod: Obj, nodes: Mapping[str, Obj]) -> None:
        [owner] = pod["metadata"]["ownerReferences"]
        if owner["kind"] != "Job":
            super()._run_pod(pod, nodes)
            return
        job = self.cluster.find(resources.JOB, owner["name"], "models")
        if job is None or pod["status"]["phase"] == "Succeeded":
            return
        if not pod["spec"].get("nodeName"):
            self._bind(pod, job, nodes)
        if pod["spec"].get("nodeName"):
            done = self._is_due(pod["status"]["startTime"], self.job_seconds)
            builder, last, end = (
                (check_pod, "check", self.check_ends) if is_check(job) else (job_pod, "push", self.job_ends)
            )
            state = builder(job, last, {"terminated": end} if done else {"running": {}})["status"]
            ready = {"type": "Ready", "status": "False"}
            pod["status"] = {**state, "startTime": pod["status"]["startTime"], "conditions": [ready]}
            if pod["status"]["phase"] == "Succeeded":
                # It holds nothing of its node any more.
                pod["spec"]["nodeName"] = ""
        self.cluster.put(resources.POD, pod)

    def _bind(self, pod: Obj, job: Obj, nodes: Mapping[str, Obj]) -> None:
        if is_check(job):
            name = WITHOUT_GPU if self.room else ""
        else:
            name = next((n for n, node in sorted(nodes.items()) if accepts(node, pod["spec"])), "")
        conditions = [{"type": "Ready", "status": "False"}]
        if not name:
            message = "0/1 nodes are available: 1 node(s) had untolerated taint."
            conditions.append({"type": "PodScheduled", "status": "False", "message": message})
        pod["spec"]["nodeName"] = name
        pod["status"] = {"phase": "Pending", "conditions": conditions}
        if name:
            pod["status"]["startTime"] = format_time(self.clock.now())

    def next_of_surroundings(self) -> float:
        return min([super().next_of_surroundings(), *self._moments_of_jobs()])

    def _moments_of_jobs(self) -> Iterable[float]:
        for pod in self._pods():
            if (start := pod["status"].get("startTime")) and pod["status"]["phase"] != "Succeeded":
                moment = self.clock.moment(parse_time(start) + timedelta(seconds=self.job_seconds))
                if moment > self.clock.monotonic():
                    yield moment
