"""How a burst of Workspaces fares: N applied at once, the real controller, and next to nothing around it.

    python -m tests.benchmarks.burst [--cases 50/0.5 200/0.5 50/30 1000/0.5] [--rest 60]

A case N/D is N Workspaces whose claims become ready D seconds after they were created, with a bare Node each; a
Deployment is ready 1 s after it appeared. Each case has an etcd and API server of its own with the chart's CRDs,
Catalog, policies and RBAC, and a controller process as the chart starts it, with a token of its service account. Times
run from the moment at which a Workspace's POST was sent to the watch event that shows what is waited for. Requests are
read from the API server's audit log; where the time goes is told by the CPU of each process. Nothing is asserted; aims:
all ready within 2.2 s (50), 6 s (200), 35 s (50/30) and 25 s (1,000), 11 requests per Workspace, none but watches at
rest, under 130 MiB at 200 Workspaces, under 200 MiB and 1 % of a core at 1,000.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.workspace.bare import ROOT, BareCluster, workspace
from tests.cluster.workspace.stand_ins.following import Follower, Later, Obj
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import Deployments
from tests.eventually import eventually

from kaito_hooks.runtime import Client
from kaito_hooks.workspace.__main__ import EVENTS_GATHERED
from kaito_hooks.workspace.resources import WORKSPACE
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress

PLACE = "burst"
CONTROLLER = "controller"
WORKLOAD_DELAY = 1.0
POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, userGroups: ["system:serviceaccounts:kaito"]}
- {level: None}
"""


@dataclass(slots=True)
class Times:
    """Monotonic seconds by Workspace name."""

    created: dict[str, float] = field(default_factory=dict)
    claim: dict[str, float] = field(default_factory=dict)
    deployment: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)


class TimedProvisioner(Provisioner):
    """Notes when a Workspace's first claim was seen."""

    times: Times

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            self.times.claim.setdefault(new["metadata"]["labels"]["kaito.sh/workspace"], time.monotonic())
        super().changed(old, new)


class TimedWorkloads(Deployments):
    """Notes when a Workspace's Deployment was seen."""

    times: Times

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            self.times.deployment.setdefault(new["metadata"]["name"], time.monotonic())
        super().changed(old, new)


class Readiness(Follower):
    """Notes when a Workspace was seen to be ready."""

    def __init__(self, client: Client, times: Times) -> None:
        super().__init__(client, WORKSPACE)
        self._times = times

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        conditions = ((new or {}).get("status") or {}).get("conditions") or ()
        if new is not None and any(c["type"] == "WorkspaceReady" and c["status"] == "True" for c in conditions):
            self._times.ready.setdefault(new["metadata"]["name"], time.monotonic())


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the controller; ``what`` is verb and resource, ``code`` what was answered."""

    what: str
    code: int


class AuditLog:
    """The controller's requests in the order in which they ended; a watch counts when it begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[str] = set()
        self._offset = 0

    def read(self) -> list[Request]:
        """The requests since the last call."""
        found = []
        with self._path.open() as log:
            log.seek(self._offset)
            while (line := log.readline()).endswith("\n"):
                self._offset += len(line.encode())
                entry = json.loads(line)
                if entry["auditID"] not in self._seen:
                    self._seen.add(entry["auditID"])
                    found.append(_request(entry))
        return found


def _request(entry: Mapping[str, object]) -> Request:
    target = entry.get("objectRef")
    assert target is None or isinstance(target, Mapping)
    parts = [target.get(key) for key in ("resource", "subresource")] if target else [entry.get("requestURI")]
    status = entry.get("responseStatus")
    code = int(status.get("code", 0)) if isinstance(status, Mapping) else 0
    return Request(f"{entry['verb']} {'/'.join(str(p) for p in parts if p)}", code)


@dataclass(frozen=True, slots=True)
class Load:
    """What a process has used: CPU seconds, and MiB of memory now and at most."""

    cpu: float
    resident: float
    peak: float

    @classmethod
    def of(cls, pid: int) -> Load:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        memory = [int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")]
        return cls((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), *memory)


def measure(count: int, delay: float, *, rest: float, programs: Mapping[str, Path], folder: Path) -> None:
    """One case, printed."""
    policy, log = folder / "audit-policy.yaml", folder / "audit.log"
    policy.write_text(POLICY)
    arguments = (f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    with BareCluster.start(folder, programs=programs, api_server_arguments=arguments) as cluster, Later() as later:
        cluster.create_namespace(PLACE)
        times = Times()
        others = Client.load(kubeconfig=str(cluster.account_of_all_rights("stand-ins", PLACE)))
        provisioner = TimedProvisioner(others, later, delay=delay, labelled=True, gives_back=False)
        workloads = TimedWorkloads(others, later, delay=WORKLOAD_DELAY)
        provisioner.times = workloads.times = times
        controller = cluster.start_controller(kubeconfig=cluster.controller_account())
        with provisioner, workloads, Readiness(cluster.admin, times):
            audit = AuditLog(log)
            leases: list[Request] = []

            def leads() -> bool:
                leases.extend(audit.read())
                return any(r.what == "create leases" for r in leases)

            eventually(leads, timeout=60, every=0.1, what="the controller does not lead")
            processes = _processes(cluster, controller.pid)
            before = _loads(processes)
            _apply(cluster.admin, count, times)
            eventually(lambda: len(times.ready) == count, timeout=delay + 300, every=0.05)
            burst = _loads(processes)
            requests = _settled(audit)
            settled = _loads(processes)
            began = time.monotonic()
            idle = Load.of(controller.pid)
            time.sleep(rest)
            minutes = (time.monotonic() - began) / 60
            after = Load.of(controller.pid)
            resting = audit.read()
    _print_case(count, delay, times, requests)
    first = min(times.created.values())
    print(f"  all ready after {max(times.ready.values()) - first:.1f} s; claims ever made: {len(provisioner.made)}")
    print(f"  at rest, per minute: {_per(resting, minutes) or 'nothing'}")
    print(f"  milliseconds of CPU per Workspace until all were ready: {_shares(before, burst, count)}")
    print(f"  and until all Events were written: {_shares(before, settled, count)}")
    memory = (
        f"{before[CONTROLLER].resident:.0f} MiB before, {after.resident:.0f} MiB after, {after.peak:.0f} MiB at most"
    )
    busy = f"{burst[CONTROLLER].cpu - before[CONTROLLER].cpu:.1f} s of CPU for the burst"
    print(f"  controller: {memory}; {busy}, {(after.cpu - idle.cpu) / minutes / 60:.2%} of a core at rest", flush=True)


def _processes(cluster: BareCluster, controller: int) -> dict[str, int]:
    """All that shares the machine's cores in a burst, by what it is called in the output."""
    pids = {child.name: child.pid for child in cluster.plane.children if child.pid is not None}
    return {**pids, CONTROLLER: controller, "stand-ins": os.getpid()}


def _shares(before: Mapping[str, Load], after: Mapping[str, Load], count: int) -> str:
    """What each process used per Workspace, in milliseconds of CPU, the whole last."""
    used = {name: 1000 * (after[name].cpu - load.cpu) / count for name, load in before.items()}
    return ", ".join(f"{name} {share:.1f}" for name, share in {**used, "in all": sum(used.values())}.items())


def _loads(processes: Mapping[str, int]) -> dict[str, Load]:
    return {name: Load.of(pid) for name, pid in processes.items()}


def _apply(client: Client, count: int, times: Times) -> None:
    def one(number: int) -> None:
        name = f"ws-{number:04d}"
        times.created[name] = time.monotonic()
        client.create(WORKSPACE, workspace(name, PLACE))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(count)))


def _settled(audit: AuditLog) -> list[Request]:
    """All requests until only the lease was renewed for some seconds: Events are written after the rest."""
    found: list[Request] = []
    quiet = time.monotonic()

    def is_quiet() -> bool:
        nonlocal quiet
        news = audit.read()
        found.extend(news)
        if any(not _is_fixed(r) for r in news):
            quiet = time.monotonic()
        return time.monotonic() - quiet >= EVENTS_GATHERED + 2.0

    eventually(is_quiet, timeout=120, every=0.2, what="the controller never rests")
    return found


def _is_fixed(request: Request) -> bool:
    """What does not depend on Workspaces: the lease and the watches."""
    return request.what.endswith(" leases") or request.what.startswith("watch ")


def _print_case(count: int, delay: float, times: Times, requests: Iterable[Request]) -> None:
    print(f"\n{count} Workspaces, claims ready after {delay:g} s")
    print(f"  {'seconds from creation to':<26}{'p50':>8}{'p99':>8}{'max':>8}")
    for label, moments in (("claim", times.claim), ("Deployment", times.deployment), ("WorkspaceReady", times.ready)):
        taken = sorted(moments[name] - created for name, created in times.created.items())
        p50, p99 = (taken[min(len(taken) - 1, int(len(taken) * part))] for part in (0.5, 0.99))
        print(f"  {label:<26}{p50:>8.2f}{p99:>8.2f}{taken[-1]:>8.2f}")
    counted = [r for r in requests if not _is_fixed(r)]
    print(f"  requests per Workspace: {len(counted) / count:.2f}: {_per(counted, count)}")
    refused = collections.Counter(f"{r.what} {r.code}" for r in counted if r.code >= 400)
    if refused:
        print(f"  refused: {', '.join(f'{number} {what}' for what, number in refused.most_common())}")


def _per(requests: Iterable[Request], number: float) -> str:
    counted = collections.Counter(r.what for r in requests)
    return ", ".join(f"{amount / number:.2f} {what}" for what, amount in counted.most_common())


def main() -> None:
    """Runs the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["50/0.5", "200/0.5", "50/30", "1000/0.5"], metavar="N/D")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds for which it is watched at rest")
    given = parser.parse_args()
    names = [*gotools.CONTROL_PLANE, *gotools.CHARTS]
    programs = gotools.ensure(names, tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))
    for case in given.cases:
        count, delay = case.split("/")
        with tempfile.TemporaryDirectory() as folder:
            measure(int(count), float(delay), rest=given.rest, programs=programs, folder=Path(folder))


if __name__ == "__main__":
    main()
