"""A stand-in for the one node that helm's hooks need: their Pods run as processes of this machine."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kaito_hooks.runtime import Client, Informer, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.pki import Authority, write_private

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", True)
NODE = Resource("", "v1", "nodes", "Node", False)
POD = Resource("", "v1", "pods", "Pod", True)
SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount", True)


class HookNode:
    """A Node on which the Pods of hooks run as processes of this machine, and whose kubelet tells their logs.

    A process has the rights of its Pod's service account, and the files of its ConfigMaps. ``sources``: the folder that
    holds the package kaito_hooks, if it is not this clone's.
    """

    name = "hooks"

    def __init__(self, plane: ControlPlane, admin: Client, folder: Path) -> None:
        self._plane, self._admin, self._folder, self._logs = plane, admin, folder, dict[str, str]()
        self.sources: Path | None = None
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
        kubeconfig = self._token_kubeconfig(metadata["namespace"], pod["spec"]["serviceAccountName"])
        done = subprocess.run(
            [sys.executable, *self._mounted(pod, container["command"][1:])],
            env=os.environ
            | {"KUBECONFIG": str(kubeconfig)}
            | ({"PYTHONPATH": str(self.sources)} if self.sources else {}),
            cwd=self._folder,
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

    def _token_kubeconfig(self, namespace: str, account: str) -> Path:
        answer = self._admin.create(
            SERVICE_ACCOUNT,
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}},
            namespace=namespace,
            name=account,
            subresource="token",
        )
        config = json.loads(self._plane.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": answer["status"]["token"]}
        path = self._folder / f"{account}.kubeconfig"
        write_private(path, json.dumps(config).encode())
        return path

    def _mounted(self, pod: Obj, command: list[str]) -> list[str]:
        """The command with the folders of ConfigMaps where they lie on this machine."""
        metadata, [container] = pod["metadata"], pod["spec"]["containers"]
        paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                found = self._admin.get(CONFIG_MAP, volume["configMap"]["name"], namespace=metadata["namespace"])
                folder = self._folder / f"{metadata['name']}-{volume['name']}"
                folder.mkdir()
                for name, text in found["data"].items():
                    (folder / name).write_text(text)
                path = paths[volume["name"]]
                command = [str(folder) if word == path else word for word in command]
        return command
