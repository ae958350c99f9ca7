"""What is looked at, and completed, before anything is started on a machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kaito_local.cluster import preflight
from kaito_local.errors import MissingPrerequisite
from kaito_local.machine.progress import QUIET

SYSTEM = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]


class Machine:
    """A folder that is all of PATH, with every program that nodes need, and an installer beside it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.installer = folder / "packages.sh"
        self.plugins = folder / "cni"
        self.plugins.mkdir()
        (self.plugins / "bridge").touch()
        for name in preflight.NODE_PACKAGES:
            self.program(folder / "bin" / name, ":")
        self.installs("exit 0")
        monkeypatch.setenv("PATH", str(folder / "bin"))
        monkeypatch.setattr(preflight, "_CNI_FOLDERS", (folder / "nowhere", self.plugins))

    def program(self, path: Path, script: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def installs(self, script: str) -> None:
        """What the installer does after it has written down what it is asked for."""
        self.program(self.installer, f'echo "$*" >> {self.folder}/asked\n{script}')

    def lacks(self, *names: str) -> None:
        for name in names:
            (self.folder / "bin" / name).unlink()

    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def require(self) -> None:
        preflight.require_packages(self.installer, progress=QUIET)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_machine_that_has_every_program_installs_nothing(machine: Machine) -> None:
    machine.require()
    assert machine.asked() == []


def test_what_is_missing_is_installed_by_the_names_of_its_packages_in_one_go(machine: Machine) -> None:
    machine.lacks("socat", "ip", "unshare")
    machine.require()
    assert machine.asked() == ["iproute2 socat util-linux"]


def test_network_plugins_are_no_programs_on_path_and_are_installed_too(machine: Machine) -> None:
    (machine.plugins / "bridge").unlink()
    machine.require()
    assert machine.asked() == ["containernetworking-plugins"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Reading >&2; echo 'E: no package socat' >&2; exit 100", "packages socat: E: no package socat"),
        ("echo only on stdout; exit 1", "packages socat: no reason given"),
    ],
    ids=["last-line", "silence"],
)
def test_an_installation_that_fails_is_told_with_its_last_line(machine: Machine, script: str, said: str) -> None:
    machine.lacks("socat")
    machine.installs(script)
    with pytest.raises(MissingPrerequisite) as raised:
        machine.require()
    assert str(raised.value) == f"cannot install the {said}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, SYSTEM),
        ("", SYSTEM),
        ("/opt/a:/usr/bin", ["/opt/a", "/usr/bin", *(part for part in SYSTEM if part != "/usr/bin")]),
        ("/opt/a::/opt/b:", ["/opt/a", "/opt/b", *SYSTEM]),
        (":".join(reversed(SYSTEM)), list(reversed(SYSTEM))),
    ],
    ids=["unset", "empty", "one-is-there", "empty-parts", "all-are-there"],
)
def test_the_systems_folders_are_the_last_of_path_and_none_is_there_twice(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: list[str]
) -> None:
    monkeypatch.delenv("PATH", raising=False)
    if before is not None:
        monkeypatch.setenv("PATH", before)
    for _ in range(2):
        preflight.complete_path()
        assert os.environ["PATH"].split(":") == after


def _free(monkeypatch: pytest.MonkeyPatch, gib: float) -> list[Path]:
    """Every file system has ``gib`` left; the folders that are asked about."""
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        assert folder.exists()
        asked.append(folder)
        return SimpleNamespace(free=int(gib * 2**30))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


@pytest.mark.parametrize("needed", [3.0, 7.5], ids=["more-than-enough", "just-enough"])
def test_enough_disk_is_returned_in_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: float) -> None:
    _free(monkeypatch, 7.5)
    assert preflight.require_disk(tmp_path, gib=needed) == 7.5


def test_a_folder_that_is_to_be_made_is_judged_by_where_it_will_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _free(monkeypatch, 7.5)
    assert preflight.require_disk(tmp_path / "not" / "yet", gib=1.0) == 7.5
    assert asked == [tmp_path]
    assert not (tmp_path / "not").exists()


def test_too_little_disk_is_refused_with_the_folder_and_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _free(monkeypatch, 7.5)
    with pytest.raises(MissingPrerequisite, match=r"cache needs 12 GiB of free disk, its file system has 7\.5"):
        preflight.require_disk(tmp_path / "cache", gib=12.0)


@pytest.mark.parametrize(
    ("available", "enough"),
    [(4 * 2**20 - 1, False), (4 * 2**20, True), (0, False)],
    ids=["a-little-too-little", "just-enough", "none"],
)
def test_what_counts_is_the_memory_that_is_available(tmp_path: Path, *, available: int, enough: bool) -> None:
    """MemFree leaves out what the page cache gives back (proc_meminfo(5))."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 67108864 kB\nMemFree: 1 kB\nMemAvailable: {available} kB\nSwapFree: 67108864 kB\n")
    if enough:
        preflight.require_memory(gib=4.0, meminfo=meminfo)
    else:
        with pytest.raises(MissingPrerequisite, match="needs 4 GiB of free memory"):
            preflight.require_memory(gib=4.0, meminfo=meminfo)
