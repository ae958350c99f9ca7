"""Stand-ins for all that becomes of Deployments and Jobs where no controller manager and no kubelet runs."""

from __future__ import annotations

import contextlib
import hashlib
import json

from tests.cluster.workspace.stand_ins.following import Follower, Later, Obj, let_go
from tests.cluster.workspace.stand_ins.kubelet import REPORT

from kaito_hooks.runtime import Client, NotFound
from kaito_hooks.workspace.resources import DEPLOYMENT, JOB, POD


class Deployments(Follower):
    """Reports each Deployment ready ``delay`` seconds after it appeared, and again when its specification changes.

    ``seen``: every Deployment that ever was, by uid, with its namespace and name. One that is deleted in the foreground
    goes at once: there is no garbage collector that would wait for its Pods.
    """

    def __init__(self, client: Client, later: Later, *, delay: float) -> None:
        super().__init__(client, DEPLOYMENT)
        self._later, self._delay = later, delay
        self._done: dict[str, int] = {}
        self.seen: dict[str, tuple[str, str]] = {}

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            return
        metadata = new["metadata"]
        self.seen[metadata["uid"]] = (metadata["namespace"], metadata["name"])
        if metadata.get("deletionTimestamp"):
            self._later.call(0.0, lambda: let_go(self.client, DEPLOYMENT, new))
        elif self._done.get(metadata["uid"], 0) < metadata["generation"]:
            self._done[metadata["uid"]] = metadata["generation"]
            self._later.call(self._delay, lambda: self._report(new))

    def _report(self, deployment: Obj) -> None:
        metadata, count = deployment["metadata"], deployment["spec"]["replicas"]
        kinds = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
        status = {"observedGeneration": metadata["generation"], **dict.fromkeys(kinds, count)}
        self.client.patch(
            DEPLOYMENT, metadata["name"], {"status": status}, namespace=metadata["namespace"], subresource="status"
        )


def digest_of(image: str) -> str:
    """The digest under which a Job says that it has pushed that image."""
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


class Jobs(Follower):
    """Each Job of a Workspace has a Pod, and with it a pushed adapter or a check that has passed, ``delay`` seconds
    after it appeared.

    ``seen``: every Job that ever was, by uid, with its namespace, which needs a service account for the Pod. A Pod goes
    with its Job, as with a garbage collector.
    """

    def __init__(self, client: Client, later: Later, *, delay: float) -> None:
        super().__init__(client, JOB)
        self._later, self._delay = later, delay
        self.seen: dict[str, str] = {}

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None:
            return
        metadata = new["metadata"]
        if "kaito.sh/workspace" not in (metadata.get("labels") or {}):
            return
        if metadata.get("deletionTimestamp"):
            self._later.call(0.0, lambda: self._end(new))
        elif metadata["uid"] not in self.seen:
            self.seen[metadata["uid"]] = metadata["namespace"]
            self._later.call(self._delay, lambda: self._run(new))

    def _run(self, job: Obj) -> None:
        metadata = job["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        marks = {"kaito.sh/workspace": metadata["labels"]["kaito.sh/workspace"]}
        [last] = job["spec"]["template"]["spec"]["containers"]
        pod = {
            "metadata": {
                "name": _pod_name(job),
                "namespace": metadata["namespace"],
                "labels": marks,
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"restartPolicy": "Never", "containers": [{"name": last["name"], "image": last["image"]}]},
        }
        self.client.create(POD, pod)
        said = json.dumps(REPORT)
        if last["name"] == "push":
            said = json.dumps({"digest": digest_of(last["args"][last["args"].index("--image") + 1])})
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "message": said}}
        kept = {"name": last["name"], "image": last["image"], "imageID": "", "ready": False, "restartCount": 0}
        status = {"phase": "Succeeded", "containerStatuses": [{**kept, "state": ended}]}
        self.client.patch(
            POD, _pod_name(job), {"status": status}, namespace=metadata["namespace"], subresource="status"
        )

    def _end(self, job: Obj) -> None:
        with contextlib.suppress(NotFound):
            self.client.delete(POD, _pod_name(job), namespace=job["metadata"]["namespace"], grace_period_seconds=0)
        let_go(self.client, JOB, job)


def _pod_name(job: Obj) -> str:
    return f"{job['metadata']['name']}-{job['metadata']['uid'][:5]}"
