"""What no policy has seen is judged by the controller alone: it buys nothing, and says the sentence of the rule."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.cluster.admission.rules_table import Case, catalog_values, creations
from tests.cluster.workspace.bare import BareCluster, workspace
from tests.cluster.workspace.conftest import conditions, until
from tests.cluster.workspace.stand_ins.following import Obj
from tests.eventually import eventually

from kaito_hooks.runtime import Client, Invalid
from kaito_hooks.workspace.resources import MACHINE, WORKSPACE

RULES_OF_THE_CATALOG = ("C4", "C5", "C6", "C7", "C12", "C13", "C23", "C24", "C25", "C34", "C35")
BROKEN = [
    case
    for case in creations()
    if case.rule in RULES_OF_THE_CATALOG and case.refused and case.python and case.default_engine == "transformers"
]


@pytest.fixture(scope="module")
def cluster(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with BareCluster.start(folder, programs=programs, values=catalog_values()) as found:
        eventually(lambda: "Unsupported" in _refusal(found.admin, "probe"), every=0.5, what="the Catalog is not asked")
        # An API server that is away would cost it its lease.
        found.start_controller(lead=False)
        yield found


def test_an_api_server_that_starts_again_refuses_nobody_and_nothing_unfit_is_bought(cluster: BareCluster) -> None:
    cluster.plane.stop_api_server()
    cluster.plane.start_api_server()
    good = cluster.admin.create(WORKSPACE, workspace("good", "default"))
    refused = _refusal(cluster.admin, "unfit", keep=True)
    if refused:
        assert "Unsupported inference preset name phi-9-mega" in refused
    else:
        unfit = workspace("unfit", "default")
        until(cluster.admin, unfit, "WorkspaceReady", status="False", words="Unsupported inference preset name")
    until(cluster.admin, good, "MachineReady", status="Unknown", words="creating 1 machines")
    assert _buyers(cluster.admin) == {"good"}


class TestWithoutPolicies:
    """The same as while an API server cannot ask the Catalog, for as long as the test likes."""

    @pytest.fixture(scope="class", autouse=True)
    def stored(self, cluster: BareCluster) -> dict[str, Obj]:
        cluster.plane.kubectl("delete", "validatingadmissionpolicybindings", "--all")
        eventually(lambda: not _refusal(cluster.admin, "probe"), every=0.5, what="the Catalog still is asked")
        found = {}
        for number, case in enumerate(BROKEN):
            manifest = copy.deepcopy(case.new)
            manifest["metadata"] |= {"name": f"broken-{number}", "namespace": "default"}
            found[case.id] = cluster.admin.create(WORKSPACE, manifest)
        return found

    @pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
    def test_a_broken_rule_of_the_catalog_is_told(
        self, cluster: BareCluster, stored: Mapping[str, Obj], case: Case
    ) -> None:
        for condition in ("ResourceReady", "WorkspaceReady"):
            until(cluster.admin, stored[case.id], condition, status="False", words=case.refused)

    def test_nothing_is_bought_for_any_of_them(self, cluster: BareCluster, stored: Mapping[str, Obj]) -> None:
        for obj in stored.values():
            eventually(lambda obj=obj: "WorkspaceReady" in conditions(cluster.admin, obj))
        assert _buyers(cluster.admin) <= {"good"}


def _refusal(admin: Client, name: str, *, keep: bool = False) -> str:
    """The words with which a Workspace of an unknown preset is refused; "" when it is admitted."""
    obj = workspace(name, "default") | {"inference": {"preset": {"name": "phi-9-mega"}}}
    try:
        admin.create(WORKSPACE, obj)
    except Invalid as error:
        return str(error)
    if not keep:
        admin.delete(WORKSPACE, name, namespace="default")
    return ""


def _buyers(admin: Client) -> set[str]:
    return {claim["metadata"]["labels"]["kaito.sh/workspace"] for claim in admin.list(MACHINE).items}
