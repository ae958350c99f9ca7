"""What Prometheus' own code makes of expressions, relabelings and rules."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from kaito_local.charts.queries import metrics, variable_query
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder


@cache
def series(expression: str) -> set[str]:
    """The series that it selects by name; an expression that Prometheus cannot read is a CommandError."""
    promql = gotools.ensure(["promql"], tools=ROOT / "tools", cache=cache_folder())["promql"]
    [names] = metrics([expression], promql)
    return set(names)


def of_variable(query: str) -> set[str]:
    """The series in a dashboard's ``label_values(series, label)``."""
    return series(variable_query(query))


def relabelled(rules: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, str]]) -> list[dict[str, str] | None]:
    """The labels of each target after relabelings as a PodMonitor has them; None for one that is dropped."""
    spelled = [{re.sub(r"[A-Z]", lambda m: f"_{m[0].lower()}", key): rule[key] for key in rule} for rule in rules]
    found: list[dict[str, str] | None] = json.loads(_asked("relabel", {"rules": spelled, "targets": list(targets)}))
    return found


@dataclass(frozen=True, slots=True)
class Fired:
    """An alert that fired from one second to another, with the sentences of its first one."""

    alert: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    begin: int
    end: int


def fired(rules: Any, series: Mapping[str, str], *, minutes: int) -> list[Fired]:
    """What of a file of rules fires on series in the notation of Prometheus' tests of rules, with a sample a minute."""
    trial = {"rules": yaml.safe_dump(rules), "series": dict(series), "every": 60, "until": minutes * 60}
    return [
        Fired(each["alert"], each["labels"], each["annotations"], each["from"], each["to"])
        for each in json.loads(_asked("alerts", trial))
    ]


def _asked(mode: str, document: object) -> str:
    promql = gotools.ensure(["promql"], tools=ROOT / "tools", cache=cache_folder())["promql"]
    text = json.dumps(document)
    done = subprocess.run([promql, mode], input=text, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
