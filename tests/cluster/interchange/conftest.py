"""One Workspace controller and one control plane; who sells the nodes changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.cluster.interchange.providers import GpuProvisioner, KarpenterProvider, Provider
from tests.cluster.provisioner.conftest import Provisioners, account, chart
from tests.cluster.workspace.conftest import VALUES, Chart, Controllers, admin, install, place, plane, renderer
from tests.eventually import PATIENCE, eventually

from kaito_hooks.api.claim import NodeAPI
from kaito_hooks.runtime import Client, Informer, NotFound, Obj
from kaito_hooks.workspace.resources import CLAIM_RESOURCES, NODE, WORKSPACE
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress

__all__ = ["account", "admin", "chart", "place", "plane"]

ROOT = Path(__file__).parents[3]
OURS = ("Machine by gpu-provisioner", "NodeClaim by gpu-provisioner")
KARPENTER = "NodeClaim by Karpenter"


@pytest.fixture(scope="session")
def karpenter_programs() -> Mapping[str, Path]:
    progress = Progress.to(sys.stderr)
    return gotools.ensure(gotools.KARPENTER, tools=ROOT / "tools", cache=cache_folder(), progress=progress)


@pytest.fixture(scope="package")
def kaito(plane: ControlPlane, programs: Mapping[str, Path]) -> Chart:
    """Renders charts/kaito, whose Catalog, policies and RBAC are in the cluster."""
    render = renderer(programs["helm"])
    install(plane, render(VALUES))
    return render


@pytest.fixture(scope="package", params=[*OURS, pytest.param(KARPENTER, marks=pytest.mark.karpenter)])
def provider(
    request: pytest.FixtureRequest,
    plane: ControlPlane,
    account: str,
    chart: Callable[..., list[Obj]],
    kaito: Chart,
    admin: Client,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Provider]:
    """Each provider in turn, and our Workspace controller told by the chart's values to buy from it."""
    # Kubeconfigs are numbered from 0 in both.
    folder, controller_folder = (tmp_path_factory.mktemp(name) for name in ("provider", "controller"))
    if request.param == KARPENTER:
        found = KarpenterProvider.running(
            plane=plane, programs=request.getfixturevalue("karpenter_programs"), folder=folder, admin=admin
        )
    else:
        provisioners = Provisioners(plane, account, chart, folder)
        found = GpuProvisioner.running(
            request.param.split()[0], plane=plane, provisioners=provisioners, folder=folder / "cloud", admin=admin
        )
    controllers = Controllers(plane, kaito, controller_folder)
    with found as running:
        controllers.start(values=running.values)
        yield running
        controllers.close()
        print(controllers.logs()[-6000:])


class Bought:
    """Every claim of a kind that was ever seen, and when."""

    def __init__(self, client: Client, kind: NodeAPI) -> None:
        self._seen: dict[str, tuple[str, float]] = {}
        self._informer = Informer(client, CLAIM_RESOURCES[kind])

    def __enter__(self) -> Bought:
        self._informer.subscribe(self._note)
        self._informer.start()
        assert self._informer.wait_synced(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._informer.stop()

    def _note(self, old: Obj | None, new: Obj | None) -> None:
        if new is not None:
            owner = new["metadata"]["labels"]["kaito.sh/workspace"]
            self._seen.setdefault(new["metadata"]["uid"], (owner, time.monotonic()))

    def times(self, obj: Obj) -> list[float]:
        """When each claim of that Workspace came, in order; seconds."""
        return sorted(at for owner, at in dict(self._seen).values() if owner == obj["metadata"]["name"])


def labelled(obj: Obj) -> str:
    """The selector of what was bought for that Workspace."""
    metadata = obj["metadata"]
    return f"kaito.sh/workspace={metadata['name']},kaito.sh/workspacenamespace={metadata['namespace']}"


def claims_of(admin: Client, provider: Provider, obj: Obj) -> list[Obj]:
    return admin.list(CLAIM_RESOURCES[provider.kind], label_selector=labelled(obj)).items


def nodes_of(admin: Client, obj: Obj) -> list[Obj]:
    return admin.list(NODE, label_selector=labelled(obj)).items


def give_back(admin: Client, provider: Provider, obj: Obj) -> None:
    """Delete the Workspace: when it is gone, nothing bills any more."""
    metadata = obj["metadata"]
    admin.delete(WORKSPACE, metadata["name"], namespace=metadata["namespace"])
    eventually(lambda: _gone(admin, metadata), every=0.1, what=f"{metadata['name']} is not gone")
    assert claims_of(admin, provider, obj) == []
    assert nodes_of(admin, obj) == []
    assert provider.billed() == []


def _gone(admin: Client, metadata: Obj) -> bool:
    try:
        admin.get(WORKSPACE, metadata["name"], namespace=metadata["namespace"])
    except NotFound:
        return True
    return False
