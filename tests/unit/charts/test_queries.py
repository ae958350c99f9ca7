"""Rules and dashboards of the charts are read as Prometheus would read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kaito_local.charts.queries import check_rules, dashboard_queries, dashboards, metrics, rule_queries, rules
from kaito_local.errors import CommandError
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder

ALERT = {"alert": "Down", "expr": "absent(up{job='kaito'})", "for": "5m", "labels": {"severity": "critical"}}
RULES = {"kind": "PrometheusRule", "spec": {"groups": [{"name": "kaito", "rules": [ALERT]}]}}
DASHBOARD = """{"panels": [{"targets": [{"expr": "rate(kaito_total{namespace=\\"$ns\\"}[$__rate_interval])"}]},
{"panels": [{"targets": [{"expr": "histogram_quantile(0.9, sum by (le) (kaito_seconds_bucket)) / up"}]}]}],
"templating": {"list": [{"query": {"query": "label_values(kaito_info, namespace)"}}, {"query": "prometheus"}]}}"""
CONFIG_MAP = {
    "kind": "ConfigMap",
    "metadata": {"labels": {"grafana_dashboard": "1"}},
    "data": {"kaito.json": DASHBOARD},
}
OTHER_MAP = {"kind": "ConfigMap", "metadata": {}, "data": {"config.yaml": "a: b"}}


@pytest.fixture(scope="module")
def promql() -> Path:
    return gotools.ensure(["promql"], tools=ROOT / "tools", cache=cache_folder())["promql"]


def test_the_metrics_of_rules_and_dashboards_are_named(promql: Path) -> None:
    objects: list[Any] = [RULES, OTHER_MAP, CONFIG_MAP]
    [(name, dashboard)] = dashboards(objects)
    assert name == "kaito.json"
    assert metrics([*rule_queries(objects), *dashboard_queries(dashboard)], promql) == [
        ["up"],
        ["kaito_total"],
        ["kaito_seconds_bucket", "up"],
        ["kaito_info"],
    ]


def test_good_rules_are_taken(promql: Path) -> None:
    [spec] = rules([RULES])
    check_rules(spec, promql)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"expr": "sum(up"}, "unclosed left parenthesis"),
        ({"expr": "up == "}, "unexpected end of input"),
        ({"expr": "rate(up)"}, "expected type range vector"),
        ({"for": "5 minutes"}, 'unknown unit " minutes" in duration'),
        ({"fro": "5m"}, "field fro not found"),
        ({"labels": {"not a label": "x"}}, "invalid label name"),
        ({"annotations": {"summary": "{{ $labels.pod"}}, "unclosed action"),
        ({"alert": ""}, "one of 'record' or 'alert' must be set"),
    ],
)
def test_what_prometheus_would_refuse_is_told(change: dict[str, Any], said: str, promql: Path) -> None:
    spec = {"groups": [{"name": "kaito", "rules": [{**ALERT, **change}]}]}
    with pytest.raises(CommandError, match=said):
        check_rules(spec, promql)


def test_a_query_that_cannot_be_read_is_named(promql: Path) -> None:
    with pytest.raises(CommandError, match=r"^up \+: 1:5: parse error"):
        metrics(["up", "up + "], promql)
