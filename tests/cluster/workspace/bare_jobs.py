"""Tuning Workspaces for a bare cluster, and a stand-in for all that a tuning Job would do."""

from __future__ import annotations

import contextlib
import hashlib
import json

from tests.cluster.workspace.bare import Follower, Later, Obj, let_go, workspace

from kaito_hooks.runtime import Client, NotFound, Resource
from kaito_hooks.workspace.resources import JOB, POD

SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)


def tuning_workspace(name: str, namespace: str) -> Obj:
    """The tuning quick start's Workspace with a node of its own."""
    found = workspace(name, namespace)
    del found["inference"]
    return found | {
        "tuning": {
            "preset": {"name": "phi-3-mini-4k-instruct"},
            "method": "qlora",
            "input": {"urls": ["https://example.com/train.parquet"]},
            "output": {"image": "r.io/team/adapter:0.1", "imagePushSecret": "push"},
        }
    }


def digest_of(image: str) -> str:
    """The digest under which a bare Job says that it has pushed that image."""
    return f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"


class BareJobs(Follower):
    """Each Job has a Pod, and with it a pushed adapter, ``delay`` seconds after it appeared.

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
        if metadata.get("deletionTimestamp"):
            self._later.call(0.0, lambda: self._end(new))
        elif metadata["uid"] not in self.seen:
            self.seen[metadata["uid"]] = metadata["namespace"]
            self._later.call(self._delay, lambda: self._run(new))

    def _run(self, job: Obj) -> None:
        metadata = job["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        marks = {"kaito.sh/workspace": metadata["labels"]["kaito.sh/workspace"]}
        [push] = job["spec"]["template"]["spec"]["containers"]
        pod = {
            "metadata": {
                "name": _pod_name(job),
                "namespace": metadata["namespace"],
                "labels": marks,
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"restartPolicy": "Never", "containers": [{"name": push["name"], "image": push["image"]}]},
        }
        self.client.create(POD, pod)
        said = json.dumps({"digest": digest_of(push["args"][push["args"].index("--image") + 1])})
        ended = {"terminated": {"exitCode": 0, "reason": "Completed", "message": said}}
        kept = {"name": push["name"], "image": push["image"], "imageID": "", "ready": False, "restartCount": 0}
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
