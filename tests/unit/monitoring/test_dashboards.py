"""Dashboards and alerts ask for series that our programs export, in a form that Grafana and Prometheus can read."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.docs.test_links import anchors
from tests.unit.monitoring import exported
from tests.unit.monitoring.queries import of_variable, series
from tests.unit.monitoring.test_metrics_page import PAGE, chapter

from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "kaito"
BOARDS = sorted((CHART / "dashboards").glob("*.json"))
MODELS, OPERATOR = (CHART / "dashboards" / f"{name}.json" for name in ("models", "operator"))
OPERATIONS = ROOT / "docs" / "operations.md"
TARGETED = ("podMonitor", "prometheusRule", "dashboards")
OF_MODELS = {name for export in (exported.serving, exported.tuning) for each in export() for name in each.stored}
OF_CONTROLLERS = {
    name
    for export in (exported.runtime, exported.controller, exported.provisioner)
    for each in export()
    for name in each.stored
}

board = pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)


def panels(file: Path) -> Iterator[dict[str, Any]]:
    yield from json.loads(file.read_text())["panels"]


def targets(file: Path) -> list[dict[str, Any]]:
    return [target for panel in panels(file) for target in panel.get("targets", ())]


@cache
def rendered() -> dict[str, Any]:
    """What the chart renders of these, by kind."""
    helm = gotools.ensure(["helm"], tools=ROOT / "tools", cache=cache_folder())["helm"]
    switches = [f"--set={name}.enabled=true" for name in TARGETED]
    command = [helm, "template", "kaito", CHART, "--namespace=kaito-workspace", "--no-hooks", *switches]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return {
        obj["kind"]: obj
        for obj in yaml.safe_load_all(done.stdout)
        if obj and (obj["kind"] in ("PodMonitor", "PrometheusRule") or obj["metadata"]["name"].endswith("-dashboards"))
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in rendered()["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a, b) (rate(x_total{code=~"5..", y="z_total"}[5m])) / max(v:w) > 0.05', {"x_total", "v:w"}),
        ("histogram_quantile(0.95, sum by (le) (rate(x_bucket[$__rate_interval])))", {"x_bucket"}),
        ('absent(x{name="y"} == 1) unless on (z) max_over_time(y[1d])', {"x", "y"}),
        ('{__name__=~"x_total|y", z="1"}', {"x_total", "y"}),
        ("1e3 + 2", set()),
    ],
)
def test_the_series_of_an_expression_are_found(expression: str, names: set[str]) -> None:
    assert series(expression) == names


@board
def test_a_dashboard_asks_for_series_that_are_exported(file: Path) -> None:
    known = OF_MODELS if file == MODELS else OF_CONTROLLERS
    for target in targets(file):
        asked = series(target["expr"])
        assert asked, target
        assert asked <= known, target["expr"]
    for variable in json.loads(file.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            assert of_variable(variable["query"]["query"]) <= known


def test_the_dashboard_of_the_controllers_shows_no_other_operators() -> None:
    """Series under names of controller-runtime and client-go are counted where ours are exported, too."""
    for target in targets(OPERATOR):
        if any(not name.startswith(("kaito_", "karpenter_")) for name in series(target["expr"])):
            assert "and on (job, instance) kaito_events_dropped_total" in target["expr"], target["expr"]


def test_all_workspaces_are_those_that_a_series_names() -> None:
    """Else the series of other vLLM servers, which name none, would be among them."""
    chosen = [v for v in json.loads(MODELS.read_text())["templating"]["list"] if v["type"] == "query"]
    assert {v["allValue"] for v in chosen} == {".+"}


def test_alerts_ask_for_series_that_are_exported() -> None:
    for alert in alerts():
        assert series(alert["expr"]), alert
        assert series(alert["expr"]) <= OF_MODELS | OF_CONTROLLERS, alert["expr"]


def test_every_series_of_a_model_server_and_of_a_training_is_on_its_dashboard() -> None:
    shown = {name for target in targets(MODELS) for name in series(target["expr"])}
    missing = [each.name for each in (*exported.serving(), *exported.tuning()) if not shown & set(each.stored)]
    assert missing == []


def test_the_workspaces_to_choose_from_are_those_that_serve_and_those_that_train() -> None:
    listed = {
        v["name"]: of_variable(v["query"]["query"])
        for v in json.loads(MODELS.read_text())["templating"]["list"]
        if v["type"] == "query"
    }
    both = {"kaito_serving_build_info", "kaito_tuning_step"}
    assert listed == {"namespace": both, "workspace": both}


@board
def test_every_panel_has_an_id_of_its_own_a_title_and_a_place(file: Path) -> None:
    found = list(panels(file))
    ids = [panel["id"] for panel in found]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in found:
        assert panel["title"]
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@board
def test_every_panel_takes_the_data_source_that_the_reader_chooses(file: Path) -> None:
    whole = json.loads(file.read_text())
    [chosen] = [v for v in whole["templating"]["list"] if v["type"] == "datasource"]
    assert (chosen["name"], chosen["query"]) == ("datasource", "prometheus")
    sources = [p["datasource"] for p in panels(file) if p["type"] != "row"]
    sources += [target["datasource"] for target in targets(file)]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


@board
def test_a_panel_names_its_lines_by_labels_of_its_query(file: Path) -> None:
    for target in targets(file):
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = {
            label.strip() for found in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in found.split(",")
        }
        assert named <= grouped, target


def test_dashboards_are_told_apart_and_rendered_as_they_are() -> None:
    boards = [json.loads(file.read_text()) for file in BOARDS]
    assert len({each["uid"] for each in boards}) == len({each["title"] for each in boards}) == len(BOARDS) == 2
    config_map = rendered()["ConfigMap"]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["data"] == {file.name: file.read_text() for file in BOARDS}


def test_every_alert_leads_to_a_chapter_of_its_own() -> None:
    titles = re.findall(r"^### (\w+)$", chapter("Alerts"), re.MULTILINE)
    assert titles == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert page.endswith(f"/docs/{PAGE.name}")
        assert anchor in anchors(PAGE), alert["alert"]
        assert anchor == alert["alert"].lower()


def test_a_chapter_says_what_an_alert_means_what_to_look_at_and_what_to_do() -> None:
    _, *chapters = re.split(r"^### ", chapter("Alerts"), flags=re.MULTILINE)
    for text in chapters:
        assert re.findall(r"^- \*\*(.+)\*\*: \S", text, re.MULTILINE) == ["Means", "Look at", "Do"], text


def test_the_page_on_operations_leads_to_the_chapter_of_every_alert() -> None:
    links = set(re.findall(r"\[(\w+)\]\(metrics\.md#(\w+)\)", OPERATIONS.read_text()))
    assert links >= {(alert["alert"], alert["alert"].lower()) for alert in alerts()}


def test_an_alert_says_what_is_wrong_in_sentences() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        for part in ("summary", "description"):
            assert re.fullmatch(r"[A-Z{].*\.", alert["annotations"][part]), alert
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        grouped = {
            label.strip() for found in re.findall(r"\bby \(([^)]*)\)", alert["expr"]) for label in found.split(",")
        }
        assert named <= grouped, alert["alert"]


def test_what_runs_in_a_pod_is_scraped_in_every_namespace() -> None:
    spec = rendered()["PodMonitor"]["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    assert {endpoint["path"] for endpoint in spec["podMetricsEndpoints"]} == {"/metrics"}
