"""The checks of the charts, each by the program that the field has for it; all of them are pinned below tools/."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kaito_local.charts import json_schemas, queries, review
from kaito_local.charts.setups import Setup, charts
from kaito_local.errors import CommandError


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found: a line that says what was checked, and what is wrong."""

    checked: str
    findings: Sequence[str] = ()


def covered(rendered: Mapping[Setup, str]) -> Result:
    """Every template with an object renders it in one of its chart's set-ups, so that the other checks see it."""
    found = {match[1] for text in rendered.values() for match in re.finditer(r"^# Source: (\S+)$", text, re.MULTILINE)}
    files = [file for folder in {setup.folder for setup in rendered} for file in folder.glob("templates/*.yaml")]
    templates = {
        f"{file.parents[1].name}/templates/{file.name}" for file in files if re.search("^kind:", file.read_text(), re.M)
    }
    lacking = [f"{template} renders nothing in any set-up of ci/" for template in sorted(templates - found)]
    return Result(f"set-ups: {len(rendered)}, {len(templates)} templates", lacking)


def ct_lint(root: Path, programs: Mapping[str, Path]) -> Result:
    """Chart.yaml, values and templates of each chart with every file of ci/, by chart-testing and `helm lint`."""
    path = {"PATH": f"{programs['helm'].parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = _run([programs["ct"], "lint", "--config=ct.yaml", "--all"], folder=root, environment=path)
    return Result(f"ct lint: {len(charts(root))} charts", _failed(done))


def suites(root: Path, programs: Mapping[str, Path]) -> Result:
    """The charts' own suites."""
    done = _run([programs["helm-unittest"], *charts(root)], folder=root)
    counts = dict(re.findall(r"^(Test Suites|Tests): .*?(\d+) total$", done.stdout, re.MULTILINE))
    said = f"helm-unittest: {counts.get('Test Suites', 0)} suites, {counts.get('Tests', 0)} tests"
    return Result(said, _failed(done) or ([] if counts else ["helm-unittest has found no suite"]))


def kubeconform(rendered: Mapping[Setup, str], files: Sequence[Path], schemas: Path, program: Path) -> Result:
    """Every field of every object is one that our API server knows, and has a value that it takes."""
    command: list[str | Path] = [
        program,
        "-strict",
        "-output=json",
        "-summary",
        f"-schema-location={schemas}/{json_schemas.LOCATION}",
        "-",
    ]
    inputs = {str(setup): text for setup, text in rendered.items()} | {
        "/".join(file.parts[-3:]): file.read_text() for file in files
    }
    found: list[str] = []
    objects = 0
    for name, text in inputs.items():
        done = _run(command, text=text)
        try:
            said = json.loads(done.stdout)
        except ValueError:
            raise CommandError(f"kubeconform failed: {done.stderr.strip() or done.stdout.strip()}") from None
        objects += sum(said["summary"].values())
        found += [f"{name}: {bad['kind']} {bad['name']}: {bad['msg']}" for bad in said.get("resources") or ()]
    return Result(f"kubeconform, strict: {objects} objects of {len(rendered)} renders and {len(files)} files", found)


def kube_score(rendered: Mapping[Setup, str], reasons: Path, program: Path, *, kubernetes: str) -> Result:
    """No finding of kube-score is without a reason, and no reason without a finding."""
    found = [
        finding
        for text in rendered.values()
        for finding in review.findings(text, kube_score=program, kubernetes=kubernetes)
    ]
    given = review.reasons(reasons)
    said = f"kube-score: {len(set(found))} findings, explained by {len(given)} reasons of {reasons.name}"
    return Result(said, review.unexplained(found, given))


def promql(rendered: Mapping[Setup, str], program: Path) -> Result:
    """Prometheus takes every rule, and reads every query of a dashboard."""
    found: list[str] = []
    rules = asked = 0
    for setup, text in rendered.items():
        objects = [part for part in yaml.safe_load_all(text) if part]
        wanted = {name: queries.dashboard_queries(board) for name, board in queries.dashboards(objects)}
        rules += len(queries.rule_queries(objects))
        asked += sum(map(len, wanted.values()))
        try:
            for spec in queries.rules(objects):
                queries.check_rules(spec, program)
            for asking in wanted.values():
                queries.metrics(asking, program)
        except CommandError as error:
            found.append(f"{setup}: {error}")
    return Result(f"promql: {rules} rules, {asked} queries of dashboards", found)


def _run(
    command: Sequence[str | Path], *, folder: Path | None = None, environment: Mapping[str, str] = {}, text: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def _failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [] if done.returncode == 0 else [f"{done.stdout}{done.stderr}".strip()]
