"""The Go modules below ``tools/``: which programs they build, in which version, and where each binary lies.

A module's ``tool`` block names the packages, its ``require`` block the versions; a program that we assemble ourselves
(a ``main.go`` beside the ``go.mod``) is named there too, as the module's own package. A program lies in
``<cache>/bin/<module>-<hash>/<program>``. The hash is that of all that decides what is built: go.mod, go.sum, Go
sources and the values that are stamped into the program.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import BuildError

_PROGRAM_NAMES = {
    "go.etcd.io/etcd/server/v3": "etcd",
    "helm.sh/helm/v4/cmd/helm": "helm4",
    "sigs.k8s.io/karpenter/kwok": "karpenter-kwok",
}
# Variables of programs that have no other way to know their version, by the package of their main.
_VERSION_VARIABLES = {
    "github.com/helm/chart-testing/v3/ct": "github.com/helm/chart-testing/v3/ct/cmd.Version",
    "github.com/yannh/kubeconform/cmd/kubeconform": "main.version",
    "github.com/zegl/kube-score/cmd/kube-score": "main.version",
    "helm.sh/helm/v3/cmd/helm": "helm.sh/helm/v3/internal/version.version",
    "helm.sh/helm/v4/cmd/helm": "helm.sh/helm/v4/internal/version.version",
    "kaito.sh/tools/registry": "github.com/distribution/distribution/v3/version.version",
}

# Of a program of our own that is not made of one library.
_UNVERSIONED = "v0"


@dataclass(frozen=True, slots=True)
class GoModule:
    """What a ``go.mod`` says: its own path, its Go version, its tools, and the version of each module it requires."""

    folder: Path
    path: str
    go: tuple[int, int]
    tools: tuple[str, ...]
    versions: Mapping[str, str]
    direct: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> GoModule:
        """The module in ``folder``; its go.mod is as ``go mod tidy`` writes it. Replaced versions count."""
        text = (folder / "go.mod").read_text()
        required = re.findall(r"^(?:require |\t)(\S+) (v\S+)( // indirect)?$", text, re.MULTILINE)
        replaced = re.findall(r"^(?:replace |\t)(\S+)(?: v\S+)? => \S+ (v\S+)$", text, re.MULTILINE)
        block = re.search(r"^tool \((.*?)^\)", text, re.DOTALL | re.MULTILINE)
        path = re.search(r"^module (\S+)$", text, re.MULTILINE)
        go = re.search(r"^go (\d+)\.(\d+)", text, re.MULTILINE)
        if path is None or go is None:
            raise BuildError(f"{folder / 'go.mod'} names no module or no Go version")
        return cls(
            folder=folder,
            path=path[1],
            go=(int(go[1]), int(go[2])),
            tools=(*(block[1].split() if block else ()), *re.findall(r"^tool ([^\s(]+)$", text, re.MULTILINE)),
            versions={name: version for name, version, _ in required} | dict(replaced),
            direct=tuple(name for name, _, indirect in required if not indirect),
        )

    def version(self, package: str) -> str:
        """The version of what ``package`` is built from: its module, or, for our own, the one it requires directly."""
        if package == self.path:
            return self.versions[self.direct[0]] if len(self.direct) == 1 else _UNVERSIONED
        holding = [name for name in self.versions if package == name or package.startswith(f"{name}/")]
        if not holding:
            raise BuildError(f"{self.folder / 'go.mod'} requires no module that holds {package}")
        return self.versions[max(holding, key=len)]

    def stamps(self, package: str) -> dict[str, str]:
        """What upstream's own build stamps into the program too, as variable to value."""
        version = self.version(package)
        if package.startswith("k8s.io/kubernetes/"):
            major, minor = version.removeprefix("v").split(".")[:2]
            values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
            places = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            return {f"{place}.{key}": value for place in places for key, value in values.items()}
        stamps = {_VERSION_VARIABLES[package]: version} if package in _VERSION_VARIABLES else {}
        if package.startswith("helm.sh/helm/v3/"):
            # The Kubernetes that `helm template` and `helm lint` take for granted: v0.34.4 of the client is of 1.34.
            # Helm 4 reads it from its own build information.
            minor = self.versions["k8s.io/client-go"].split(".")[1]
            for place in ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules"):
                stamps |= {f"{place}.k8sVersionMajor": "1", f"{place}.k8sVersionMinor": minor}
        return stamps

    def digest(self, stamps: Mapping[str, str]) -> str:
        """Changes with whatever changes the program that these ``stamps`` go into."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        for source in sorted(self.folder.rglob("*.go")):
            digest.update(f"{source.relative_to(self.folder)}\n".encode() + source.read_bytes())
        for variable, value in sorted(stamps.items()):
            digest.update(f"{variable}={value}\n".encode())
        return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Program:
    """One Go command: its name, package, module and version, what is stamped into it, and where the binary lies."""

    name: str
    package: str
    module: GoModule
    version: str
    stamps: Mapping[str, str]
    path: Path


def catalogue(tools: Path, cache: Path) -> dict[str, Program]:
    """All programs of the modules below ``tools``, by name."""
    modules = [GoModule.read(go_mod.parent) for go_mod in sorted(tools.glob("*/go.mod"))]
    return {program.name: program for module in modules for program in _programs(module, cache)}


def _programs(module: GoModule, cache: Path) -> Iterable[Program]:
    for package in module.tools:
        stamps = module.stamps(package)
        name = _PROGRAM_NAMES.get(package, package.rsplit("/", 1)[-1])
        folder = cache / "bin" / f"{module.folder.name}-{module.digest(stamps)}"
        yield Program(name, package, module, module.version(package), stamps, folder / name)
