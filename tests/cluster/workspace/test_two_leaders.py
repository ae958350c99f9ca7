"""Two controllers that both believe that they lead, as in a bad roll-over, and a hundred Workspaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.cluster.workspace.bare import BareCluster, workspace
from tests.cluster.workspace.stand_ins.following import Later
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import Deployments
from tests.eventually import eventually

from kaito_hooks.workspace.resources import MACHINE, WORKSPACE

COUNT = 100
PLACE = "crowd"


@pytest.fixture
def cluster(programs: Mapping[str, Path], tmp_path: Path) -> Iterator[BareCluster]:
    with BareCluster.start(tmp_path, programs=programs) as found:
        found.create_namespace(PLACE)
        yield found


# A crowd; eight Workspaces under two leaders: test_workspace_faults.py.
@pytest.mark.soak
def test_two_leaders_buy_a_hundred_workspaces_a_hundred_claims(cluster: BareCluster) -> None:
    admin = cluster.admin
    with (
        Later() as later,
        Provisioner(admin, later, delay=0.5, labelled=True, gives_back=False) as provisioner,
        Deployments(admin, later, delay=0.5) as workloads,
    ):
        for _ in range(2):
            cluster.start_controller(lead=False)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: admin.create(WORKSPACE, workspace(f"w{n}", PLACE)), range(COUNT)))

        def ready() -> bool:
            found = [
                c
                for ws in admin.list(WORKSPACE, namespace=PLACE).items
                for c in (ws.get("status") or {}).get("conditions") or ()
                if c["type"] == "WorkspaceReady" and c["status"] == "True"
            ]
            return len(found) == COUNT

        eventually(ready, timeout=120, every=0.5, what="not all Workspaces are ready")
        # Every claim and Deployment that ever was, also one that is gone again.
        assert sorted(provisioner.made.values()) == sorted((PLACE, f"w{n}") for n in range(COUNT))
        assert len(workloads.seen) == COUNT
        for n in range(COUNT):
            admin.delete(WORKSPACE, f"w{n}", namespace=PLACE)
        eventually(lambda: not admin.list(WORKSPACE).items, timeout=120, every=0.5, what="a Workspace stays")
        assert admin.list(MACHINE).items == []
        assert len(provisioner.made) == COUNT
