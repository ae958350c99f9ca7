"""A control plane without controllers and nodes, and stand-ins for both that cost next to nothing.

For tests and benchmarks with hundreds of Workspaces at once. Nothing here looks at everything again and again: each
stand-in acts once per object, told by a watch and a timer, with two requests per claim and one per Deployment.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.eventually import eventually

from kaito_hooks.runtime import ApiError, Client, Informer, NotFound, Resource, SystemClock, now_rfc3339
from kaito_hooks.workspace.resources import DEPLOYMENT, MACHINE, NODE
from kaito_local.cluster.controlplane import ControlPlane, Settings
from kaito_local.errors import CommandError

Obj = dict[str, Any]
logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[3]
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", False)
SYSTEM_NAMESPACE = "kaito"
_TEMPLATES = tuple(f"ConfigMap/{method}-params-template" for method in ("lora", "qlora"))
_INSTALLED = (
    *("Catalog", "ClusterRole", "Role", "RoleBinding", "ServiceAccount", "ValidatingAdmissionPolicy"),
    *_TEMPLATES,
)
_THREADS = 4


def workspace(name: str, namespace: str) -> Obj:
    """The quick start's Workspace with nodes of its own."""
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name, "namespace": namespace},
        "resource": {
            "instanceType": "Standard_NC6s_v3",
            "labelSelector": {"matchLabels": {"apps": f"{namespace}-{name}"}},
        },
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }


class BareCluster:
    """etcd and an API server with what the charts install but their Pods; ``close`` (or the ``with`` block) ends it."""

    def __init__(self, plane: ControlPlane, folder: Path, rendered: Mapping[str, Obj]) -> None:
        self.plane, self.folder = plane, folder
        self._rendered = rendered
        self._controllers: list[subprocess.Popen[bytes]] = []
        self.admin = Client.load(kubeconfig=str(plane.kubeconfig))

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        programs: Mapping[str, Path],
        values: Mapping[str, Any] | None = None,
        api_server_arguments: tuple[str, ...] = (),
    ) -> BareCluster:
        """A cluster in which the quick start's Workspace is admitted; ``values`` are those of the chart kaito."""
        settings = Settings(controller_manager=False, scheduler=False, api_server_arguments=api_server_arguments)
        rendered = _render(programs["helm"], values or {})
        plane = ControlPlane.start(folder / "plane", programs=programs, settings=settings)
        try:
            found = cls(plane, folder, rendered)
            found._install()
            return found
        except BaseException:
            plane.close()
            raise

    def _install(self) -> None:
        for chart in ("kaito", "gpu-provisioner"):
            self.plane.kubectl("apply", "--server-side", "-f", str(ROOT / "charts" / chart / "crds"))
        self.plane.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        self.create_namespace(SYSTEM_NAMESPACE)
        chosen = [d for name, d in self._rendered.items() if name.startswith(_INSTALLED)]
        for document in chosen:
            if document["kind"] in ("Role", "RoleBinding", "ServiceAccount", "ConfigMap"):
                document["metadata"]["namespace"] = SYSTEM_NAMESPACE
        self.plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(chosen))
        probe = yaml.safe_dump(workspace("probe", "default"))
        # Policies are compiled some time after they were written, and until then refuse or know no Catalog.
        eventually(lambda: self._admitted(probe), timeout=30, every=0.2, what="the policies admit no Workspace")

    def _admitted(self, text: str) -> bool:
        try:
            self.plane.kubectl("create", "--dry-run=server", "-f", "-", input=text)
        except CommandError:
            return False
        return True

    def create_namespace(self, name: str) -> None:
        """A namespace; without a controller manager it has no service account and goes with the cluster."""
        self.admin.create(NAMESPACE, {"metadata": {"name": name}})

    @property
    def config(self) -> Path:
        """The controller's configuration as the chart renders it."""
        text = next(
            d["data"]["config.yaml"]
            for name, d in self._rendered.items()
            if name.startswith("ConfigMap/") and "config.yaml" in d["data"]
        )
        path = self.folder / "config.yaml"
        path.write_text(text)
        return path

    def environment(self) -> dict[str, str]:
        """What the chart's Deployment sets, for a process on this machine that has the chart's rights."""
        spec = self._rendered["Deployment/kaito"]["spec"]["template"]["spec"]
        lease = next(e["value"] for e in spec["containers"][0]["env"] if e["name"] == "LEADER_ELECTION_NAME")
        kubeconfig = self.plane.client_kubeconfig(
            self.folder / "controller-kubeconfig",
            user=f"system:serviceaccount:{SYSTEM_NAMESPACE}:{spec['serviceAccountName']}",
            groups=("system:serviceaccounts", f"system:serviceaccounts:{SYSTEM_NAMESPACE}", "system:authenticated"),
        )
        return {
            "KUBECONFIG": str(kubeconfig),
            "CLOUD_PROVIDER": "azure",
            "RELEASE_NAMESPACE": SYSTEM_NAMESPACE,
            "METRICS_PORT": "0",
            "HEALTH_PROBE_PORT": "0",
            "BIND_ADDRESS": "127.0.0.1",
            "LEADER_ELECTION_NAMESPACE": SYSTEM_NAMESPACE,
            "LEADER_ELECTION_NAME": lease,
        }

    def start_controller(self, *, lead: bool = True, kubeconfig: Path | None = None) -> subprocess.Popen[bytes]:
        """The real controller as a process of its own; without ``lead`` it acts without asking for the lease.

        ``kubeconfig``: its way to the API server, if that is not the straight one.
        """
        environment = {**os.environ, **self.environment(), "DISABLE_LEADER_ELECTION": "" if lead else "true"}
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        with (self.folder / f"controller-{len(self._controllers)}.log").open("wb") as log:
            command = [sys.executable, "-m", "kaito_hooks.workspace", "--config", str(self.config)]
            process = subprocess.Popen(command, env=environment, stderr=log)
        self._controllers.append(process)
        return process

    def close(self) -> None:
        """End the controllers, then the control plane."""
        for process in self._controllers:
            process.terminate()
        for process in self._controllers:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self.plane.close()

    def __enter__(self) -> BareCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _render(helm: Path, values: Mapping[str, Any]) -> dict[str, Obj]:
    """The objects of the chart kaito by ``Kind/name``."""
    chart = ROOT / "charts" / "kaito"
    command: list[str | Path] = [helm, "template", "kaito", chart, "--namespace", SYSTEM_NAMESPACE]
    command += ["--kube-version", "1.34.0", "--values", "-"]
    done = subprocess.run(command, input=yaml.safe_dump(dict(values)), capture_output=True, text=True, check=True)
    return {f"{d['kind']}/{d['metadata']['name']}": d for d in yaml.safe_load_all(done.stdout) if d}


class Later:
    """Calls functions at their time, on a few threads; ends with its ``with`` block, whatever is still to come."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ended = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(_THREADS)]

    def __enter__(self) -> Later:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(10)

    def call(self, delay: float, function: Callable[[], None]) -> None:
        """``function`` after ``delay`` seconds; what the API server refuses it is logged and not tried again."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay, next(self._numbers), function))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._ended:
                    return
                _, _, function = heapq.heappop(self._due)
            try:
                function()
            except ApiError as error:
                logger.warning("a stand-in was refused: %s", error)


class Follower:
    """Follows one resource with a watch; ends with its ``with`` block."""

    def __init__(self, client: Client, resource: Resource) -> None:
        self.client = client
        self.informer = Informer(client, resource)
        self.informer.subscribe(self.changed)

    def __enter__(self):  # type: ignore[no-untyped-def]
        self.informer.start()
        assert self.informer.wait_synced(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.informer.stop()

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        """An object came (None, new), changed, or went (old, None)."""
        raise NotImplementedError


class BareProvisioner(Follower):
    """Makes each Machine ready ``delay`` seconds after it was seen, with a bare Node that has a GPU.

    ``labelled``: Nodes carry ``accelerator=nvidia``, as AKS's have it from the start. ``made``: every Machine that ever
    was, by uid, with the Workspace (namespace, name) that it is for. A Node is named after its Workspace and claim, and
    stays.
    """

    def __init__(self, client: Client, later: Later, *, delay: float, labelled: bool = True) -> None:
        super().__init__(client, MACHINE)
        self._later, self._delay, self._labelled = later, delay, labelled
        self.made: dict[str, tuple[str, str]] = {}

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is None or new["metadata"]["uid"] in self.made:
            return
        marks = new["metadata"]["labels"]
        self.made[new["metadata"]["uid"]] = (marks["kaito.sh/workspacenamespace"], marks["kaito.sh/workspace"])
        self._later.call(self._delay, lambda: self._boot(new))

    def _boot(self, claim: Obj) -> None:
        namespace, owner = self.made[claim["metadata"]["uid"]]
        name = f"{namespace}.{owner}.{claim['metadata']['name']}"
        requirements = {r["key"]: r.get("values") for r in claim["spec"]["requirements"]}
        marks = {
            **claim["metadata"]["labels"],
            **({"accelerator": "nvidia"} if self._labelled else {}),
            "node.kubernetes.io/instance-type": requirements["node.kubernetes.io/instance-type"][0],
        }
        room = {"cpu": "8", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": "1"}
        ready = _condition("Ready", "KubeletReady") | {"lastHeartbeatTime": now_rfc3339(SystemClock())}
        status: Obj = {"capacity": room, "allocatable": room, "conditions": [ready]}
        self.client.create(NODE, {"metadata": {"name": name, "labels": marks}, "status": status})
        steps = ("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready")
        done = {"nodeName": name, "providerID": f"azure:///{name}", "conditions": [_condition(s, s) for s in steps]}
        self.client.patch(MACHINE, claim["metadata"]["name"], {"status": done}, subresource="status")


class BareWorkloads(Follower):
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


def let_go(client: Client, resource: Resource, obj: Obj) -> None:
    """What a garbage collector does at the end of a deletion in the foreground."""
    metadata = obj["metadata"]
    with contextlib.suppress(NotFound):
        client.patch(resource, metadata["name"], {"metadata": {"finalizers": None}}, namespace=metadata["namespace"])


def _condition(kind: str, reason: str) -> Obj:
    return {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now_rfc3339(SystemClock())}
