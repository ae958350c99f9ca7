"""A real API server, the chart's CRDs and RBAC, an emulated AKS with bare Nodes, and the provisioner as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster import leases
from tests.eventually import PATIENCE, eventually

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeAPI, encode
from kaito_hooks.api.labels import CREATION_TIMESTAMP
from kaito_hooks.provisioner.resources import CLAIMS, NODE
from kaito_hooks.runtime import AlreadyExists, Client, NotFound, Obj
from kaito_local.aks import Durations, Emulator
from kaito_local.aks import Settings as CloudSettings
from kaito_local.cluster.controlplane import ControlPlane, Settings
from kaito_local.cluster.definitions import apply_definitions

ROOT = Path(__file__).parents[3]
NAMESPACE = "kaito"
_LABEL_TIME = "%Y-%m-%dT%H-%M-%SZ"
WORKSPACE = {"kaito.sh/workspace": "phi", "kaito.sh/workspacenamespace": "default", "apps": "phi-3"}
SWIFT = Durations(create_cpu=1.0, create_gpu=1.0, update=0.5, delete=0.5, abort=0.2, node_ready=0.2, gpu_delay=0.3)
PLANE = Settings(node_grace=3600.0)
Chart = Callable[[Mapping[str, Any]], list[Obj]]


@pytest.fixture(scope="package")
def plane(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of this package's own: claims and Nodes are cluster-scoped."""
    with ControlPlane.start(tmp_path_factory.mktemp("plane"), programs=programs, settings=PLANE) as plane:
        install_definitions(plane)
        yield plane


def install_definitions(plane: ControlPlane) -> None:
    """The chart's CRDs, and its namespace."""
    apply_definitions(plane.kubectl, ROOT / "charts" / "gpu-provisioner" / "crds")
    plane.kubectl("create", "namespace", NAMESPACE)


@pytest.fixture(scope="package")
def chart(programs: Mapping[str, Path]) -> Chart:
    """Renders charts/gpu-provisioner with values."""
    return renderer(programs["helm"])


def renderer(helm: Path) -> Chart:
    """Renders charts/gpu-provisioner with values; the same values once."""
    known: dict[str, str] = {}

    def render(values: Mapping[str, Any]) -> list[Obj]:
        given = yaml.safe_dump(dict(values))
        if given not in known:
            known[given] = template(given)
        return [document for document in yaml.safe_load_all(known[given]) if document]

    def template(values: str) -> str:
        command = [helm, "template", "gpu-provisioner", ROOT / "charts" / "gpu-provisioner"]
        command += ["--namespace", NAMESPACE, "--kube-version", "1.34.0", "--values", "-"]
        return subprocess.run(command, input=values, capture_output=True, text=True, check=True).stdout

    return render


@pytest.fixture(scope="package")
def account(plane: ControlPlane, chart: Chart) -> str:
    """The chart's ServiceAccount, with no more than the chart's rights."""
    return install_account(plane, chart)


def install_account(plane: ControlPlane, chart: Chart) -> str:
    """The name of the chart's ServiceAccount, which has the chart's rights then."""
    name = ""
    for document in chart(_values("https://arm.example", "https://authority.example", {})):
        if document["kind"] in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"):
            if document["kind"] in ("Role", "RoleBinding", "ServiceAccount"):
                document["metadata"]["namespace"] = NAMESPACE
            plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump(document))
        elif document["kind"] == "Deployment":
            name = document["spec"]["template"]["spec"]["serviceAccountName"]
    return name


@pytest.fixture(scope="package")
def admin(plane: ControlPlane) -> Client:
    return Client.load(kubeconfig=str(plane.kubeconfig))


@pytest.fixture
def cloud(plane: ControlPlane, tmp_path: Path, admin: Client) -> Iterator[Emulator]:
    """A swift emulated AKS whose pools are bare Nodes; afterwards no claim, pool or Node is left."""
    yield from emulated(plane, tmp_path / "cloud", admin)


def emulated(plane: ControlPlane, folder: Path, admin: Client, **changes: Any) -> Iterator[Emulator]:
    settings = CloudSettings(
        **{
            "directory": folder,
            "machines": "bare",
            "kubeconfig": plane.kubeconfig,
            "durations": SWIFT,
            "locks": "pool",
            **changes,
        }
    )
    with Emulator(settings) as emulator:
        with suppress(AlreadyExists):  # of another cloud of the same subscription that a test has
            admin.create(NODE, system_node(settings))
        yield emulator
    for resource in (*CLAIMS.values(), NODE):
        for obj in admin.list(resource).items:
            name = obj["metadata"]["name"]
            try:
                if obj["metadata"].get("finalizers"):
                    admin.patch(resource, name, {"metadata": {"finalizers": None}})
                admin.delete(resource, name)
            except NotFound:
                continue


def system_node(settings: CloudSettings) -> Obj:
    """The Node of a system pool, which every AKS cluster has: it shows whose cluster this is."""
    machine = "providers/Microsoft.Compute/virtualMachineScaleSets/aks-system-12345678-vmss/virtualMachines/0"
    group = f"/subscriptions/{settings.subscription}/resourceGroups/{settings.node_resource_group.lower()}"
    return {
        "metadata": {"name": "aks-system-12345678-vmss000000"},
        "spec": {"providerID": f"azure://{group}/{machine}"},
    }


def _values(endpoint: str, authority: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "provisioner": {
            "gcInterval": "2s",
            "poolPollInterval": "500ms",
            **{k: v for k, v in settings.items() if k not in ("nodeAPI", "agentPool")},
        },
        "nodeAPI": settings.get("nodeAPI", "Machine"),
        "agentPool": settings.get("agentPool", {}),
        "azure": {"armEndpoint": endpoint, "authorityHost": authority},
        "settings": {
            "azure": {
                "clusterName": "kaito",
                "resourceGroup": "kaito",
                "subscriptionId": "00000000-0000-0000-0000-000000000001",
                "location": "eastus",
            }
        },
        "workloadIdentity": {
            "clientId": "00000000-0000-0000-0000-000000000003",
            "tenantId": "00000000-0000-0000-0000-000000000002",
        },
    }


class Provisioner:
    """One process, as the chart would run it."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM, as the kubelet sends it; the exit code. One that does not end tells where its threads are."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.end()

    def end(self) -> int:
        """The exit code of a process that was asked to stop, or was killed."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            return self.process.wait(PATIENCE)

    def logged(self) -> str:
        return self.log.read_text()


class Provisioners:
    """Starts provisioners and ends them."""

    def __init__(self, plane: ControlPlane, account: str, chart: Chart, folder: Path) -> None:
        self._plane, self._account, self._chart, self._folder = plane, account, chart, folder
        self.running: list[Provisioner] = []

    def start(
        self,
        cloud: Emulator,
        *,
        lead: bool = False,
        environment: Mapping[str, str] | None = None,
        arm: str = "",
        kubeconfig: Path | None = None,
        **settings: Any,
    ) -> Provisioner:
        number = len(self.running)
        token = self._folder / "identity-token"
        if not token.exists():
            token.write_text("a.b.c")
        endpoint = arm or cloud.endpoints.arm
        documents = self._chart(_values(endpoint, endpoint, settings))
        deployment = next(d for d in documents if d["kind"] == "Deployment")
        rendered = {
            e["name"]: e["value"]
            for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
            if "value" in e
        }
        kubeconfig = kubeconfig or self.identify(f"kubeconfig-{number}")
        log = self._folder / f"provisioner-{number}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "kaito_hooks.provisioner"],
                env={
                    **os.environ,
                    **rendered,
                    "KUBECONFIG": str(kubeconfig),
                    "AZURE_FEDERATED_TOKEN_FILE": str(token),
                    "REQUESTS_CA_BUNDLE": str(cloud.endpoints.authority),
                    "METRICS_PORT": "0",
                    "HEALTH_PROBE_PORT": "0",
                    "BIND_ADDRESS": "127.0.0.1",
                    "POD_NAME": f"provisioner-{number}",
                    "PYTHONFAULTHANDLER": "1",
                    "DISABLE_LEADER_ELECTION": "" if lead else "true",
                    **leases.LONG,
                    "LEADER_ELECTION_RETRY_PERIOD": "300ms",
                    **(environment or {}),
                },
                stderr=stderr,
                stdout=stderr,
            )
        found = Provisioner(process, log)
        self.running.append(found)
        return found

    def identify(self, name: str) -> Path:
        """A kubeconfig of that name with the chart's account and its rights."""
        return self._plane.client_kubeconfig(
            self._folder / name,
            user=f"system:serviceaccount:{NAMESPACE}:{self._account}",
            groups=("system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"),
        )

    def close(self) -> None:
        for provisioner in self.running:
            if provisioner.process.poll() is None:
                provisioner.process.terminate()
        ends = [(provisioner.end(), provisioner) for provisioner in self.running]
        for code, provisioner in ends:
            assert code != -signal.SIGABRT, f"it did not end after SIGTERM:\n{provisioner.logged()[-6000:]}"


@pytest.fixture
def provisioners(
    plane: ControlPlane, account: str, chart: Chart, cloud: Emulator, tmp_path: Path
) -> Iterator[Provisioners]:
    found = Provisioners(plane, account, chart, tmp_path)
    yield found
    found.close()
    for provisioner in found.running:
        # Shown by pytest with a test that failed.
        print(provisioner.logged()[-6000:])


class Claims:
    """Claims of one kind, as the Workspace controller makes and reads them."""

    def __init__(self, admin: Client, kind: NodeAPI) -> None:
        self._admin = admin
        self.kind: NodeAPI = kind
        self.resource = CLAIMS[kind]

    def ask(self, name: str, **changes: Any) -> Claim:
        spec = ClaimSpec(**{"name": name, "labels": WORKSPACE, "instance_type": "Standard_NC6s_v3"} | changes)
        return Claim.read(self._admin.create(self.resource, encode(spec, self.kind)))

    def read(self, name: str) -> Claim | None:
        try:
            return Claim.read(self._admin.get(self.resource, name))
        except NotFound:
            return None

    def delete(self, name: str) -> None:
        self._admin.delete(self.resource, name)

    def until_ready(self, name: str, *, timeout: float = PATIENCE) -> Claim:
        def look() -> Claim | None:
            claim = self.read(name)
            return claim if claim is not None and claim.ready else None

        return eventually(look, timeout=timeout, every=0.1, what=lambda: self._told(name, "Ready"))  # type: ignore[return-value]

    def until_gone(self, name: str, *, timeout: float = PATIENCE) -> None:
        eventually(lambda: self.read(name) is None, timeout=timeout, every=0.1, what=lambda: self._told(name, "gone"))

    def _told(self, name: str, wanted: str) -> str:
        claim = self.read(name)
        return f"{name} is not {wanted}: {claim and claim.conditions}"

    def until_waiting(self, name: str, reason: str) -> tuple[str, str]:
        def look() -> tuple[str, str] | None:
            claim = self.read(name)
            waiting = claim.first_waiting() if claim else None
            return waiting if waiting and waiting[0] == reason else None

        return eventually(look, every=0.1, what=f"{name} never waited for {reason}")  # type: ignore[return-value]


@pytest.fixture(params=["Machine", "NodeClaim"])
def claims(request: pytest.FixtureRequest, admin: Client) -> Claims:
    """Both kinds, one after the other."""
    return Claims(admin, request.param)


@pytest.fixture
def machines(admin: Client) -> Claims:
    return Claims(admin, "Machine")


def created(cloud: Emulator) -> list[str]:
    """Names of the pools that PUTs made, oldest first."""
    return [r["pool"] for r in cloud.requests() if r["method"] == "PUT" and r["status"] == 201]


def nodes_of(admin: Client, pool: str) -> list[Obj]:
    return admin.list(NODE, label_selector=f"agentpool={pool}").items


def age(cloud: Emulator, pool: str) -> None:
    """The pool was ordered a minute ago, by the label in which the provisioner keeps the time.

    The sweep takes none for abandoned that was ordered in the last half minute.
    """
    found = cloud.pools.get(pool)
    ordered = datetime.strptime(found.labels[CREATION_TIMESTAMP], _LABEL_TIME) - timedelta(minutes=1)
    labels = {**found.labels, CREATION_TIMESTAMP: ordered.strftime(_LABEL_TIME)}
    cloud.pools.put(pool, {"properties": {**found.properties, "nodeLabels": labels}})
    # Gone is possible, too, where somebody sweeps already.
    eventually(lambda: all(found.state == "Succeeded" for found in cloud.agent_pools() if found.name == pool))
