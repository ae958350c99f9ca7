"""A stand-in for kubelets: reports states of Pods that are scheduled, and ends those that are deleted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from tests.cluster.workspace.stand_ins.following import Follower, Later, Obj

from kaito_hooks.runtime import Client, NotFound
from kaito_hooks.workspace.resources import POD

State = Callable[[Obj], Obj]
JOB_STEPS = ("weights", "data", "tune", "push")
CHECK_STEPS = ("push-right", "tokenizer", "data", "check")
REPORT: Obj = {
    "form": "messages",
    "files": ["train.parquet"],
    "rows": {"training": 1200, "evaluation": 60, "skipped": 3},
    "tokens": {"p50": 100, "p95": 512, "max": 1024, "cutShare": 0.0125},
    "problems": [],
    "warnings": ["3 rows are skipped"],
    "reason": "",
    "maxLength": 1024,
    "tokensPerEpoch": 150000,
    "estimatedSteps": 1200,
}
"""What a check says of data that can be trained."""


class Kubelet(Follower):
    """Every Pod is Ready as soon as it is scheduled, unless a test has said otherwise of its namespace."""

    def __init__(self, client: Client, later: Later) -> None:
        super().__init__(client, POD)
        self._later = later
        self._states: dict[str, State] = {}

    def report(self, namespace: str, state: State) -> None:
        """From here on Pods of that namespace are in the state that ``state`` gives for them, also those that run."""
        self._states[namespace] = state
        for pod in self.informers[0].list():
            if pod["metadata"]["namespace"] == namespace:
                self.changed(None, pod)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            return
        if new["metadata"].get("deletionTimestamp"):
            self._later.call(0.0, lambda: self._remove(new))
            return
        if not (new.get("spec") or {}).get("nodeName"):
            return
        status = new.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            return
        state = self._states.get(new["metadata"]["namespace"], running)(new)
        if not _has(status, state):
            self._later.call(0.0, lambda: self._tell(new, state))

    def _tell(self, pod: Obj, state: Obj) -> None:
        metadata = pod["metadata"]
        with contextlib.suppress(NotFound):
            self.client.patch(
                POD, metadata["name"], {"status": state}, namespace=metadata["namespace"], subresource="status"
            )

    def _remove(self, pod: Obj) -> None:
        metadata = pod["metadata"]
        with contextlib.suppress(NotFound):
            self.client.delete(POD, metadata["name"], namespace=metadata["namespace"], grace_period_seconds=0)


def running(pod: Obj) -> Obj:
    """All containers run and the Pod is Ready; a check has passed."""
    if is_check(pod):
        return passed(pod)
    return {
        "phase": "Running",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True"},
            {"type": "ContainersReady", "status": "True"},
        ],
    }


def starting(ip: str) -> State:
    """The weights are there; the server runs at that address and is not ready."""

    def state(pod: Obj) -> Obj:
        def of(container: Obj, **more: Obj) -> Obj:
            kept = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
            return {**kept, "ready": False, "state": more}

        return {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "initContainerStatuses": [of(c, terminated={"exitCode": 0}) for c in pod["spec"]["initContainers"]],
            "containerStatuses": [of(c, running={}) for c in pod["spec"]["containers"]],
        }

    return state


def failing_weights(message: str) -> State:
    """The init container ``weights`` ended with that sentence and is waiting to be restarted."""

    def state(pod: Obj) -> Obj:
        return {
            "phase": "Pending",
            "initContainerStatuses": [
                {
                    "name": "weights",
                    "image": "kaito-hooks",
                    "imageID": "",
                    "ready": False,
                    "restartCount": 2,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}},
                    "lastState": {"terminated": {"exitCode": 2, "reason": "Error", "message": message}},
                }
            ],
        }

    return state


def at_step(step: str, state: Obj, *, ip: str = "127.0.0.1") -> State:
    """A tuning Job's Pod with that step in that state, those before it done. Its check has passed, other Pods are
    Ready."""

    def report(pod: Obj) -> Obj:
        if not _is_of_job(pod):
            return running(pod)
        return passed(pod) if is_check(pod) else _stepping(JOB_STEPS, step, state, ip=ip)

    return report


def checking(step: str, state: Obj, **status: Any) -> State:
    """A check's Pod with that step in that state, those before it done; other Pods are Ready."""

    def report(pod: Obj) -> Obj:
        return {**_stepping(CHECK_STEPS, step, state), **status} if is_check(pod) else running(pod)

    return report


def passed(pod: Obj) -> Obj:
    """A check's Pod that has found nothing wrong."""
    return _stepping(CHECK_STEPS, "check", {"terminated": {"exitCode": 0, "message": json.dumps(REPORT)}})


def is_check(pod: Obj) -> bool:
    """Whether the Pod looks at a tuning before a node is bought."""
    return any(c["name"] == "check" for c in (pod.get("spec") or {}).get("containers") or ())


def _is_of_job(pod: Obj) -> bool:
    return any(owner["kind"] == "Job" for owner in pod["metadata"].get("ownerReferences") or ())


def _stepping(names: tuple[str, ...], step: str, state: Obj, *, ip: str = "127.0.0.1") -> Obj:
    def of(name: str) -> Obj:
        if name == step:
            found = state
        elif names.index(name) < names.index(step):
            found = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        else:
            found = {"waiting": {"reason": "PodInitializing"}}
        return {"name": name, "image": name, "imageID": "", "ready": False, "restartCount": 0, "state": found}

    statuses = [of(name) for name in names]
    last = step == names[-1]
    done = last and (state.get("terminated") or {}).get("exitCode") == 0
    return {
        "phase": "Succeeded" if done else "Running" if last else "Pending",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "initContainerStatuses": statuses[:-1],
        "containerStatuses": statuses[-1:],
    }


def _has(status: Obj, state: Obj) -> bool:
    kinds = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    wanted = {c["type"]: c["status"] for c in state.get("conditions") or ()}
    return (
        status.get("phase") == state.get("phase")
        and wanted.items() <= kinds.items()
        and _stages(status) == _stages(state)
    )


def _stages(status: Obj) -> list[tuple[str, list[str]]]:
    """Every container with the kind of state that it is in."""
    found = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return [(c["name"], sorted(c.get("state") or {})) for c in found]
