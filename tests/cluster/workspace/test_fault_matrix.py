"""Every request that the controller makes on a Workspace's way fails; the end is always the same.

One controller brings one Workspace per fault to readiness, through a change, and away again, all of them at once
against a real API server behind a proxy that fails each Workspace's own request. The ordinary run fails each request
in one way, and takes the ways in turn; ``make soak`` fails each of them in every way.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.proxy import Action, Answer, Delay, DropAfter, DropBefore, FaultProxy, Freeze
from tests.cluster.workspace.bare import BareCluster
from tests.cluster.workspace.matrix import (
    STAGES,
    STEPS,
    Case,
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

from kaito_hooks.runtime import Client
from kaito_hooks.runtime.logs import JsonFormatter
from kaito_hooks.workspace.__main__ import build
from kaito_hooks.workspace.configuration import file

TIMEOUT = 3.0

FAULTS: dict[str, Action] = {
    "409": Answer(409),
    "429": Answer(429, headers={"Retry-After": "1"}),
    "500": Answer(500),
    "lost on the way": DropBefore(),
    "done, answer lost": DropAfter(),
    "no answer in time": Freeze(),
    "done after the time": Delay(TIMEOUT + 1),
}
TUNING_FAULTS = ("409", "429", "500", "done, answer lost", "no answer in time")
"""One of each kind: the client that meets them is the same."""
LOST = ("done, answer lost", "done after the time")
TOLD = {
    "Normal: created Machine",
    "Normal: created children",
    "Normal: workspace resource is ready",
    "Normal: Inference has been deployed successfully",
    "Normal: workspace is ready",
}


def rows_of(phase: Phase) -> list[Row]:
    faults = TUNING_FAULTS if phase in [tuning for _, tuning in STAGES] else FAULTS
    return [Row(phase, step, fault) for step in STEPS[phase] for fault in faults]


def sample_of(phase: Phase) -> list[Row]:
    """Each request with one of the faults, which take turns."""
    rows, turn = rows_of(phase), list(STEPS).index(phase) + 2
    faults = list(dict.fromkeys(row.fault for row in rows))
    return [Row(phase, step, faults[(number + turn) % len(faults)]) for number, step in enumerate(STEPS[phase])]


def rows_for(*phases: Phase) -> list[Any]:
    """All rows of the phases; what is not in the sample is a matrix, and waits for ``make soak``."""
    sample = [row for phase in phases for row in sample_of(phase)]
    return in_two_tiers([row for phase in phases for row in rows_of(phase)], sample)


def is_told(case: Case) -> bool:
    """Whether Events tell of every step on the way to serving.

    What a lost answer would tell is lost, also where the machine stood still for longer than the controller waits; and
    no API server answers a new Event with a 409.
    """
    stood_still = case.unanswered > (case.row.fault == "no answer in time")
    lost = case.row.fault in LOST or stood_still or (case.row.step, case.row.fault) == ("write an Event", "409")
    return case.row.phase != "serving" or lost or case.events >= TOLD


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    """All Workspaces of this run after all phases."""
    folder = tmp_path_factory.mktemp("matrix")
    values = {"timeouts": {"gpuPlugin": "60s", "buyBackoffMin": "1s"}}
    with BareCluster.start(folder, programs=programs, values=values) as cluster, Later() as later:
        environment = {**cluster.environment(), "DISABLE_LEADER_ELECTION": "true"}
        provisioner = Provisioner(cluster.admin, later, delay=0.1, gives_back=False)
        found = Matrix(cluster.admin, rows_of_this_run(request), provisioner)
        with (
            FaultProxy.start(Path(environment["KUBECONFIG"]), folder) as proxy,
            provisioner,
            Deployments(cluster.admin, later, delay=0.1),
            Jobs(cluster.admin, later, delay=0.1),
        ):
            arm(found, proxy, STAGES[0])
            with running_controller(cluster, proxy, environment), counted_unanswered(found):
                found.settle(STAGES[0], timeout=90, is_told=is_told)
                for stage in STAGES[1:]:
                    proxy.clear()
                    arm(found, proxy, stage)
                    found.begin(stage)
                    found.settle(stage)
        yield found


def arm(matrix: Matrix, proxy: FaultProxy, stage: tuple[Phase, ...]) -> None:
    for case in matrix.of(stage):
        if case.row.step:
            case.arm(proxy, FAULTS[case.row.fault])


@contextmanager
def counted_unanswered(matrix: Matrix) -> Iterator[None]:
    """Counts what the controller's log says of answers that did not come in time."""
    by_place = {case.place: case for case in matrix.cases.values()}
    formatter = JsonFormatter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no answer in time" in record.getMessage():
                case = by_place.get(json.loads(formatter.format(record)).get("namespace", ""))
                if case is not None:
                    case.unanswered += 1

    counting, logger = Counting(), logging.getLogger("kaito_hooks.runtime.controller")
    logger.addHandler(counting)
    try:
        yield
    finally:
        logger.removeHandler(counting)


class running_controller:
    """The controller in this process, so that its requests may be short of patience."""

    def __init__(self, cluster: BareCluster, proxy: FaultProxy, environment: Mapping[str, str]) -> None:
        settings, process = file.load(cluster.config, environment)
        client = Client.load(kubeconfig=str(proxy.kubeconfig), user_agent="kaito-workspace", timeout=TIMEOUT)
        self._manager = build(client, replace(settings, workers=16), process)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._manager.run, args=(self._stop,), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def assert_as_undisturbed(matrix: Matrix, row: Row) -> None:
    case = matrix.cases[row]
    assert case.rule is not None
    assert case.rule.hits == 1, "the request was never made"
    assert case.bought == 1
    assert case.end == matrix.undisturbed(row).end


@pytest.mark.parametrize("row", rows_for("serving", "tuning"), ids=str)
def test_a_request_that_fails_on_the_way_to_serving_changes_nothing_in_the_end(matrix: Matrix, row: Row) -> None:
    assert_as_undisturbed(matrix, row)
    case = matrix.cases[row]
    assert is_told(case), case.events
    assert not [event for event in case.events if event.startswith("Warning")]


@pytest.mark.parametrize("row", rows_for("changing", "tuning again"), ids=str)
def test_a_request_that_fails_in_a_change_changes_nothing_in_the_end(matrix: Matrix, row: Row) -> None:
    assert_as_undisturbed(matrix, row)


@pytest.mark.parametrize("row", rows_for("deleting", "giving back"), ids=str)
def test_a_request_that_fails_in_the_end_leaves_nothing_that_bills(matrix: Matrix, row: Row) -> None:
    assert_as_undisturbed(matrix, row)


def test_the_undisturbed_workspaces_end_as_they_should(matrix: Matrix) -> None:
    assert_undisturbed(matrix)
