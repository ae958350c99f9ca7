"""What the writes of one Workspace cost the API server and etcd, whoever sends them.

    python -m tests.benchmarks.writes [--count 200] [--watched]

The real controller brings one Workspace to ready, and ends. Then all that it and the stand-ins wrote is written again
for N other Workspaces, one kind of write after the other, by four threads that do nothing else: what the burst would
cost with a controller that costs nothing. ``--watched``: all that the controller follows is watched meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from tests.benchmarks.burst import PLACE, POLICY, Load
from tests.cluster.workspace.bare import ROOT, BareCluster, workspace
from tests.cluster.workspace.stand_ins.following import Later, Obj
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import Deployments
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, Informer, Resource
from kaito_hooks.workspace.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    MACHINE,
    NETWORK_POLICY,
    NODE,
    SERVICE,
    WORKSPACE,
)
from kaito_hooks.workspace.world import World
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress

PATTERN = "pattern-workspace"
"""A name that occurs nowhere else, so that it can be replaced in the text of an object."""
_ASSIGNED = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")

Write = Callable[[str], object]


class Copies:
    """Writes what there is of the pattern for other Workspaces of its kind."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.pattern = client.get(WORKSPACE, PATTERN, namespace=PLACE)
        self._uid = self.pattern["metadata"]["uid"]
        self._made: dict[tuple[str, str], Obj] = {}
        found = [o for o in client.list(MACHINE).items if self._is_of_pattern(o)]
        self._claim = found[0]["metadata"]["name"]

    def writes(self) -> dict[str, Write]:
        """By what they are called, in their order; each is called with the name of a Workspace."""
        status = self.pattern["status"]
        steps: dict[str, Write] = {
            "create workspaces (user)": lambda name: self._create(WORKSPACE, self.pattern, name, without="status"),
            "patch workspaces": self._adopt,
            "create controllerrevisions": self._child(CONTROLLER_REVISION),
            "create machines": self._child(MACHINE, without="status"),
            "update workspaces/status, 1": lambda name: self._say(name, status, "Unknown"),
            "create nodes (stand-in)": self._child(NODE),
            "patch machines/status (stand-in)": self._report(MACHINE, self._claim),
            "create services": self._child(SERVICE, without="status"),
            "create networkpolicies": self._child(NETWORK_POLICY),
            "create deployments": self._child(DEPLOYMENT, without="status"),
            "update workspaces/status, 2": lambda name: self._say(name, status, "False"),
            "patch deployments/status (stand-in)": self._report(DEPLOYMENT, PATTERN),
            "update workspaces/status, 3": lambda name: self._say(name, status, "True"),
            "create events": self._child(EVENT),
        }
        return steps

    def _is_of_pattern(self, obj: Obj) -> bool:
        return PATTERN in json.dumps({**obj, "status": None})

    def _child(self, resource: Resource, *, without: str = "") -> Write:
        namespace = PLACE if resource.namespaced else None
        found = next(o for o in self._client.list(resource, namespace=namespace).items if self._is_of_pattern(o))
        return lambda name: self._create(resource, found, name, without=without)

    def _create(self, resource: Resource, pattern: Obj, name: str, *, without: str = "") -> None:
        metadata = {key: value for key, value in pattern["metadata"].items() if key not in _ASSIGNED}
        if resource == WORKSPACE:
            metadata = {"name": PATTERN, "namespace": PLACE}
        spec = {k: v for k, v in (pattern.get("spec") or {}).items() if not k.startswith("clusterIP")}
        plain = {**pattern, "metadata": metadata} | ({"spec": spec} if spec else {})
        plain.pop(without, None)
        self._made[resource.kind, name] = self._client.create(resource, self._renamed(plain, name))

    def _renamed(self, obj: Obj, name: str) -> Obj:
        made = self._made.get((WORKSPACE.kind, name))
        text = json.dumps(obj).replace(PATTERN, name).replace(self._claim, f"{self._claim[:-5]}{name[-5:]}")
        found: Obj = json.loads(text.replace(self._uid, made["metadata"]["uid"] if made else ""))
        return found

    def _adopt(self, name: str) -> None:
        metadata = self.pattern["metadata"]
        version = self._made[WORKSPACE.kind, name]["metadata"]["resourceVersion"]
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/metadata/finalizers", "value": metadata["finalizers"]},
            {"op": "add", "path": "/metadata/annotations", "value": metadata["annotations"]},
        ]
        written = self._client.patch(WORKSPACE, name, patch, namespace=PLACE, kind="json")
        self._made[WORKSPACE.kind, name] = written

    def _say(self, name: str, status: Obj, value: str) -> None:
        """All of the status, with conditions of that value."""
        workspace = self._made[WORKSPACE.kind, name]
        workspace["metadata"].pop("managedFields", None)
        conditions = [{**condition, "status": value} for condition in status["conditions"]]
        told = self._renamed({**status, "conditions": conditions}, name)
        self._made[WORKSPACE.kind, name] = self._client.update(
            WORKSPACE, {**workspace, "status": told}, subresource="status"
        )

    def _report(self, resource: Resource, pattern: str) -> Write:
        namespace = PLACE if resource.namespaced else None
        status = self._client.get(resource, pattern, namespace=namespace)["status"]

        def write(name: str) -> None:
            made = self._made[resource.kind, name]["metadata"]["name"]
            told = {"status": self._renamed(status, name)}
            self._client.patch(resource, made, told, namespace=namespace, subresource="status")

        return write


def _informers(client: Client) -> list[Informer]:
    """All that the controller follows, with full caches; they end with the control plane."""
    world = World.over(client, "Machine")
    informers: list[Informer] = [getattr(world, field.name) for field in fields(world)]
    for informer in informers:
        informer.start()
    for informer in informers:
        assert informer.wait_synced(PATIENCE)
    return informers


def measure(count: int, *, watched: bool, programs: dict[str, Path], folder: Path) -> None:
    """Write everything, and print what each kind of write took."""
    policy, log = folder / "audit-policy.yaml", folder / "audit.log"
    policy.write_text(POLICY)
    arguments = (f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    with BareCluster.start(folder, programs=programs, api_server_arguments=arguments) as cluster:
        cluster.create_namespace(PLACE)
        client = Client.load(kubeconfig=str(cluster.account_of_all_rights("stand-ins", PLACE)))
        account = cluster.controller_account()
        controller = cluster.start_controller(kubeconfig=account)
        with (
            Later() as later,
            Provisioner(client, later, gives_back=False, labelled=True),
            Deployments(client, later, delay=0.0),
        ):
            client.create(WORKSPACE, workspace(PATTERN, PLACE))
            eventually(lambda: client.list(EVENT, namespace=PLACE).items, timeout=60, every=0.5)
        controller.terminate()
        controller.wait(PATIENCE)
        informers = _informers(Client.load(kubeconfig=str(account))) if watched else []
        writes = Copies(client).writes()
        names = [f"copy-{number:05}" for number in range(count)]
        pids = {child.name: child.pid for child in cluster.plane.children if child.pid is not None}
        print(f"milliseconds of CPU per write, {count} of each{', watched' if watched else ''}")
        print(f"  {'':<36}" + "".join(f"{name:>16}" for name in pids))
        sums = dict.fromkeys(pids, 0.0)
        for what, write in writes.items():
            before = {name: Load.of(pid) for name, pid in pids.items()}
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(write, names))
            used = {name: 1000 * (Load.of(pid).cpu - before[name].cpu) / count for name, pid in pids.items()}
            sums = {name: sums[name] + used[name] for name in pids}
            print(f"  {what:<36}" + "".join(f"{spent:>16.2f}" for spent in used.values()), flush=True)
        print(f"  {'in all':<36}" + "".join(f"{spent:>16.2f}" for spent in sums.values()), flush=True)
        for informer in informers:
            informer.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--watched", action="store_true")
    given = parser.parse_args()
    names = [*gotools.CONTROL_PLANE, *gotools.CHARTS]
    programs = gotools.ensure(names, tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))
    with tempfile.TemporaryDirectory() as folder:
        measure(given.count, watched=given.watched, programs=programs, folder=Path(folder))


if __name__ == "__main__":
    main()
