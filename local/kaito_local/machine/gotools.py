"""The Go programs that a local cluster runs (Kubernetes, etcd, Helm, ...), built once into the user's cache.

`gomodules` says what there is and where it lies, `installed` what this machine has without us, `gobuild` builds the
rest. Clones share the binaries, a changed version or source never meets an old one, and two builders wait for each
other. A call that was ended leaves nothing running, and the next one goes on where it stopped.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kaito_local.errors import BuildError, LocalError
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.gobuild import PART, Go, build, build_cache, taken
from kaito_local.machine.gomodules import Program, catalogue
from kaito_local.machine.installed import envtest_binary, on_path
from kaito_local.machine.progress import QUIET, Progress

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NODE = ("kubelet", "kube-proxy", "registry", "coredns", "pause")
CHARTS = ("helm",)
CHART_TESTS = ("helm-unittest", "helm4", "ct", "kubeconform", "kube-score", "promql")
CLUSTER = (*CONTROL_PLANE, *NODE, *CHARTS)
KARPENTER = ("kwok", "karpenter-kwok")
SIGNING = ("notation", "oras")


def ensure(
    names: Iterable[str],
    *,
    tools: Path,
    cache: Path,
    progress: Progress = QUIET,
    stop: threading.Event | None = None,
) -> dict[str, Path]:
    """Builds what is missing of ``names`` and returns each program's path.

    Raises MissingPrerequisite without a usable Go or its modules, BuildError when a build fails, is ended by ``stop``,
    or a name is not in ``tools``.
    """
    known = catalogue(tools, cache)
    stop = stop or threading.Event()
    paths: dict[str, Path] = {}
    with ExitStack() as building:
        builder: tuple[Go, Path] | None = None
        for name in names:
            if name not in known:
                raise BuildError(
                    f"no module in {tools} builds a program called {name}; it builds {', '.join(sorted(known))}"
                )
            program = known[name]
            path = found(program)
            if path is None:
                if builder is None:
                    go = Go.find()
                    builder = go, building.enter_context(build_cache(go, cache))
                _build(program, builder, progress=progress, stop=stop)
                path = program.path
            else:
                progress.reused(PART, name if path == program.path else f"{name} of {path.parent}")
            paths[name] = path
    return paths


@contextmanager
def ensuring(
    names: Iterable[str], *, tools: Path, cache: Path, progress: Progress = QUIET
) -> Iterator[Future[dict[str, Path]]]:
    """``ensure`` beside what the ``with`` block does; a build that runs when the block ends is ended.

    Raises MissingPrerequisite at once if there is no usable Go; the rest comes with the future's result.
    """
    known = catalogue(tools, cache)
    names = tuple(names)
    if any(name in known and found(known[name]) is None for name in names):
        Go.find()
    stop = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="gotools") as pool:
        try:
            yield pool.submit(ensure, names, tools=tools, cache=cache, progress=progress, stop=stop)
        finally:
            stop.set()


def found(program: Program) -> Path | None:
    """Where the program is already: by the user's wish, in the cache, or on PATH."""
    given = envtest_binary(program.name)
    if given is not None:
        return given
    return program.path if program.path.exists() else on_path(program.name, program.version)


def _build(program: Program, builder: tuple[Go, Path], *, progress: Progress, stop: threading.Event) -> None:
    go, go_cache = builder
    program.path.parent.mkdir(parents=True, exist_ok=True)
    with (program.path.parent / f".{program.name}.lock").open("w") as lock, ExitStack() as waiting:
        if not taken(lock):
            waiting.enter_context(progress.step(f"waiting for another build of {program.name}"))
            while not taken(lock):
                if stop.wait(0.2):
                    raise BuildError(f"somebody else builds {program.name}")
        waiting.close()
        if program.path.exists():
            progress.reused(PART, program.name)
            return
        build(program, go=go, go_cache=go_cache, progress=progress, stop=stop)


def main(arguments: Sequence[str]) -> int:
    """``python -m kaito_local.machine.gotools [cluster]``: builds every missing program, or those that a cluster runs.

    It says so on stderr. Needs nothing but Python's own library, unless stderr is a terminal and `rich` is there.
    """
    tools, cache = ROOT / "tools", cache_folder()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = CLUSTER if list(arguments) == ["cluster"] else catalogue(tools, cache)
    try:
        ensure(names, tools=tools, cache=cache, progress=Progress.to(sys.stderr))
    except LocalError as error:
        print(f"kaito: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
