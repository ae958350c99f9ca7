"""docs/metrics.md lists every series that our programs export, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.monitoring import exported
from tests.unit.monitoring.exported import Series

from kaito_hooks.runtime import Client
from kaito_hooks.workspace.__main__ import build
from kaito_hooks.workspace.configuration.settings import Process, Settings
from kaito_hooks.workspace.status import startup

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(?P<name>[a-z0-9_:]+)` \| (?P<type>[a-z]+) \| (?P<labels>[^|]*) \| (?P<help>.*) \|")
CHAPTERS = {
    "Workspace controller": exported.controller,
    "gpu-provisioner": exported.provisioner,
    "Both controllers": exported.runtime,
    "Models": exported.serving,
    "Tuning jobs": exported.tuning,
}


def chapter(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("title", CHAPTERS)
def test_the_page_has_the_series_that_the_code_exports(title: str) -> None:
    export: Callable[[], tuple[Series, ...]] = CHAPTERS[title]
    rows = {row.name: row for row in map(read, ROW.finditer(chapter(title)))}
    assert set(rows.values()) == set(export())
    told = {each.name: rows[each.name].labels for each in export() if each.labels}
    assert told == {each.name: each.labels for each in export() if each.labels}


def read(row: re.Match[str]) -> Series:
    labels = frozenset(re.findall(r"`(\w+)`", row["labels"]))
    return Series(row["name"], row["type"], row["help"], labels)


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: nowhere, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: nowhere, context: {cluster: nowhere, user: nobody}}]
users: [{name: nobody, user: {}}]
current-context: nowhere
"""


def test_the_controllers_process_exports_what_the_page_says(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(KUBECONFIG)
    manager = build(Client.load(kubeconfig=str(file)), Settings(), Process())
    names = {family.name for family in manager.metrics.registry.collect()}
    wanted = {each.name.removesuffix("_total") for each in (*exported.runtime(), *exported.controller())}
    assert wanted <= names


def test_the_page_explains_every_phase_of_a_start() -> None:
    rows = re.findall(r"^\| `([A-Za-z]+)` \|", chapter("The first start by phases"), re.MULTILINE)
    assert rows == list(startup.WORDS)
