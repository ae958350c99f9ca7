"""What an installation of one extra brings along, read from the metadata of the installed distributions."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEAVY = {"torch", "ray", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate"}


def closure(requirement: str) -> set[str]:
    """Names of every distribution that pip would install for that requirement."""
    found: set[str] = set()
    waiting = [Requirement(requirement)]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        key = f"{canonicalize_name(wanted.name)}[{','.join(sorted(wanted.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        found.add(canonicalize_name(wanted.name))
        for line in metadata.requires(wanted.name) or ():
            child = Requirement(line)
            extras = wanted.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return found


def test_the_controllers_extra_brings_no_machine_learning_library() -> None:
    assert closure("kaito[hooks]") & HEAVY == set()


@pytest.mark.parametrize("extra", ["serving", "tuning"])
def test_the_gpu_images_extras_bring_torch_but_no_cloud_sdk(extra: str) -> None:
    names = closure(f"kaito[{extra}]")
    assert "torch" in names
    assert not {"azure-identity", "azure-mgmt-containerservice", "kubernetes"} & names


def test_every_installed_version_is_the_pinned_one() -> None:
    with (Path(__file__).parents[2] / "constraints.txt").open() as lines:
        pinned = dict(line.strip().split("==") for line in lines if "==" in line)
    installed = {
        canonicalize_name(d.name): d.version.split("+")[0]
        for d in (metadata.distribution(name) for name in closure("kaito[hooks,serving,tuning,local,dev]") - {"kaito"})
    }
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    unpinned = {
        name for name in installed if name not in pinned and not name.startswith(("nvidia-", "cuda-", "triton"))
    }
    assert unpinned == set()
    assert {name: version for name, version in installed.items() if pinned.get(name, version) != version} == {}


def test_installed_packages_agree_with_each_other() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
