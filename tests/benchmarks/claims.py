"""How the gpu-provisioner fares with many claims at once: asked for, made ready, and given back together.

    python -m tests.benchmarks.claims [--cases 200/10 100/10 1/10] [--rest 60]

A case N/S is N Machines on an emulated AKS whose clock runs S times as fast as the real one; by that clock a pool takes
3 to 5 minutes to come and 2 to 3 to go. The provisioner is the real process with the chart's configuration, rights and
leader election; its two intervals that count minutes are divided by S, so that as many listings and sweeps fall into
the life of a claim as at S = 1, where nothing is divided. API server and controller manager are real, Nodes are bare.
API requests are read from the API server's audit log, ARM requests from the emulator's. Nothing is asserted; aims:
less than 6 ARM requests per claim over its whole life at 200 claims, less than 120 MiB.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.burst import POLICY, AuditLog, Load, Request
from tests.cluster.provisioner import conftest as parts
from tests.cluster.provisioner.accounts import Account
from tests.cluster.provisioner.test_many_claims import REALISTIC, Crowd, requests_by_verb, scaled
from tests.eventually import eventually

from kaito_hooks.api.claim import Claim
from kaito_hooks.runtime import Client
from kaito_local.aks import Emulator, Limits
from kaito_local.aks import Settings as CloudSettings
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress

LEASES = {
    "LEADER_ELECTION_LEASE_DURATION": "15s",
    "LEADER_ELECTION_RENEW_DEADLINE": "10s",
    "LEADER_ELECTION_RETRY_PERIOD": "2s",
}


def measure(count: int, speed: float, *, rest: float, programs: Mapping[str, Path], folder: Path) -> None:
    """One case, printed."""
    policy, log = folder / "audit-policy.yaml", folder / "audit.log"
    policy.write_text(POLICY)
    arguments = (f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    settings = replace(parts.PLANE, api_server_arguments=arguments)
    with ControlPlane.start(folder / "plane", programs=programs, settings=settings) as plane:
        parts.install_definitions(plane)
        chart = parts.renderer(programs["helm"])
        provisioners = parts.Provisioners(plane, parts.install_account(plane, chart), chart, folder)
        cloud_settings = CloudSettings(
            directory=folder / "cloud",
            machines="bare",
            kubeconfig=plane.kubeconfig,
            durations=REALISTIC,
            clock_speed=speed,
            limits=Limits(pools=count),
        )
        with Emulator(cloud_settings) as cloud:
            try:
                live(count, speed, rest=rest, plane=plane, cloud=cloud, provisioners=provisioners, audit=AuditLog(log))
            finally:
                provisioners.close()


def live(
    count: int,
    speed: float,
    *,
    rest: float,
    plane: ControlPlane,
    cloud: Emulator,
    provisioners: parts.Provisioners,
    audit: AuditLog,
) -> None:
    """The claims' whole life, and a while in the middle in which nothing happens."""
    admin = Client.load(kubeconfig=str(plane.kubeconfig))
    crowd = Crowd(parts.Claims(admin, "Machine"), admin, count)
    process = provisioners.start(cloud, lead=True, environment=LEASES, **scaled(speed)).process
    requests: list[Request] = []

    def leads() -> bool:
        requests.extend(audit.read())
        return any(r.what == "create leases" for r in requests)

    eventually(leads, timeout=60, every=0.1, what="the provisioner does not lead")
    before, began = Load.of(process.pid), time.monotonic()
    crowd.ask()
    eventually(lambda: len(cloud.agent_pools()) == count, timeout=600, every=0.05)
    bought = time.monotonic() - began
    crowd.until_ready(timeout=900)
    ready = time.monotonic() - began
    # The last thing that happens to a claim before it rests: its Node's GPUs show up.
    eventually(lambda: all(_has_gpus(claim) for claim in crowd.found().values()), timeout=120, every=0.5)
    launched = Load.of(process.pid)
    requests += audit.read()
    asked, quiet = requests_by_verb(cloud), time.monotonic()
    time.sleep(rest)
    minutes, idle = (time.monotonic() - quiet) / 60, Load.of(process.pid)
    resting = requests_by_verb(cloud) - asked
    api_resting = audit.read()
    ending = time.monotonic()
    crowd.delete()
    crowd.until_gone(timeout=900)
    gone, after = time.monotonic() - ending, Load.of(process.pid)
    requests += audit.read()
    made = requests_by_verb(cloud) - resting
    print(f"\n{count} claims, the cloud's clock {speed:g} times as fast")
    print(f"  seconds until all pools were asked for {bought:.1f}, all Ready {ready:.1f}; deleted {gone:.1f}")
    print(f"  ARM requests per claim: {made.total() / count:.2f}: {_per(made, count)}")
    counted = collections.Counter(r.what for r in requests if not _is_fixed(r))
    print(f"  API requests per claim: {counted.total() / count:.2f}: {_per(counted, count)}")
    refused = collections.Counter(f"{r.what} {r.code}" for r in requests if r.code >= 400 and not _is_fixed(r))
    print(f"  refused per claim: {_per(refused, count) or 'none'}")
    rested = collections.Counter(r.what for r in api_resting)
    print(f"  at rest, per minute: {_per(resting, minutes) or 'nothing'} of ARM; {_per(rested, minutes)}")
    print(
        f"  provisioner: {before.resident:.0f} MiB before, {launched.resident:.0f} MiB with all Ready, "
        f"{after.peak:.0f} MiB at most; seconds of CPU: {launched.cpu - before.cpu:.1f} to Ready, "
        f"{after.cpu - idle.cpu:.1f} to the end; {(idle.cpu - launched.cpu) / minutes / 60:.2%} of a core at rest"
    )
    print(f"  {Account.of(cloud, admin).told(crowd.names)}", flush=True)


def _has_gpus(claim: Claim) -> bool:
    return "nvidia.com/gpu" in (claim.object["status"].get("capacity") or {})


def _is_fixed(request: Request) -> bool:
    """What does not depend on claims: the lease and the watches."""
    return request.what.endswith(" leases") or request.what.startswith("watch ")


def _per(counted: Mapping[str, int], number: float) -> str:
    ordered = sorted(counted.items(), key=lambda item: -item[1])
    return ", ".join(f"{amount / number:.2f} {what}" for what, amount in ordered)


def main() -> None:
    """Runs the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["200/10", "100/10", "1/10"], metavar="N/S")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds for which it is watched at rest")
    given = parser.parse_args()
    names = [*gotools.CONTROL_PLANE, *gotools.CHARTS]
    programs = gotools.ensure(names, tools=parts.ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))
    for case in given.cases:
        count, speed = case.split("/")
        with tempfile.TemporaryDirectory() as folder:
            measure(int(count), float(speed), rest=given.rest, programs=programs, folder=Path(folder))


if __name__ == "__main__":
    main()
