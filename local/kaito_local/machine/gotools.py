"""The Go programs that a local cluster runs (Kubernetes, etcd, Helm, ...), built once into the user's cache.

Each folder of ``tools/`` is a Go module of nothing but ``go.mod`` and ``go.sum``: its ``tool`` block names the
packages, its ``require`` block the versions. A program lies in ``<cache>/bin/<module>-<hash of go.mod and
go.sum>/<program>``, so that clones share it and a changed version never meets an old binary. Building is resumable: a
program appears under its name only when it is whole, and two builders wait for each other.

``KUBEBUILDER_ASSETS`` (the convention of controller-runtime's envtest) names a folder whose etcd, kube-apiserver and
kubectl are used instead of built ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kaito_local.errors import BuildError, LocalError, MissingPrerequisite
from kaito_local.machine.folders import ROOT, cache_folder

_PROGRAM_NAMES = {"go.etcd.io/etcd/server/v3": "etcd", "sigs.k8s.io/karpenter/kwok": "karpenter-kwok"}
_ENVTEST_PROGRAMS = frozenset({"etcd", "kube-apiserver", "kubectl"})
_MINIMUM_GO = (1, 24)

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "registry", "coredns")
CHARTS = ("helm",)
CHART_TESTS = ("helm-unittest", "ct", "kubeconform")
CLUSTER = (*CONTROL_PLANE, *NODE, *CHARTS)
KARPENTER = ("kwok", "karpenter-kwok")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Program:
    """One Go command: its name, its package, the module folder that pins it and where the binary lies."""

    name: str
    package: str
    module: Path
    path: Path


def catalogue(tools: Path, cache: Path) -> dict[str, Program]:
    """All programs of the modules below ``tools``, by name."""
    programs: dict[str, Program] = {}
    for go_mod in sorted(tools.glob("*/go.mod")):
        folder = cache / "bin" / f"{go_mod.parent.name}-{_module_hash(go_mod.parent)}"
        for package in _tool_packages(go_mod.read_text()):
            name = _PROGRAM_NAMES.get(package, package.rsplit("/", 1)[-1])
            programs[name] = Program(name=name, package=package, module=go_mod.parent, path=folder / name)
    return programs


def ensure(
    names: Iterable[str],
    *,
    tools: Path,
    cache: Path,
    report: Report = lambda line: None,
    stop: threading.Event | None = None,
) -> dict[str, Path]:
    """Builds what is missing of ``names`` and returns each program's path.

    Raises MissingPrerequisite without a usable Go, BuildError when a build fails, is ended by ``stop``, or a name is
    not in ``tools``.
    """
    known = catalogue(tools, cache)
    paths: dict[str, Path] = {}
    for name in names:
        if name not in known:
            raise BuildError(
                f"no module in {tools} builds a program called {name}; it builds {', '.join(sorted(known))}"
            )
        given = _envtest_binary(name)
        if given is not None:
            paths[name] = given
            continue
        program = known[name]
        if not program.path.exists():
            _build(program, report=report, stop=stop or threading.Event())
        paths[name] = program.path
    return paths


@contextmanager
def ensuring(
    names: Iterable[str], *, tools: Path, cache: Path, report: Report = lambda line: None
) -> Iterator[Future[dict[str, Path]]]:
    """``ensure`` beside what the ``with`` block does; a build that runs when the block ends is ended.

    Raises MissingPrerequisite at once; the rest comes with the future's result.
    """
    known = catalogue(tools, cache)
    if any(name in known and _envtest_binary(name) is None and not known[name].path.exists() for name in names):
        _go_command()
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="gotools") as pool:
        try:
            yield pool.submit(ensure, names, tools=tools, cache=cache, report=report, stop=stop)
        finally:
            stop.set()


def _build(program: Program, *, report: Report, stop: threading.Event) -> None:
    go = _go_command()
    folder = program.path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{program.name}.lock").open("w") as lock:
        while not _taken(lock):
            if stop.wait(0.2):
                raise BuildError(f"somebody else builds {program.name}")
        if program.path.exists():
            return
        version = _module_version(program)
        report(f"building {program.name} {version}")
        begin = time.monotonic()
        partial = folder / f".{program.name}.partial"
        command = [
            go,
            "build",
            "-trimpath",
            "-ldflags",
            _ldflags(program, version),
            # The linker would only drop it: a tenth of the compiler's work.
            "-gcflags=all=-dwarf=false",
            "-o",
            str(partial),
            program.package,
        ]
        status, said = _run_until(stop, command, folder=program.module)
        if status != 0:
            last = "\n".join(said.strip().splitlines()[-15:])
            raise BuildError(f"building {program.name} {version} failed (go build, exit {status}):\n{last}")
        partial.rename(program.path)
        report(f"built {program.name} in {time.monotonic() - begin:.0f} s")


def _taken(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _run_until(stop: threading.Event, command: Sequence[str], *, folder: Path) -> tuple[int, str]:
    """Runs a Go command, which ``stop`` ends early; its exit status and what it said."""
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as go:
        try:
            while True:
                try:
                    _, said = go.communicate(timeout=0.2)
                    return go.returncode, said
                except subprocess.TimeoutExpired:
                    if stop.is_set():
                        go.terminate()
        except BaseException:
            go.terminate()
            raise


def _ldflags(program: Program, version: str) -> str:
    flags = ["-s", "-w"]
    if program.package.startswith("k8s.io/kubernetes/"):
        major, minor = version.removeprefix("v").split(".")[:2]
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            for key, value in (
                ("gitVersion", version),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitTreeState", "clean"),
            ):
                flags += ["-X", f"{package}.{key}={value}"]
    elif program.package.startswith("helm.sh/helm/"):
        flags += ["-X", f"helm.sh/helm/v3/internal/version.version={version}"]
    return " ".join(flags)


def _go_command() -> str:
    go = shutil.which("go")
    if go is None:
        raise MissingPrerequisite("Go is not installed (no `go` on PATH); install Go 1.24 or newer, then try again")
    said = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", said)
    if match and (int(match[1]), int(match[2])) < _MINIMUM_GO:
        raise MissingPrerequisite(f"{go} is {said}; install Go 1.24 or newer, then try again")
    return go


def _envtest_binary(name: str) -> Path | None:
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    if not folder or name not in _ENVTEST_PROGRAMS:
        return None
    path = Path(folder) / name
    return path if os.access(path, os.X_OK) else None


def _module_hash(module: Path) -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((module / name).read_bytes())
    return digest.hexdigest()[:12]


def _tool_packages(go_mod: str) -> list[str]:
    block = re.search(r"^tool \((.*?)^\)", go_mod, re.DOTALL | re.MULTILINE)
    listed = block[1].split() if block else []
    return listed + re.findall(r"^tool ([^\s(]+)$", go_mod, re.MULTILINE)


def _module_version(program: Program) -> str:
    """The version of the required module that holds the program's package: the longest path that is a prefix."""
    go_mod = program.module / "go.mod"
    required = re.findall(r"^\s*(?:require\s+)?(\S+\.\S+) (v\S+)", go_mod.read_text(), re.MULTILINE)
    holding = [(str(path), str(version)) for path, version in required if program.package.startswith(path)]
    if not holding:
        raise BuildError(f"{go_mod} requires no module that holds {program.package}")
    return max(holding, key=lambda pair: len(pair[0]))[1]


def main(arguments: Sequence[str]) -> int:
    """``python -m kaito_local.machine.gotools [cluster]``: builds every missing program, or those that a cluster runs.

    It says so on stderr. Needs nothing but Python's own library.
    """
    tools, cache = ROOT / "tools", cache_folder()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = CLUSTER if list(arguments) == ["cluster"] else catalogue(tools, cache)
    try:
        ensure(names, tools=tools, cache=cache, report=lambda line: print(line, file=sys.stderr, flush=True))
    except LocalError as error:
        print(f"kaito: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
