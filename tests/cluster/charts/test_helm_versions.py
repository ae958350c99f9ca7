"""Both charts under helm 3, under helm 4, and under one after the other.

helm 4 applies on the server's side, where a field that somebody else holds is a conflict; it waits for hooks by the
status of their objects; and a release remembers how it was applied. helm, the API server and its controllers are the
real ones, and hooks run with the rights of their Pods; there are no nodes but the one that hooks run on.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.cluster.charts.helm import Helm
from tests.cluster.charts.hook_node import HookNode
from tests.cluster.charts.releases import CHARTS, NAMESPACE, ROOT, Release
from tests.eventually import eventually
from tests.helm_versions import PROGRAMS, program

from kaito_hooks.runtime import Client, NotFound, Obj, Resource, TooManyRequests
from kaito_hooks.workspace.resources import MACHINE, WORKSPACE
from kaito_local.cluster.controlplane import ControlPlane

CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", True)
OF_THE_CLUSTER = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")
"""What the API server writes into an object's metadata."""


ROUND_TWO = ("--set", "additionalLabels.round=two")
"""Changes every object."""
_COUNTED = re.compile(r"\.kubernetes\.io/|daemonset\.template\.generation$")
"""Annotations in which controllers count their rounds."""
GUARDED = {"kaito": "1 Workspace (default/guarded) is still there", "gpu-provisioner": "1 Machine (ws1) is still there"}
"""What each chart's guard says."""


class World:
    """A cluster without releases, and what installs them."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane, self.admin = plane, Client.load(kubeconfig=str(plane.kubeconfig))
        self.helm = {version: Helm(plane, program(version)) for version in PROGRAMS}
        self.before, self.next = Release.before(folder), Release.next(folder, program("helm 3"))
        self.hooks = HookNode(plane, self.admin, folder)

    def run(self, version: str, verb: str, release: Release, *options: str) -> None:
        """Installs or upgrades both charts."""
        for chart, namespace in CHARTS.items():
            said = self.helm[version](verb, chart, str(release.charts[chart]), "-n", namespace, *options)
            assert "STATUS: deployed" in said
        for kind in (WORKSPACE, MACHINE):
            eventually(partial(self.admin.list, kind), every=0.1, despite=(NotFound, TooManyRequests))

    def roll_back(self, version: str, *options: str) -> None:
        for chart, namespace in CHARTS.items():
            self.helm[version]("rollback", chart, "-n", namespace, *options)

    def uninstall(self, version: str) -> None:
        for chart, namespace in CHARTS.items():
            self.helm[version]("uninstall", chart, "-n", namespace)

    def objects(self) -> dict[str, Obj]:
        """What stands in the cluster of what both releases say, without what the cluster itself writes."""
        found = {}
        for chart, namespace in CHARTS.items():
            manifest = self.helm["helm 3"]("get", "manifest", chart, "-n", namespace)
            listed = self.plane.kubectl("get", "-f", "-", "-o", "yaml", "-n", namespace, input=manifest)
            for obj in yaml.safe_load(listed)["items"]:
                found[f"{obj['kind']} {obj['metadata']['name']}"] = _asked_for(obj)
        return found

    def labelled(self) -> set[str]:
        """The label that ROUND_TWO gives, of all objects."""
        return {obj["metadata"].get("labels", {}).get("round", "") for obj in self.objects().values()}

    def occupy(self) -> None:
        """A Workspace, and a claim of one."""
        resource = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"a": "b"}}}
        workspace = {"metadata": {"name": "guarded"}, "resource": resource, "inference": {"preset": {"name": "phi-2"}}}
        self.admin.create(WORKSPACE, workspace, namespace="default")
        self.admin.create(MACHINE, {"metadata": {"name": "ws1", "labels": {"kaito.sh/workspace": "guarded"}}})

    def vacate(self) -> None:
        self.admin.delete(WORKSPACE, "guarded", namespace="default")
        self.admin.delete(MACHINE, "ws1")

    def left(self) -> str:
        """Objects of both releases, by name."""
        kinds = "clusterroles,clusterrolebindings,validatingadmissionpolicies,deployments,jobs,configmaps"
        selector = f"app.kubernetes.io/instance in ({', '.join(CHARTS)})"
        return self.plane.kubectl("get", kinds, "--all-namespaces", "--selector", selector, "--output", "name")


@pytest.fixture(scope="module")
def world(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("versions")
    with ControlPlane.start(folder / "plane", programs=programs, scheduler=False) as plane:
        found = World(plane, folder)
        with found.hooks:
            yield found


def _asked_for(obj: Obj) -> Obj:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in OF_THE_CLUSTER}
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {key: text for key, text in annotations.items() if not _COUNTED.search(key)}
    spec = {key: value for key, value in (obj.get("spec") or {}).items() if not key.startswith("clusterIP")}
    return {**{key: value for key, value in obj.items() if key != "status"}, "metadata": metadata, "spec": spec}


def test_helm_4_brings_upgrades_guards_and_takes_both_charts(world: World) -> None:
    admin, helm = world.admin, world.helm["helm 4"]
    world.run("helm 4", "install", world.next, "--create-namespace")
    installed = world.objects()
    said = helm("test", "kaito", "-n", NAMESPACE, check=False)
    assert "Phase:          Succeeded" in said
    assert "kind Workspace: there" in said

    columns = admin.get(CRD, "workspaces.kaito.sh")["spec"]["versions"][0]["additionalPrinterColumns"]
    less = '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]'
    world.plane.kubectl("patch", "crd", "workspaces.kaito.sh", "--type=json", "-p", less)
    # A field that somebody has changed is named, and taken back by who says so.
    world.plane.kubectl("scale", "deployment", "kaito", "-n", NAMESPACE, "--replicas=3")
    said = helm("upgrade", "kaito", str(world.next.charts["kaito"]), "-n", NAMESPACE, *ROUND_TWO, check=False)
    assert re.search(r'conflict with "kubectl"[^\n]*\.spec\.replicas', said), said
    world.run("helm 4", "upgrade", world.next, *ROUND_TWO, "--force-conflicts")
    assert admin.get(DEPLOYMENT, "kaito", namespace=NAMESPACE)["spec"]["replicas"] == 1
    assert world.labelled() == {"two"}
    found = admin.get(CRD, "workspaces.kaito.sh")["spec"]["versions"][0]["additionalPrinterColumns"]
    assert found == columns

    world.occupy()
    for chart, words in GUARDED.items():
        said = helm("uninstall", chart, "-n", CHARTS[chart], check=False)
        assert words in said
        assert "deletionTimestamp" not in admin.get(DEPLOYMENT, chart, namespace=CHARTS[chart])["metadata"]
        [way_back] = re.findall(r"helm (rollback .*) makes it whole", said)
        helm(*way_back.split())
        assert "STATUS: deployed" in helm("status", chart, "-n", CHARTS[chart])
    world.vacate()

    world.roll_back("helm 4", "1")
    assert world.objects() == installed
    world.uninstall("helm 4")
    assert world.left() == ""


def test_helm_4_stops_at_other_crds_that_were_left_and_passes_over_them_where_it_is_told_to(world: World) -> None:
    """helm 3 passes over CRDs that are there, helm 4 applies its own."""
    world.plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "charts" / "kaito" / "crds"))
    newest = world.admin.get(CRD, "workspaces.kaito.sh")["spec"]
    older = ("install", "kaito", str(world.before.charts["kaito"]), "-n", NAMESPACE, "--create-namespace")
    said = world.helm["helm 4"](*older, check=False)
    assert "failed to install CRD" in said
    assert ".spec.versions" in said
    assert world.admin.get(CRD, "workspaces.kaito.sh")["spec"] == newest
    world.helm["helm 4"](*older, "--skip-crds")
    assert world.admin.get(CRD, "workspaces.kaito.sh")["spec"] == newest
    world.helm["helm 4"]("uninstall", "kaito", "-n", NAMESPACE, "--no-hooks")


@pytest.mark.parametrize("version", [pytest.param("helm 3", marks=pytest.mark.soak), "helm 4"])
def test_an_older_chart_leaves_the_crds_of_a_newer_one_and_helm_says_so(
    world: World, tmp_path: Path, version: str
) -> None:
    """This clone's chart with the CRDs of the last release."""
    chart = tmp_path / "kaito"
    shutil.copytree(ROOT / "charts" / "kaito", chart)
    shutil.rmtree(chart / "crds")
    with tarfile.open(world.before.charts["kaito"]) as archive:
        crds = [member for member in archive.getmembers() if member.name.startswith("kaito/crds/")]
        archive.extractall(tmp_path, members=crds, filter="data")
    helm = world.helm[version]
    helm("install", "kaito", str(world.next.charts["kaito"]), "-n", NAMESPACE, "--create-namespace")
    newest = world.admin.get(CRD, "workspaces.kaito.sh")["spec"]
    said = helm("upgrade", "kaito", str(chart), "-n", NAMESPACE, check=False)
    assert "STATUS: deployed" in said
    assert "kept workspaces.kaito.sh as it is: it is of a newer chart, and stored objects would lose status." in said
    assert world.admin.get(CRD, "workspaces.kaito.sh")["spec"] == newest
    helm("uninstall", "kaito", "-n", NAMESPACE)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", ["helm 3", "helm 4"])
def test_a_release_goes_from_one_version_of_helm_to_the_other_and_back(world: World, first: str) -> None:
    other = next(version for version in PROGRAMS if version != first)
    world.run("helm 3", "install", world.next, "--create-namespace")
    clean = world.objects()
    world.uninstall("helm 3")

    # CRDs of the release that follows are there already: helm 4 would stop at them.
    world.run(first, "install", world.before, "--skip-crds")
    world.run(other, "upgrade", world.next)
    assert world.objects() == clean
    world.run(first, "upgrade", world.next, *ROUND_TWO)
    assert world.labelled() == {"two"}
    world.roll_back(other)
    assert world.objects() == clean
    world.roll_back(first)
    assert world.labelled() == {"two"}
    # helm 4 goes on as a release began, unless it is told otherwise.
    world.run("helm 4", "upgrade", world.next, "--reset-values", "--server-side=true")
    assert world.objects() == clean
    world.run("helm 3", "upgrade", world.next, *ROUND_TWO)
    assert world.labelled() == {"two"}
    world.run("helm 4", "upgrade", world.next, "--reset-values")
    assert world.objects() == clean
    world.uninstall(other)
    assert world.left() == ""
