"""kill -9 at each request of a plan's execution: the next controller comes to the same end and buys no node twice.

The ordinary run kills at each request once, in turn before and after it is done; ``make soak`` at the other moment.

One Workspace per request is held there by a proxy, before the API server hears of it or after it has done it. Then one
knife ends the controller at all of these places at once, and another controller takes over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.cluster.proxy import FaultProxy, Interrupt
from tests.cluster.workspace.bare import BareCluster
from tests.cluster.workspace.matrix import (
    STAGES,
    STEPS,
    Matrix,
    Phase,
    Row,
    assert_undisturbed,
    in_two_tiers,
    rows_of_this_run,
)
from tests.cluster.workspace.stand_ins.following import Later
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import Deployments, Jobs
from tests.eventually import PATIENCE

BEFORE, AFTER = "before it is done", "before its answer"
WORKERS = 64
"""Each Workspace that is held keeps one of them."""
_NOT_OF_A_PLAN = ("write an Event", "look for the default")
"""One thread writes the Events of all Workspaces; and all ask for the same default."""


def rows_of(phase: Phase) -> list[Row]:
    return [
        Row(phase, name, moment)
        for name, step in STEPS[phase].items()
        if name not in _NOT_OF_A_PLAN
        for moment in (BEFORE, AFTER)
        if moment == BEFORE or step.method != "GET"
    ]


ROWS = [row for phase in STEPS for row in rows_of(phase)]
_FIRST = {(row.phase, row.step): row for row in reversed(ROWS)}
_LAST = {(row.phase, row.step): row for row in ROWS}
SAMPLE = [(_LAST, _FIRST)[number % 2][at] for number, at in enumerate(_LAST)]


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    """All Workspaces of this run after all phases, with one kill in each."""
    folder = tmp_path_factory.mktemp("killed")
    values = {"timeouts": {"gpuPlugin": "60s", "buyBackoffMin": "1s"}, "workers": WORKERS}
    with BareCluster.start(folder, programs=programs, values=values) as cluster, Later() as later:
        provisioner = Provisioner(cluster.admin, later, delay=0.1, gives_back=False)
        found = Matrix(cluster.admin, rows_of_this_run(request), provisioner)
        with (
            FaultProxy.start(Path(cluster.environment()["KUBECONFIG"]), folder) as proxy,
            provisioner,
            Deployments(cluster.admin, later, delay=0.1),
            Jobs(cluster.admin, later, delay=0.1),
        ):
            controller = None
            for stage in STAGES:
                knife = threading.Event()
                held = [case for case in found.of(stage) if case.row.step]
                for case in held:
                    case.arm(
                        proxy, Interrupt(lambda knife=knife: knife.wait(5 * PATIENCE), after=case.row.fault == AFTER)
                    )
                controller = controller or cluster.start_controller(lead=False, kubeconfig=proxy.kubeconfig)
                found.begin(stage)
                for case in held:
                    assert case.rule is not None
                    case.rule.wait()
                controller.kill()
                controller.wait(PATIENCE)
                proxy.clear()
                knife.set()
                controller = cluster.start_controller(lead=False, kubeconfig=proxy.kubeconfig)
                found.settle(stage)
        yield found


@pytest.mark.parametrize("row", in_two_tiers(ROWS, SAMPLE), ids=lambda row: f"{row.phase}: {row}")
def test_a_controller_that_is_killed_leaves_the_next_one_the_same_end(matrix: Matrix, row: Row) -> None:
    case = matrix.cases[row]
    assert case.bought == 1
    assert case.end == matrix.undisturbed(row).end


def test_the_undisturbed_workspaces_end_as_they_should(matrix: Matrix) -> None:
    assert_undisturbed(matrix)
