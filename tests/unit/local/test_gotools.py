from __future__ import annotations

import fcntl
import time
from pathlib import Path

import psutil
import pytest
from tests.eventually import eventually

from kaito_local.errors import BuildError, MissingPrerequisite
from kaito_local.machine import gotools

TOOLS = Path(__file__).parents[3] / "tools"


def test_every_program_that_is_asked_for_is_pinned_by_a_module(tmp_path: Path) -> None:
    programs = gotools.catalogue(TOOLS, tmp_path)
    wanted = {
        *gotools.CONTROL_PLANE,
        *gotools.NODE,
        *gotools.CHARTS,
        *gotools.CHART_TESTS,
        *gotools.KARPENTER,
    }
    assert wanted == set(programs)


def test_two_programs_that_go_would_call_alike_have_names_of_their_own(tmp_path: Path) -> None:
    programs = gotools.catalogue(TOOLS, tmp_path)
    kwok, karpenter = programs["kwok"], programs["karpenter-kwok"]
    assert (kwok.package, karpenter.package) == ("sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/karpenter/kwok")
    assert kwok.path != karpenter.path


def test_an_interrupted_command_ends_the_build_that_goes_on_beside_it(tmp_path: Path) -> None:
    program = gotools.catalogue(TOOLS, tmp_path)["kube-scheduler"]
    reports: list[str] = []
    futures = []

    def interrupted() -> None:
        with gotools.ensuring(["kube-scheduler"], tools=TOOLS, cache=tmp_path, report=reports.append) as building:
            futures.append(building)
            eventually(lambda: _builders(program.path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(reports) == 1
    assert reports[0].startswith("building kube-scheduler v1.")
    assert isinstance(futures[0].exception(), BuildError)
    assert not program.path.exists()
    assert _builders(program.path) == []


def test_an_interrupted_command_does_not_wait_for_another_builder(tmp_path: Path) -> None:
    program = gotools.catalogue(TOOLS, tmp_path)["kube-scheduler"]
    program.path.parent.mkdir(parents=True)
    with (program.path.parent / ".kube-scheduler.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with gotools.ensuring(["kube-scheduler"], tools=TOOLS, cache=tmp_path) as building:
            time.sleep(0.5)
            assert not building.done()
        with pytest.raises(BuildError, match="somebody else builds kube-scheduler"):
            building.result()


def test_a_missing_go_is_told_before_anything_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MissingPrerequisite, match="Go is not installed"),
        gotools.ensuring(["helm"], tools=TOOLS, cache=tmp_path),
    ):
        pytest.fail("the block is entered")


def _builders(program: Path) -> list[psutil.Process]:
    """The `go build` processes that write this program."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(program.parent / f".{program.name}.partial") in (process.info["cmdline"] or []):
            found.append(process)
    return found
