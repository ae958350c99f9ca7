"""A hook that stops helm: its sentence is read where helm was called, not only in the log of a Pod."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kaito_hooks.runtime import Client, Informer, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.pki import Authority

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
MACHINE = Resource("karpenter.sh", "v1alpha5", "machines", "Machine", False)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)
NODE = Resource("", "v1", "nodes", "Node", False)
POD = Resource("", "v1", "pods", "Pod", True)


class HookNode:
    """A Node on which the Pods of hooks run as processes of this machine, and whose kubelet tells their logs."""

    name = "hooks"

    def __init__(self, plane: ControlPlane, admin: Client, folder: Path) -> None:
        self._plane, self._admin, self._logs = plane, admin, dict[str, str]()
        pair = Authority.open(folder).server("kubelet", hosts=["127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        self._kubelet = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._kubelet.socket = context.wrap_socket(self._kubelet.socket, server_side=True)
        self._pods = Informer(admin, POD, label_selector="batch.kubernetes.io/job-name")
        self._pods.subscribe(self._changed)

    def __enter__(self) -> HookNode:
        threading.Thread(target=self._kubelet.serve_forever, args=(0.05,), daemon=True).start()
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._kubelet.server_address[1]}},
        }
        self._admin.create(NODE, {"metadata": {"name": self.name}})
        self._admin.patch(NODE, self.name, {"status": status}, subresource="status")
        self._pods.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pods.stop()
        self._admin.delete(NODE, self.name)
        self._kubelet.shutdown()
        self._kubelet.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        logs = self._logs

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                # /containerLogs/<namespace>/<pod>/<container>?...
                self.send_response(200)
                self.end_headers()
                self.wfile.write(logs.get(self.path.split("/")[3], "").encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        if old is None and new is not None and not new["spec"].get("nodeName"):
            threading.Thread(target=self._run, args=(new,), daemon=True).start()

    def _run(self, pod: Obj) -> None:
        metadata, [container] = pod["metadata"], pod["spec"]["containers"]
        target = {"apiVersion": "v1", "kind": "Node", "name": self.name}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": metadata["name"]}, "target": target}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/binding"
        self._plane.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(binding))
        done = subprocess.run(
            [sys.executable, *container["command"][1:]],
            env=os.environ | {"KUBECONFIG": str(self._plane.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        self._logs[metadata["name"]] = done.stdout + done.stderr
        ended = {"terminated": {"exitCode": done.returncode, "reason": "Error"}}
        kept = {"name": container["name"], "image": "hooks", "imageID": "", "ready": False, "restartCount": 0}
        status = {
            "phase": "Failed" if done.returncode else "Succeeded",
            "containerStatuses": [{**kept, "state": ended}],
        }
        self._admin.patch(
            POD, metadata["name"], {"status": status}, namespace=metadata["namespace"], subresource="status"
        )


@pytest.fixture
def node(installed: ControlPlane, admin: Client, tmp_path: Path) -> Iterator[HookNode]:
    with HookNode(installed, admin, tmp_path) as found:
        yield found


@pytest.fixture
def workspace(admin: Client) -> Iterator[None]:
    spec = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"a": "b"}}}
    obj: Obj = {"metadata": {"name": "guarded"}, "resource": spec, "inference": {"preset": {"name": "phi-2"}}}
    admin.create(WORKSPACE, obj, namespace="default")
    yield
    admin.delete(WORKSPACE, "guarded", namespace="default")


@pytest.fixture
def claim(admin: Client) -> Iterator[None]:
    admin.create(MACHINE, {"metadata": {"name": "ws1", "labels": {"kaito.sh/workspace": "a"}}})
    yield
    admin.delete(MACHINE, "ws1")


@pytest.mark.parametrize(
    ("release", "namespace", "left", "words"),
    [
        ("kaito", "kaito-workspace", "workspace", "1 Workspace (default/guarded) is still there"),
        ("gpu-provisioner", "gpu-provisioner", "claim", "1 Machine (ws1) is still there"),
    ],
)
def test_helm_says_why_an_uninstallation_is_refused(
    admin: Client,
    helm: Callable[..., str],
    node: HookNode,
    request: pytest.FixtureRequest,
    release: str,
    namespace: str,
    left: str,
    words: str,
) -> None:
    request.getfixturevalue(left)
    said = helm("uninstall", release, "--namespace", namespace, check=False)
    assert f"job {release}-guard-uninstall failed" in said
    assert words in said
    assert "deletionTimestamp" not in admin.get(DEPLOYMENT, release, namespace=namespace)["metadata"]
