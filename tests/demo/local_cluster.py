"""A running local cluster, driven as a person would: `kaito`, `kubectl`, `helm`, `curl`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
KAITO = Path(sys.executable).parent / "kaito"
TEMPLATE = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: %(name)s}}}
inference:
  template:
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: curlimages/curl
        command: [sleep, "3600"]
        securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""
"""A Workspace that has a node without the time that a model takes to load."""


@dataclass(frozen=True)
class Cluster:
    """A running local cluster; `environment` is what `kaito env` prints."""

    name: str
    environment: dict[str, str] = field(repr=False)

    def run(self, *command: str, stdin: str | None = None, check: bool = True, timeout: float = 180) -> str:
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 180) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, check=check, timeout=timeout)

    def kaito(self, *arguments: str, timeout: float = 600) -> str:
        return self.run(str(KAITO), *arguments, "--name", self.name, timeout=timeout)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def find(self, *arguments: str) -> Any | None:
        said = self.kubectl("get", *arguments, "-o", "json", "--ignore-not-found")
        return json.loads(said) if said.strip() else None

    def pools(self) -> list[dict[str, Any]]:
        return json.loads(self.kaito("aks", "pools"))

    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.kaito("aks", "requests").splitlines() if line.strip()]

    def pools_created(self) -> list[str]:
        """Paths of the PUTs that made an agent pool (201), by the cloud's own log."""
        return [
            entry["path"].split("?")[0]
            for entry in self.requests()
            if entry["method"] == "PUT" and entry["status"] == 201 and "/agentpools/" in entry["path"].lower()
        ]

    def pods(self) -> dict[str, bool]:
        """Whether each Pod of all namespaces is ready, by ``namespace/name``.

        Without those that have ended, are going, or were made by a person and not by a controller.
        """
        found = {}
        for pod in self.get("pods", "--all-namespaces")["items"]:
            metadata, status = pod["metadata"], pod["status"]
            over = status["phase"] in ("Succeeded", "Failed") or "deletionTimestamp" in metadata
            if not over and "ownerReferences" in metadata:
                conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
                found[f"{metadata['namespace']}/{metadata['name']}"] = conditions.get("Ready") == "True"
        return found

    def pods_ready(self) -> dict[str, bool]:
        """The same once all of them are ready: what was rolled a moment ago may still start."""
        return eventually(
            lambda: found if all((found := self.pods()).values()) else {}, every=0.5, what=lambda: f"{self.pods()}"
        )

    def conditions(self, workspace: str, namespace: str = "default") -> dict[str, dict[str, Any]]:
        found = self.find("workspace", workspace, "-n", namespace) or {}
        return {c["type"]: c for c in found.get("status", {}).get("conditions", [])}

    def wait_ready(self, workspace: str, *, seconds: float = 180) -> None:
        def ready() -> bool:
            return self.conditions(workspace).get("WorkspaceReady", {}).get("status") == "True"

        try:
            eventually(ready, timeout=seconds, every=0.5)
        except AssertionError:
            raise AssertionError(f"{workspace} is not ready: {self.explain(workspace)}") from None

    def processes(self, marker: str) -> list[int]:
        """Processes of this cluster whose command line contains `marker`, as this machine numbers them."""
        parents: dict[int, int] = {}
        commands: dict[int, str] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                commands[int(folder.name)] = folder.joinpath("cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
        roots = {int(pid) for pid in re.findall(r"\(all of it\)\s+(\d+)\s", self.kaito("status"))}

        def ours(pid: int) -> bool:
            while pid > 1:
                if pid in roots:
                    return True
                pid = parents.get(pid, 0)
            return False

        return sorted(pid for pid, command in commands.items() if marker in command and ours(pid))

    def pid(self, where: str, program: str) -> int:
        """A process of the cluster itself, by `kaito status`."""
        said = self.kaito("status")
        found = re.search(rf"^\s+{re.escape(where)}\s\s+{re.escape(program)}\s\s+(\d+)\s", said, re.MULTILINE)
        assert found, said
        return int(found[1])

    def explain(self, workspace: str) -> str:
        parts = [self.kubectl("describe", "workspace", workspace, check=False)]
        parts += [self.kubectl("get", "machines,nodes,pods", "-A", "-o", "wide", check=False)]
        parts += [self.kubectl("describe", "pods", "-l", f"kaito.sh/workspace={workspace}", check=False)]
        return "\n".join(parts)

    def chat(self, workspace: str, prompt: str, **generate: Any) -> str:
        address = self.get("service", workspace)["spec"]["clusterIP"]
        body = {"prompt": prompt, "return_full_text": False, "generate_kwargs": {"max_length": 60, **generate}}

        def connected() -> str:
            """A node's kube-proxy hears of a server that has become ready a moment after the Workspace's controller."""
            said = self.run(
                *("curl", "-sS", "-m", "60", "-X", "POST", f"http://{address}/chat"),
                *("-H", "accept: application/json", "-H", "Content-Type: application/json", "-d", json.dumps(body)),
                check=False,
            )
            return "" if said.startswith("curl: (7) ") else said

        said = eventually(connected, every=0.5, what=f"nothing listens at the address of {workspace}")
        answer = json.loads(said)
        assert set(answer) == {"Result"}, said
        return str(answer["Result"])


def kill(pids: list[int]) -> None:
    """kill -9; one may have ended with another that was killed before it."""
    assert pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def environment_of(printed: str) -> dict[str, str]:
    """The variables that `kaito env` prints for eval, as a shell would set them."""
    names = re.findall(r"^export (\w+)=", printed, re.MULTILINE)
    assert {"KUBECONFIG", "PATH", "KAITO_REGISTRY", "KAITO_HOST_IP", "KAITO_ARM_ENDPOINT"} <= set(names), printed
    dump = "\n".join(f'printf "%s\\0" "{name}=${{{name}}}"' for name in names)
    said = subprocess.run(["bash", "-euc", f"{printed}\n{dump}"], capture_output=True, text=True, check=True).stdout
    return dict(pair.split("=", 1) for pair in said.split("\0") if pair)
