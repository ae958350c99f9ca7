"""What `python -m kaito_local.images` refuses before it builds anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kaito_local.images.__main__ import main

TOOLS = ("buildah", "skopeo", "mmdebstrap", "unshare", "gpg")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of programs of a machine that can build images, as root; none of them may be called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        (folder / name).write_text(f"#!/bin/sh\n: > {tmp_path}/called\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def refusal(machine: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command is refused; nothing is printed, called or made."""
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert not (machine.parent / "called").exists()
    assert not (machine.parent / "cache").exists()
    return said.err


@pytest.mark.parametrize("variants", ["cu999", "cpu,cu999", "", "cpu,", "CPU"])
def test_a_variant_that_does_not_exist_is_named_with_those_that_do(
    machine: Path, capsys: pytest.CaptureFixture[str], variants: str
) -> None:
    said = refusal(machine, capsys, "build", f"--variants={variants}")
    assert f"--variants {variants}: there are cpu, cu126, vllm" in said


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["kaito-nope"], "there is no image kaito-nope\n"),
        (["kaito-hooks", "zeta", "alpha"], "there is no image alpha, zeta\n"),
        (["kaito-torch"], "there is no image kaito-torch\n"),
    ],
    ids=["unknown", "beside-a-known-one", "only-a-base"],
)
def test_a_name_that_is_no_image_is_named(
    machine: Path, capsys: pytest.CaptureFixture[str], names: list[str], named: str
) -> None:
    assert refusal(machine, capsys, "build", *names) == named


def test_a_push_of_what_is_no_image_pushes_nothing(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(machine, capsys, "push", "--registry=registry.example.com", "kaito-nope")
    assert said == "there is no image kaito-nope\n"


def test_without_root_one_line_says_how_to_get_it(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    said = refusal(machine, capsys, "build")
    assert "needs root" in said
    assert "sudo" in said


def test_programs_that_are_missing_are_told_as_the_packages_to_install(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("skopeo", "unshare"):
        (machine / name).unlink()
    said = refusal(machine, capsys, "build")
    assert said == "missing Debian packages: skopeo util-linux; run: apt-get install skopeo util-linux\n"


def test_a_push_without_a_registry_is_a_bad_command_line(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["push"])
    assert ended.value.code == 2
    assert "--registry" in capsys.readouterr().err
