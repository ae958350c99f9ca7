"""`kaito demo`: the quick start from nothing to an answer, with every command that it runs shown."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from kaito_local.cluster.local_cluster import LocalCluster, UpOptions
from kaito_local.cluster.state import DEFAULT_NAME
from kaito_local.errors import CommandError, StartError
from kaito_local.machine.folders import ROOT

EXAMPLE = ROOT / "examples" / "inference" / "phi-3-mini.yaml"
QUESTION = "What is Kubernetes?"
PHASES = '{range .status.startup.phases[*]}{.name}: {.seconds} s{"\\n"}{end}'
"""What kubectl prints of the start, as a JSONPath."""
_READY_WITHIN = 900.0
_ANSWER_WITHIN = 60.0


def run(cluster: LocalCluster, options: UpOptions) -> int:
    """Brings the cluster up, applies the quick start's Workspace, waits until it is ready, and asks it a question.

    Raises StartError with the Workspace's own words when it is not ready in time.
    """
    cluster.up(options)
    name = yaml.safe_load(EXAMPLE.read_text())["metadata"]["name"]
    manifest = _shown_path(EXAMPLE)
    _show("kubectl", "apply", "-f", manifest)
    print(cluster.kubectl("apply", "-f", str(EXAMPLE)), end="", flush=True)
    _show("kubectl", "get", "workspace", name, "--watch")
    _watch(cluster, name)
    start = ("get", "workspace", name, "-o", f"jsonpath={PHASES}")
    _show("kubectl", *start)
    print(cluster.kubectl(*start), end="", flush=True)
    address = cluster.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
    answer = _ask(address)
    print(answer, flush=True)
    print(_next_steps(cluster, name=name, manifest=manifest))
    return 0


def _watch(cluster: LocalCluster, name: str) -> None:
    """Prints the Workspace's row whenever it says something else, until it is ready."""
    deadline = time.monotonic() + _READY_WITHIN
    shown: list[str] = []
    while True:
        lines = cluster.kubectl("get", "workspace", name).splitlines()
        # The last column is the age; it alone is no news.
        columns = lines[-1].split()[:-1]
        if columns != shown:
            print(lines[-1] if shown else "\n".join(lines), flush=True)
            shown = columns
        conditions = json.loads(cluster.kubectl("get", "workspace", name, "-o", "json"))
        states = {c["type"]: c for c in conditions.get("status", {}).get("conditions", [])}
        if states.get("WorkspaceReady", {}).get("status") == "True":
            return
        if time.monotonic() > deadline:
            said = "; ".join(f"{kind} {c['status']}: {c.get('message', '')}" for kind, c in states.items())
            raise StartError(f"the Workspace {name} is not ready after {_READY_WITHIN:.0f} s: {said or 'no condition'}")
        time.sleep(0.5)


def _ask(address: str) -> str:
    body = json.dumps({"prompt": QUESTION})
    command = ["curl", "-sS", "-X", "POST", f"http://{address}/chat"]
    command += ["-H", "accept: application/json", "-H", "Content-Type: application/json", "-d", body]
    _show(*command)
    # The cluster's addresses are this machine's own business: no proxy knows them.
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    deadline = time.monotonic() + _ANSWER_WITHIN
    while True:
        done = subprocess.run(
            [*command, "--fail-with-body", "--max-time", "60"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout.strip()
        if time.monotonic() > deadline:
            raise CommandError(f"no answer from http://{address}/chat: {(done.stderr + done.stdout).strip()}")
        time.sleep(0.5)


def _next_steps(cluster: LocalCluster, *, name: str, manifest: str) -> str:
    option = "" if cluster.name == DEFAULT_NAME else f" --name {cluster.name}"
    kaito = _shown_path(Path(sys.executable).parent / "kaito")
    return f"""
That was the real thing: to go on,

  eval "$({kaito} env{option})"
  kubectl get workspace,machines,nodes,pods
  kubectl delete workspace {name}        # gives the node back
  {kaito} aks pools{option}                        # what the cloud bills for
  {kaito} down{option}                             # stops all of it, leaving nothing behind"""


def _show(*command: str) -> None:
    print(f"\n$ {shlex.join(command)}", flush=True)


def _shown_path(path: Path, *, start: Sequence[Path] = ()) -> str:
    """Relative where that is shorter to type."""
    relative = os.path.relpath(path, Path.cwd())
    return str(path) if relative.startswith("..") else relative
