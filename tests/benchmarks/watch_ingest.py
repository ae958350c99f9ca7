"""How fast an informer takes in watch events, and how much memory a process with a full cache needs.

    python -m tests.benchmarks.watch_ingest [--workspaces 1000] [--events 50000]

The sender is a process of its own that speaks the API server's protocol over TLS (list in pages, then a chunked
watch) as fast as it is read: a real API server on the same two cores would be the thing measured. The receiver is a
process with what a controller has: a client, an informer with an index, a controller whose queue gets every key,
metrics. Nothing is asserted; aims: 5,000 events/s, under 150 MiB.
"""

from __future__ import annotations

import argparse
import json
import ssl
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from kaito_local.machine.pki import Authority, write_kubeconfig

ROOT = Path(__file__).parents[2]


def workspace(number: int, version: int) -> dict[str, Any]:
    """A Workspace as the API server sends one that is ready: about 3 KiB of JSON."""
    name = f"workspace-{number}"

    def condition(kind: str, reason: str) -> dict[str, Any]:
        return {
            "type": kind,
            "status": "True",
            "reason": reason,
            "message": f"{reason} for {name}: everything that was asked for is there and works",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-02T15:04:05Z",
        }

    fields = {
        "f:status": {
            ".": {},
            "f:conditions": {
                f'k:{{"type":"{kind}"}}': {f"f:{field}": {} for field in condition("", "")}
                for kind in ("ResourceReady", "InferenceReady", "WorkspaceReady")
            },
            "f:workerNodes": {},
        }
    }
    return {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {
            "name": name,
            "namespace": f"team-{number % 20}",
            "uid": f"00000000-0000-4000-8000-{number:012d}",
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": "2026-01-02T15:04:05Z",
            "labels": {"app": name, "team": str(number % 20)},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"name": name}) * 8},
            "finalizers": ["workspace.finalizer.kaito.sh"],
            "managedFields": [
                {"manager": "kaito", "operation": "Update", "subresource": "status", "fieldsV1": fields},
            ],
        },
        "resource": {
            "count": 1,
            "instanceType": "Standard_NC24ads_A100_v4",
            "labelSelector": {"matchLabels": {"apps": name}},
            "preferredNodes": [],
        },
        "inference": {
            "preset": {"name": "phi-3-mini-4k-instruct"},
            "adapters": [{"source": {"name": f"adapter-{one}", "image": f"registry/{one}:1"}} for one in range(2)],
        },
        "status": {
            "workerNodes": [f"aks-ws{number:09d}-12345678-vmss000000"],
            "conditions": [
                condition("ResourceReady", "workspaceResourceStatusSuccess"),
                condition("InferenceReady", "WorkspaceInferenceStatusSuccess"),
                condition("WorkspaceReady", "workspaceReady"),
            ],
        },
    }


class Sender(BaseHTTPRequestHandler):
    """Answers one list in pages and one watch."""

    protocol_version = "HTTP/1.1"
    count = 0
    events = 0

    def do_GET(self) -> None:
        if "watch=true" in self.path:
            self._watch()
            return
        start = int(self.path.split("continue=")[1].split("&")[0]) if "continue=" in self.path else 0
        end = min(start + 500, self.count)
        items = [workspace(number, 1) for number in range(start, end)]
        metadata = {"resourceVersion": "1"} | ({"continue": str(end)} if end < self.count else {})
        data = json.dumps({"metadata": metadata, "items": items}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _watch(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        ready = []
        for number in range(self.count):
            line = json.dumps({"type": "MODIFIED", "object": workspace(number, 77777777)}, separators=(",", ":"))
            before, after = line.split("77777777")
            ready.append((before.encode(), after.encode() + b"\n"))
        for event in range(self.events):
            before, after = ready[event % self.count]
            line_ = before + str(event + 2).encode() + after
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line_), line_))
        time.sleep(60)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def send(folder: Path, count: int, events: int) -> None:
    """The sending process; prints its port."""
    Sender.count, Sender.events = count, events
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sender)
    server.daemon_threads = True
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "pki" / "server.crt", folder / "pki" / "server.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


def receive(kubeconfig: str, count: int, events: int) -> None:
    """The receiving process; prints what it measured as JSON."""
    from kaito_hooks.runtime import Client, Controller, Informer, Metrics, Resource, Result

    resource = Resource(group="kaito.sh", version="v1alpha1", plural="workspaces", kind="Workspace", namespaced=True)
    metrics = Metrics()
    informer = Informer(
        Client.load(kubeconfig=kubeconfig),
        resource,
        indexes={"node": lambda obj: obj["status"]["workerNodes"]},
        metrics=metrics,
    )
    controller = Controller("workspace", reconcile=lambda key: Result(), metrics=metrics)
    controller.watch(informer)
    seen = 0

    def note(old: Any, new: Any) -> None:
        nonlocal seen
        seen += 1

    informer.subscribe(note)
    empty = _resident()
    informer.start()
    assert informer.wait_synced(60)
    listed = _resident()
    controller.start()
    began, cpu, first = time.monotonic(), time.process_time(), seen
    while seen < count + events:
        time.sleep(0.005)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    print(
        json.dumps(
            {
                "events": count + events - first,
                "seconds": round(took, 2),
                "events/s": round((count + events - first) / took),
                "events/s of CPU time": round((count + events - first) / cpu),
                "cached": len(informer.list()),
                "MiB before": round(empty, 1),
                "MiB with the list": round(listed, 1),
                "MiB after the events": round(_resident(), 1),
            }
        )
    )


def _resident() -> float:
    """MiB of memory that this process holds."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    """Runs both processes and prints the receiver's figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspaces", type=int, default=1000)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--role", choices=["both", "send", "receive"], default="both", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role == "send":
        send(given.folder, given.workspaces, given.events)
        return
    if given.role == "receive":
        receive(str(given.folder / "kubeconfig"), given.workspaces, given.events)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority.open(folder / "pki")
        authority.server("server", hosts=["127.0.0.1"])
        module = [sys.executable, "-m", "tests.benchmarks.watch_ingest", "--folder", name]
        sizes = ["--workspaces", str(given.workspaces), "--events", str(given.events)]
        sender = subprocess.Popen([*module, *sizes, "--role", "send"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert sender.stdout is not None
            port = sender.stdout.readline().strip()
            user = authority.client("client", user="benchmark")
            write_kubeconfig(
                folder / "kubeconfig", server=f"https://127.0.0.1:{port}", authority=authority, client=user
            )
            done = subprocess.run(
                [*module, *sizes, "--role", "receive"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
        finally:
            sender.kill()
            sender.wait()
    size = len(json.dumps(workspace(0, 1)))
    print(f"{given.workspaces} Workspaces of {size} bytes, over TLS")
    for label, value in json.loads(done.stdout).items():
        print(f"{label:>22}  {value}")


if __name__ == "__main__":
    main()
