"""A control plane with the charts' CRDs, Catalog, policies and RBAC, and the controller as a process of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster import leases
from tests.cluster.workspace.stand_ins.following import Later, Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet
from tests.cluster.workspace.stand_ins.provisioner import Provisioner, add_node_without_gpu
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import AlreadyExists, Client, Informer, NotFound, Resource
from kaito_hooks.workspace.resources import CONFIG_MAP, WORKSPACE
from kaito_local.cluster.controlplane import ControlPlane, Settings
from kaito_local.cluster.definitions import apply_definitions

ROOT = Path(__file__).parents[3]
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", False)
CATALOG_NAME = "kaito"
Chart = Callable[[Mapping[str, Any]], dict[str, Obj]]
VALUES = {
    "timeouts": {
        "claimWithoutCondition": "2s",
        "gpuPlugin": "2s",
        "buyBackoffMin": "1s",
        "buyBackoffMax": "8s",
    }
}


@pytest.fixture(scope="package")
def plane(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of this package's own: it holds cluster-scoped objects that only one chart may install."""
    settings = Settings(node_grace=3600.0)
    with ControlPlane.start(tmp_path_factory.mktemp("plane"), programs=programs, settings=settings) as plane:
        crds = (ROOT / "charts" / chart / "crds" for chart in ("kaito", "gpu-provisioner"))
        apply_definitions(plane.kubectl, *crds)
        plane.kubectl("create", "namespace", "kaito")
        yield plane


def renderer(helm: Path) -> Chart:
    """Renders charts/kaito with values; objects by ``Kind/name``."""

    def render(values: Mapping[str, Any]) -> dict[str, Obj]:
        command = [helm, "template", "kaito", ROOT / "charts" / "kaito", "--namespace", "kaito"]
        command += ["--kube-version", "1.34.0", "--values", "-"]
        text = subprocess.run(
            command, input=yaml.safe_dump(dict(values)), capture_output=True, text=True, check=True
        ).stdout
        documents = [d for d in yaml.safe_load_all(text) if d]
        return {f"{d['kind']}/{d['metadata']['name']}": d for d in documents}

    return render


def install(plane: ControlPlane, rendered: Mapping[str, Obj]) -> None:
    """Catalog, policies and RBAC of the chart."""
    wanted = ("Catalog", "ClusterRole", "Role", "RoleBinding", "ServiceAccount", "ValidatingAdmissionPolicy")
    chosen = [d for name, d in rendered.items() if name.startswith(wanted)]
    for document in chosen:
        if document["kind"] in ("Role", "RoleBinding", "ServiceAccount"):
            document["metadata"]["namespace"] = "kaito"
    plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(chosen))


@pytest.fixture(scope="package")
def chart(programs: Mapping[str, Path]) -> Chart:
    return renderer(programs["helm"])


@pytest.fixture(scope="package")
def installed(plane: ControlPlane, chart: Chart) -> dict[str, Obj]:
    """What the chart renders; Catalog, policies and RBAC of it are in the cluster."""
    rendered = chart(VALUES)
    install(plane, rendered)
    return rendered


@pytest.fixture(scope="package")
def admin(plane: ControlPlane) -> Client:
    return Client.load(kubeconfig=str(plane.kubeconfig))


@pytest.fixture
def place(admin: Client) -> Iterator[str]:
    """A fresh namespace."""
    name = f"ws-{secrets.token_hex(4)}"
    admin.create(NAMESPACE, {"metadata": {"name": name}})
    yield name
    for workspace in admin.list(WORKSPACE, namespace=name).items:
        patch = {"metadata": {"finalizers": None}}
        try:
            admin.patch(WORKSPACE, workspace["metadata"]["name"], patch, namespace=name)
            admin.delete(WORKSPACE, workspace["metadata"]["name"], namespace=name)
        except NotFound:
            continue
    admin.delete(NAMESPACE, name)


@pytest.fixture
def templates(admin: Client, installed: dict[str, Obj]) -> None:
    """The chart's default tuning configurations in the release's namespace."""
    for method in ("lora", "qlora"):
        found = installed[f"ConfigMap/{method}-params-template"]
        with contextlib.suppress(AlreadyExists):
            admin.create(CONFIG_MAP, {**found, "metadata": {**found["metadata"], "namespace": "kaito"}})


@pytest.fixture(scope="package")
def node_without_gpu(admin: Client, installed: dict[str, Obj]) -> str:
    """The name of a Node that anything may run on: the checks of tunings, for instance."""
    add_node_without_gpu(admin, "without-gpu")
    return "without-gpu"


@pytest.fixture
def later() -> Iterator[Later]:
    with Later() as found:
        yield found


@pytest.fixture
def provisioner(admin: Client, installed: dict[str, Obj], later: Later) -> Iterator[Provisioner]:
    with Provisioner(admin, later) as stand_in:
        yield stand_in


@pytest.fixture
def kubelet(admin: Client, later: Later) -> Iterator[Kubelet]:
    with Kubelet(admin, later) as stand_in:
        yield stand_in


class Controllers:
    """Starts controllers as processes under the chart's RBAC and configuration, and ends them."""

    def __init__(self, plane: ControlPlane, chart: Chart, folder: Path) -> None:
        self._plane, self._chart, self._folder = plane, chart, folder
        self._running: list[subprocess.Popen[bytes]] = []
        spec = chart(VALUES)["Deployment/kaito"]["spec"]["template"]["spec"]
        self._account = spec["serviceAccountName"]
        self._lease = next(e["value"] for e in spec["containers"][0]["env"] if e["name"] == "LEADER_ELECTION_NAME")

    def start(
        self,
        *,
        values: Mapping[str, Any] | None = None,
        lead: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        number = len(self._running)
        rendered = self._chart({**VALUES, **(values or {})})
        config = next(d for n, d in rendered.items() if n.startswith("ConfigMap/") and "config.yaml" in d["data"])
        path = self._folder / f"config-{number}.yaml"
        path.write_text(config["data"]["config.yaml"])
        kubeconfig = self._plane.client_kubeconfig(
            self._folder / f"kubeconfig-{number}",
            user=f"system:serviceaccount:kaito:{self._account}",
            groups=("system:serviceaccounts", "system:serviceaccounts:kaito", "system:authenticated"),
        )
        variables = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "CLOUD_PROVIDER": "azure",
            "RELEASE_NAMESPACE": "kaito",
            "METRICS_PORT": "0",
            "HEALTH_PROBE_PORT": "0",
            "BIND_ADDRESS": "127.0.0.1",
            "LEADER_ELECTION_NAMESPACE": "kaito",
            "LEADER_ELECTION_NAME": self._lease,
            **leases.LONG,
            "DISABLE_LEADER_ELECTION": "" if lead else "true",
            **(environment or {}),
        }
        log = (self._folder / f"controller-{number}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "kaito_hooks.workspace", "--config", str(path)], env=variables, stderr=log
        )
        log.close()
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)

    def logs(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self._folder.glob("controller-*.log")))


@pytest.fixture
def controllers(plane: ControlPlane, chart: Chart, installed: dict[str, Obj], tmp_path: Path) -> Iterator[Controllers]:
    found = Controllers(plane, chart, tmp_path)
    yield found
    found.close()


@pytest.fixture
def controller(controllers: Controllers) -> Controllers:
    """One controller runs."""
    controllers.start()
    return controllers


def workspace(name: str, namespace: str, **changes: Any) -> Obj:
    """The quick start's Workspace, for nodes that only this namespace's Workspaces share."""
    found: Obj = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name, "namespace": namespace},
        "resource": {
            "instanceType": "Standard_NC6s_v3",
            "labelSelector": {"matchLabels": {"apps": namespace}},
        },
        "inference": {"preset": {"name": "phi-3-mini-4k-instruct"}},
    }
    return {**found, **changes}


def submit(admin: Client, obj: Obj) -> Obj:
    """``kubectl apply`` of a new object; waits for the policies to be compiled by trying again."""
    try:
        return admin.create(WORKSPACE, obj)
    except AlreadyExists:
        return admin.get(WORKSPACE, obj["metadata"]["name"], namespace=obj["metadata"]["namespace"])


def conditions(admin: Client, obj: Obj) -> dict[str, Obj]:
    metadata = obj["metadata"]
    found = admin.get(WORKSPACE, metadata["name"], namespace=metadata["namespace"])
    return {c["type"]: c for c in (found.get("status") or {}).get("conditions") or ()}


def until_quiet(admin: Client, obj: Obj, *, seconds: float) -> str:
    """The resourceVersion of a Workspace once nobody has written it for so long."""
    metadata = obj["metadata"]

    def version() -> str:
        return str(
            admin.get(WORKSPACE, metadata["name"], namespace=metadata["namespace"])["metadata"]["resourceVersion"]
        )

    def same() -> str:
        before = version()
        time.sleep(seconds)
        return before if version() == before else ""

    return eventually(same, what=f"{metadata['name']} is written again and again")


class Told:
    """Every condition that a namespace's Workspaces ever had, however short; as a context."""

    def __init__(self, admin: Client, namespace: str) -> None:
        self._seen: list[Obj] = []
        self._informer = Informer(admin, WORKSPACE, namespace=namespace)
        self._informer.subscribe(self._note)

    def _note(self, old: Obj | None, new: Obj | None) -> None:
        self._seen += ((new or {}).get("status") or {}).get("conditions") or ()

    def __enter__(self) -> Told:
        self._informer.start()
        assert self._informer.wait_synced(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._informer.stop()

    def until(self, condition: str, *, words: str) -> None:
        """Once the condition has had these words in its message."""

        def said() -> list[str]:
            return [c["message"] for c in list(self._seen) if c["type"] == condition]

        eventually(lambda: any(words in message for message in said()), what=lambda: f"{condition} said {said()}")


def until(
    admin: Client, obj: Obj, condition: str, *, status: str = "True", words: str = "", timeout: float = PATIENCE
) -> Obj:
    """The condition once it has that status and those words in its message, and is of the specification as it is."""

    def look() -> Obj | None:
        metadata = obj["metadata"]
        now = admin.get(WORKSPACE, metadata["name"], namespace=metadata["namespace"])
        for found in (now.get("status") or {}).get("conditions") or ():
            fits = (found["type"], found["status"]) == (condition, status) and words in found["message"]
            if fits and found["observedGeneration"] == now["metadata"]["generation"]:
                return dict(found)
        return None

    def missing() -> str:
        return f"{condition} is not {status} with {words!r}: {conditions(admin, obj)}"

    return eventually(look, timeout=timeout, every=0.1, what=missing)  # type: ignore[return-value]
