"""``python -m kaito_local.charts generate|check``, which are ``make generate`` and a part of ``make lint``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kaito_local.charts import checks, documented_values, generated, golden, reference
from kaito_local.charts.checks import Result
from kaito_local.charts.schema_cache import schemas
from kaito_local.charts.setups import Setup, setups
from kaito_local.errors import LocalError
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.gomodules import GoModule
from kaito_local.machine.progress import Progress

_GENERATE = "make generate"


def main(arguments: Sequence[str]) -> int:
    """Prints what was written, or checked and found. Ends with 1 after a finding."""
    commands: Mapping[str, Callable[[], int]] = {"generate": _generate, "check": _check}
    if len(arguments) != 1 or arguments[0] not in commands:
        print("usage: python -m kaito_local.charts generate|check", file=sys.stderr)
        return 2
    try:
        return commands[arguments[0]]()
    except LocalError as error:
        print(f"kaito: {error}", file=sys.stderr)
        return 1


def _generate() -> int:
    # The renders and the references are made of the schemas, too.
    touched = generated.write(documented_values.schemas(ROOT), only_in=frozenset())
    rendered = _rendered(_programs(["helm"])["helm"])
    touched += generated.write(_documents(rendered), only_in=_golden_folders(rendered))
    for file in touched:
        print(f"{file.relative_to(ROOT)}{'' if file.exists() else ' removed'}")
    return 0


def _check() -> int:
    programs = _programs([*gotools.CHARTS, *gotools.CHART_TESTS, *gotools.CONTROL_PLANE])
    failed = False
    for result in _results(programs):
        print(result.checked)
        for finding in result.findings:
            failed = True
            print(finding, file=sys.stderr)
    return int(failed)


def _results(programs: Mapping[str, Path]) -> Iterator[Result]:
    rendered = _rendered(programs["helm"])
    documents = documented_values.schemas(ROOT) | _documents(rendered)
    differing = generated.differences(documents, only_in=_golden_folders(rendered), root=ROOT)
    advice = [f"write them with: {_GENERATE}"] if differing else []
    yield Result(f"generated files: {len(documents)}", [*differing, *advice])
    yield checks.covered(rendered)
    yield checks.ct_lint(ROOT, programs)
    yield checks.suites(ROOT, programs)
    known = schemas(ROOT, programs=programs, cache=cache_folder())
    files = sorted([*ROOT.glob("charts/*/crds/*.yaml"), *ROOT.glob("examples/**/*.yaml")])
    yield checks.kubeconform(rendered, files, known, programs["kubeconform"])
    reasons = ROOT / "charts" / "kube-score.yaml"
    yield checks.kube_score(rendered, reasons, programs["kube-score"], kubernetes=_kubernetes())
    yield checks.promql(rendered, programs["promql"])


def _kubernetes() -> str:
    """The version that the programs are of, as ``v1.34``."""
    version = GoModule.read(ROOT / "tools" / "kubernetes").version("k8s.io/kubernetes/cmd/kube-apiserver")
    return version.rpartition(".")[0]


def _rendered(helm: Path) -> dict[Setup, str]:
    found = setups(ROOT)
    with ThreadPoolExecutor() as pool:
        return dict(zip(found, pool.map(lambda setup: setup.render(helm), found), strict=True))


def _documents(rendered: Mapping[Setup, str]) -> dict[Path, str]:
    return reference.documents(ROOT) | golden.goldens(rendered)


def _golden_folders(rendered: Mapping[Setup, str]) -> frozenset[Path]:
    return frozenset(golden.folder(setup) for setup in rendered)


def _programs(names: Sequence[str]) -> dict[str, Path]:
    return gotools.ensure(names, tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
