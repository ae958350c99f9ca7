"""A control plane without controllers and nodes, for tests and benchmarks with hundreds of Workspaces at once.

Stand-ins take the place of both, with a few requests per Workspace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tests.cluster import leases
from tests.cluster.workspace.stand_ins.following import Obj
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Resource
from kaito_local.cluster.controlplane import ControlPlane, Settings
from kaito_local.cluster.definitions import apply_definitions
from kaito_local.errors import CommandError
from kaito_local.machine.pki import write_private

ROOT = Path(__file__).parents[3]
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", False)
SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)
CLUSTER_ROLE_BINDING = Resource("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", False)
SYSTEM_NAMESPACE = "kaito"
_TEMPLATES = tuple(f"ConfigMap/{method}-params-template" for method in ("lora", "qlora"))
_INSTALLED = (
    *("Catalog", "ClusterRole", "Role", "RoleBinding", "ServiceAccount", "ValidatingAdmissionPolicy"),
    *_TEMPLATES,
)


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


class BareCluster:
    """etcd and an API server with what the charts install but their Pods; ``close`` (or the ``with`` block) ends it."""

    def __init__(self, plane: ControlPlane, folder: Path, rendered: Mapping[str, Obj], helm: Path) -> None:
        self.plane, self.folder = plane, folder
        self._rendered, self._helm = rendered, helm
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
            found = cls(plane, folder, rendered, programs["helm"])
            found._install()
            return found
        except BaseException:
            plane.close()
            raise

    def _install(self) -> None:
        crds = (ROOT / "charts" / chart / "crds" for chart in ("kaito", "gpu-provisioner"))
        apply_definitions(self.plane.kubectl, *crds)
        self.create_namespace(SYSTEM_NAMESPACE)
        chosen = [d for name, d in self._rendered.items() if name.startswith(_INSTALLED)]
        for document in chosen:
            if document["kind"] in ("Role", "RoleBinding", "ServiceAccount", "ConfigMap"):
                document["metadata"]["namespace"] = SYSTEM_NAMESPACE
        self.plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump_all(chosen))
        probe = yaml.safe_dump(workspace("probe", "default"))
        eventually(lambda: self._admitted(probe), every=0.2, what="no Workspace is admitted")

    def _admitted(self, text: str) -> bool:
        try:
            self.plane.kubectl("create", "--dry-run=server", "-f", "-", input=text)
        except CommandError:
            return False
        return True

    def create_namespace(self, name: str) -> None:
        """A namespace; without a controller manager it has no service account and goes with the cluster."""
        self.admin.create(NAMESPACE, {"metadata": {"name": name}})

    def values(self, **values: Any) -> None:
        """Controllers that are started from here on have these values of the chart."""
        self._rendered = _render(self._helm, values)

    def roles(self) -> list[Obj]:
        """The roles of the controller."""
        return [self._rendered[name] for name in ("ClusterRole/kaito", "Role/kaito-leader-election")]

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
            **leases.LONG,
        }

    def controller_account(self) -> Path:
        """A kubeconfig with a token of the controller's service account, which is what its Pod has.

        The API server remembers a token for some seconds, and checks the signature of a certificate with each request.
        """
        account = self._rendered["Deployment/kaito"]["spec"]["template"]["spec"]["serviceAccountName"]
        return self._token_kubeconfig(SYSTEM_NAMESPACE, account)

    def account_of_all_rights(self, name: str, namespace: str) -> Path:
        """A kubeconfig with a token of a new service account that may do everything, for what stands in for others."""
        self.admin.create(SERVICE_ACCOUNT, {"metadata": {"name": name, "namespace": namespace}})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
        self.admin.create(CLUSTER_ROLE_BINDING, {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]})
        return self._token_kubeconfig(namespace, name)

    def _token_kubeconfig(self, namespace: str, account: str) -> Path:
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 7200},
        }
        answer = self.admin.create(SERVICE_ACCOUNT, request, namespace=namespace, name=account, subresource="token")
        config = json.loads(self.plane.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": answer["status"]["token"]}
        path = self.folder / f"{account}-account"
        write_private(path, json.dumps(config).encode())
        return path

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
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)
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
