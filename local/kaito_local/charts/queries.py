"""What the charts hand to Prometheus and Grafana: rules, dashboards, and the queries in both.

A rule is in a PrometheusRule, a dashboard in a ConfigMap that Grafana's sidecar takes by its label.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from kaito_local.errors import CommandError

DASHBOARD_LABEL = "grafana_dashboard"
_VARIABLE_DURATION = re.compile(r"\$\{?__(rate_interval|interval|range)\}?")
_VARIABLE_LIST = re.compile(r"^label_values\((?P<query>.+),\s*\w+\)$")


def rules(objects: Iterable[Any]) -> Iterator[Any]:
    """The ``spec`` of each PrometheusRule, which is a file of rules."""
    yield from (found["spec"] for found in objects if found["kind"] == "PrometheusRule")


def rule_queries(objects: Iterable[Any]) -> list[str]:
    """The expression of every rule."""
    return [rule["expr"] for spec in rules(objects) for group in spec["groups"] for rule in group["rules"]]


def dashboards(objects: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """File name and content of each dashboard."""
    for found in objects:
        if found["kind"] == "ConfigMap" and DASHBOARD_LABEL in found["metadata"].get("labels", {}):
            for name, text in found["data"].items():
                yield name, json.loads(text)


def dashboard_queries(dashboard: Any) -> list[str]:
    """Every query of a dashboard, also those that list the values of its variables."""
    found = list(_texts(dashboard, "expr"))
    for variable in dashboard.get("templating", {}).get("list", ()):
        query = variable.get("query")
        text = query.get("query", "") if isinstance(query, dict) else str(query)
        if listed := variable_query(text):
            found.append(listed)
    return found


def variable_query(text: str) -> str:
    """The query in Grafana's ``label_values(query, label)``; "" if that is something else."""
    match = _VARIABLE_LIST.match(text)
    return match["query"] if match else ""


def metrics(queries: Sequence[str], promql: Path) -> list[list[str]]:
    """The names of the metrics that each query selects, with five minutes for Grafana's intervals.

    Raises CommandError for queries that Prometheus cannot read.
    """
    lines = [_VARIABLE_DURATION.sub("5m", " ".join(query.split())) for query in queries]
    done = _run(promql, "metrics", "\n".join(lines))
    return [line.split() for line in done.splitlines()]


def check_rules(spec: Any, promql: Path) -> None:
    """Raises CommandError with what Prometheus would not take of a file of rules."""
    _run(promql, "rules", yaml.safe_dump(spec))


def _run(promql: Path, mode: str, text: str) -> str:
    done = subprocess.run([promql, mode], input=text, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise CommandError(done.stderr.strip())
    return done.stdout


def _texts(node: Any, key: str) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get(key), str):
            yield node[key]
        for below in node.values():
            yield from _texts(below, key)
    elif isinstance(node, list):
        for below in node:
            yield from _texts(below, key)
