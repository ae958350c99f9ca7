"""What an installation of one extra brings along, read from the metadata of the installed distributions."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What a package imports where it is there: the tiny model is trained in an image with torch.
NOT_IN_ITS_IMAGE = {"local": {"torch", "transformers", "tokenizers"}}
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


def test_the_check_of_data_brings_no_torch() -> None:
    assert not {"torch", "peft", "trl", "bitsandbytes", "accelerate"} & closure("kaito[check]")


@pytest.mark.parametrize("extra", ["serving", "tuning"])
def test_the_gpu_images_extras_bring_torch_but_no_cloud_sdk(extra: str) -> None:
    names = closure(f"kaito[{extra}]")
    assert "torch" in names
    assert not {"azure-identity", "azure-mgmt-containerservice", "kubernetes"} & names


@pytest.mark.parametrize("extra", ["hooks", "serving", "tuning", "local"])
def test_an_extra_brings_whatever_its_package_imports(extra: str) -> None:
    package = Path(__file__).parents[2] / extra / f"kaito_{extra}"
    imported: set[str] = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names - {f"kaito_{extra}"} - NOT_IN_ITS_IMAGE.get(extra, set())
    distributions = metadata.packages_distributions()
    brought = closure(f"kaito[{extra}]")
    assert {
        name for name in foreign if not {canonicalize_name(each) for each in distributions[name]} & brought
    } == set()


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
