from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kaito_local.errors import BuildError
from kaito_local.machine import gotools
from kaito_local.machine.gomodules import GoModule, catalogue

TOOLS = Path(__file__).parents[3] / "tools"

_GO_MOD = """\
module example.com/tools/mixed

go 1.25.0

tool (
	example.com/big/cmd/one
	example.com/tools/mixed
)

require example.com/library/v2 v2.3.4

require (
	example.com/big v1.0.0 // indirect
	example.com/big/cmd v1.1.0 // indirect
	example.com/bigger v7.0.0 // indirect
)

replace example.com/big/cmd => example.com/fork/cmd v1.2.0
"""


@pytest.fixture
def module(tmp_path: Path) -> GoModule:
    (tmp_path / "go.mod").write_text(_GO_MOD)
    (tmp_path / "go.sum").write_text("")
    return GoModule.read(tmp_path)


def test_every_program_that_is_asked_for_is_pinned_by_a_module(tmp_path: Path) -> None:
    wanted = {*gotools.CLUSTER, *gotools.CHART_TESTS, *gotools.KARPENTER, *gotools.SIGNING}
    assert wanted == set(catalogue(TOOLS, tmp_path))


def test_two_programs_that_go_would_call_alike_have_names_of_their_own(tmp_path: Path) -> None:
    programs = catalogue(TOOLS, tmp_path)
    kwok, karpenter = programs["kwok"], programs["karpenter-kwok"]
    assert (kwok.package, karpenter.package) == ("sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/karpenter/kwok")
    assert kwok.path != karpenter.path


def test_a_package_has_the_version_of_the_module_that_holds_it_replaced_or_not(module: GoModule) -> None:
    assert module.tools == ("example.com/big/cmd/one", "example.com/tools/mixed")
    assert module.version("example.com/big/pkg") == "v1.0.0"
    assert module.version("example.com/big/cmd/one") == "v1.2.0"
    assert module.version("example.com/bigger") == "v7.0.0"
    with pytest.raises(BuildError, match=r"requires no module that holds example\.com/biggest"):
        module.version("example.com/biggest")


def test_a_program_of_our_own_has_the_version_of_the_library_it_is_made_of(module: GoModule) -> None:
    assert module.version("example.com/tools/mixed") == "v2.3.4"


def test_a_program_of_our_own_that_is_made_of_several_libraries_has_no_version_of_theirs(module: GoModule) -> None:
    several = replace(module, direct=("example.com/library/v2", "example.com/big"))
    assert several.version("example.com/tools/mixed") == "v0"


def test_programs_are_built_again_when_module_source_or_stamps_change(module: GoModule) -> None:
    def digest() -> str:
        return module.digest({"main.version": "v1"})

    digests = [module.digest({}), digest()]
    assert digest() == digests[-1]
    for file in ("go.mod", "go.sum", "main.go", "inside/inside.go"):
        (module.folder / file).parent.mkdir(exist_ok=True)
        with (module.folder / file).open("a") as text:
            text.write("// changed\n")
        digests.append(digest())
    assert len(set(digests)) == len(digests)


def test_programs_of_one_module_share_a_folder_unless_their_stamps_differ(tmp_path: Path) -> None:
    programs = catalogue(TOOLS, tmp_path)
    assert programs["kubelet"].path.parent == programs["kubectl"].path.parent
    assert programs["ct"].path.parent != programs["helm-unittest"].path.parent


@pytest.mark.parametrize("name", ["coredns", "helm", "registry"])
def test_what_a_program_shares_with_kubernetes_is_compiled_once(name: str) -> None:
    """Else a first build takes a minute longer, without a word."""
    shared = re.compile(
        r"k8s\.io/(api|apimachinery|client-go|klog/v2|utils)|golang\.org/x/(net|sys|text)|google\..*/protobuf"
    )
    kubernetes, ours = GoModule.read(TOOLS / "kubernetes").versions, GoModule.read(TOOLS / name).versions
    names = {name for name in ours if shared.fullmatch(name)}
    assert len(names) >= 4
    assert {name: ours[name] for name in names} == {name: kubernetes[name] for name in names}


def test_helm_takes_the_cluster_s_kubernetes_for_granted(tmp_path: Path) -> None:
    programs = catalogue(TOOLS, tmp_path)
    minor = programs["kube-apiserver"].version.split(".")[1]
    for place in ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules"):
        assert programs["helm"].stamps[f"{place}.k8sVersionMajor"] == "1"
        assert programs["helm"].stamps[f"{place}.k8sVersionMinor"] == minor


def test_a_go_mod_without_a_module_is_named(tmp_path: Path) -> None:
    shutil.copy2(TOOLS / "etcd" / "go.sum", tmp_path)
    (tmp_path / "go.mod").write_text("\n")
    with pytest.raises(BuildError, match=r"go\.mod names no module"):
        GoModule.read(tmp_path)
