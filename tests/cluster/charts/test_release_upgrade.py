"""A release after the last one: upgraded, rolled back, upgraded again and uninstalled under twenty live Workspaces.

helm, the API server, the scheduler and both releases' controllers are the real ones, and hooks run with the rights of
their Pods; stand-ins are the provisioner, the kubelets and the node that hooks run on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.charts.helm import Helm
from tests.cluster.charts.hook_node import HookNode
from tests.cluster.charts.releases import CHARTS, NAMESPACE, Controller, Release, crds
from tests.cluster.workspace.conftest import submit, until, workspace
from tests.cluster.workspace.stand_ins.following import Later, Obj
from tests.cluster.workspace.stand_ins.kubelet import Kubelet
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.eventually import PATIENCE, eventually, never
from tests.helm_versions import program

from kaito_hooks.runtime import Client, NotFound, Resource, TooManyRequests
from kaito_hooks.workspace.resources import DEPLOYMENT, MACHINE, NODE, POD, STATEFUL_SET, WORKSPACE
from kaito_local.cluster.controlplane import ControlPlane, Settings

CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease", True)
PLACE = "models"
LIVE = 20
TEMPLATED = 3
"""So many of them are templates, the others presets."""


@pytest.fixture(scope="module", params=["helm 3", pytest.param("helm 4", marks=pytest.mark.soak)])
def world(
    request: pytest.FixtureRequest, programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("releases")
    settings = Settings(node_grace=3600.0)
    with ControlPlane.start(folder / "plane", programs=programs, settings=settings) as plane:
        found = World(plane, folder, program(request.param))
        with found.later, found.hooks, found.provisioner, found.kubelet:
            # The Pods of hooks are the hook node's.
            found.kubelet.report(NAMESPACE, lambda pod: pod.get("status") or {})
            found.kubelet.report(CHARTS["gpu-provisioner"], lambda pod: pod.get("status") or {})
            yield found
            found.controller.stop()


class World:
    """A cluster, two releases, and what runs in it."""

    def __init__(self, plane: ControlPlane, folder: Path, helm: Path) -> None:
        self.plane, self.helm = plane, Helm(plane, helm)
        self.before, self.next = Release.before(folder), Release.next(folder, helm)
        self.admin = Client.load(kubeconfig=str(plane.kubeconfig))
        self.controller = Controller(plane, self.admin, folder)
        self.later = Later()
        # Both follow kinds that the charts bring.
        for release, chart in ((self.before, "kaito"), (self.before, "gpu-provisioner")):
            self.helm("install", chart, str(release.charts[chart]), "-n", CHARTS[chart], "--create-namespace")
        for kind in (WORKSPACE, MACHINE):
            eventually(lambda kind=kind: self.admin.list(kind), every=0.1, despite=(NotFound, TooManyRequests))
        self.hooks = HookNode(plane, self.admin, folder)
        self.provisioner, self.kubelet = Provisioner(self.admin, self.later), Kubelet(self.admin, self.later)

    def upgrade(self) -> None:
        """Both charts to the next release, with their hooks, and its controller."""
        for chart, namespace in CHARTS.items():
            assert "STATUS: deployed" in self.helm("upgrade", chart, str(self.next.charts[chart]), "-n", namespace)
        self.controller.start(self.next)

    def roll_back(self) -> None:
        """Both charts to the release before, and its controller."""
        for chart, namespace in CHARTS.items():
            self.helm("rollback", chart, "-n", namespace)
        self.controller.start(self.before)

    def workloads(self) -> dict[str, Any]:
        """Of each workload its uid, its generation and its Pod template; of each Pod its uid and node."""
        found: dict[str, Any] = {}
        for kind in (DEPLOYMENT, STATEFUL_SET):
            for obj in self.admin.list(kind, namespace=PLACE).items:
                metadata = obj["metadata"]
                found[f"{kind.kind} {metadata['name']}"] = (
                    *(metadata["uid"], metadata["generation"]),
                    obj["spec"]["template"],
                )
        for pod in self.admin.list(POD, namespace=PLACE).items:
            found[f"Pod {pod['metadata']['name']}"] = (pod["metadata"]["uid"], pod["spec"].get("nodeName"))
        return found

    def supply(self) -> dict[str, tuple[str, bool]]:
        """Of each claim and each of its Nodes the uid, and whether it is going."""
        objs = [(kind.kind, obj) for kind in (MACHINE, NODE) for obj in self.admin.list(kind).items]
        return {
            f"{kind} {obj['metadata']['name']}": (obj["metadata"]["uid"], "deletionTimestamp" in obj["metadata"])
            for kind, obj in objs
            if obj["metadata"]["name"] != HookNode.name
        }

    def conditions(self, kind: str) -> set[str]:
        """``status reason`` of that condition of all Workspaces."""
        found = self.admin.list(WORKSPACE, namespace=PLACE).items
        return {
            next((f"{c['status']} {c['reason']}" for c in w["status"]["conditions"] if c["type"] == kind), "none")
            for w in found
        }

    def all_ready(self) -> bool:
        return {condition.split()[0] for condition in self.conditions("WorkspaceReady")} == {"True"}

    def leader(self) -> str:
        return str(self.admin.get(LEASE, "kaito-leader-election", namespace=NAMESPACE)["spec"].get("holderIdentity"))


def test_twenty_live_workspaces_outlive_an_upgrade_a_rollback_and_a_refused_uninstallation(world: World) -> None:
    admin, helm = world.admin, world.helm
    world.plane.kubectl("create", "namespace", PLACE)
    world.controller.start(world.before)
    live = [submit(admin, one_of_many(number)) for number in range(LIVE)]
    for obj in live:
        until(admin, obj, "WorkspaceReady", timeout=3 * PATIENCE)
    workloads, supply = world.workloads(), world.supply()
    assert sum(name.startswith("Machine ") for name in supply) == LIVE
    assert sum(name.startswith("Pod ") for name in workloads) == LIVE

    def undisturbed() -> bool:
        return (world.workloads(), world.supply()) == (workloads, supply)

    world.upgrade()
    # Each has been looked at by the next release, which names images of its own.
    eventually(
        lambda: world.conditions("WorkloadUpToDate") == {"False PlatformChanged"},
        timeout=2 * PATIENCE,
        what=lambda: f"{world.conditions('WorkloadUpToDate')}\n{world.controller.log()}",
    )
    assert undisturbed()
    assert world.all_ready()
    for name, wanted in crds().items():
        for part, value in wanted["spec"].items():
            found = admin.get(CRD, name)["spec"][part]
            assert found == value or part == "names", f"{name} .spec.{part}"

    world.roll_back()
    eventually(lambda: world.before.version in world.leader(), what=world.controller.log)
    for obj in live:
        touch(admin, obj)
    never(lambda: not undisturbed(), within=6.0, every=0.5)
    assert world.all_ready()

    world.upgrade()
    eventually(lambda: world.next.version in world.leader(), what=world.controller.log)
    for chart, namespace in CHARTS.items():
        said = helm("uninstall", chart, "-n", namespace, check=False)
        assert f"{LIVE} {'Workspaces' if chart == 'kaito' else 'Machines'} (" in said
        # As the sentence says, which knows the revision: without one, helm would go to the one before.
        [way_back] = re.findall(r"helm (rollback .*) makes it whole", said)
        helm(*way_back.split())
        assert chart_of(helm("list", "-n", namespace)) == f"{chart}-{world.next.version}"
    never(lambda: not undisturbed(), within=3.0, every=0.5)


def test_nothing_but_the_crds_is_left_when_the_last_workspace_is_gone(world: World) -> None:
    admin, helm = world.admin, world.helm
    assert world.leader()
    world.plane.kubectl("delete", "workspaces", "--all", "-n", PLACE, "--timeout=120s", timeout=150)
    assert not [name for name in world.supply() if name.startswith("Machine ")]
    eventually(lambda: world.workloads() == {}, what=lambda: f"left: {sorted(world.workloads())}")
    world.controller.stop()
    for chart, namespace in CHARTS.items():
        helm("uninstall", chart, "-n", namespace)
        left = world.plane.kubectl(
            *(
                "get",
                "clusterroles,clusterrolebindings,validatingadmissionpolicies,catalogs,deployments,jobs,configmaps",
            ),
            *("--all-namespaces", "--selector", f"app.kubernetes.io/instance={chart}", "--output", "name"),
        )
        assert left == ""
    found = {crd["metadata"]["name"]: crd for crd in admin.list(CRD).items}
    assert found.keys() == crds().keys()
    assert not any("deletionTimestamp" in crd["metadata"] for crd in found.values())


def one_of_many(number: int) -> Obj:
    """A Workspace with a node of its own."""
    name = f"m{number:02}"
    found = workspace(name, PLACE)
    found["resource"]["labelSelector"] = {"matchLabels": {"apps": name}}
    if number < TEMPLATED:
        container = {"name": "app", "image": "nginx", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
        found["inference"] = {"template": {"spec": {"containers": [container]}}}
    return found


def chart_of(listing: str) -> str:
    """The column CHART of ``helm list`` of one release."""
    head, row = listing.splitlines()
    return row[head.index("CHART") :].split()[0]


def touch(admin: Client, obj: Obj) -> None:
    """A change that asks for nothing, at which a controller looks at the Workspace again."""
    metadata = obj["metadata"]
    mark = {"metadata": {"annotations": {"test/touched": "yes"}}}
    admin.patch(WORKSPACE, metadata["name"], mark, namespace=metadata["namespace"])
