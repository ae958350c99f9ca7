"""Defaults, rights and annotations that pages name are those of the charts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.documents import pages
from tests.unit.docs.test_links import text_of

CHARTS = ("kaito", "gpu-provisioner")
NUMBERS = {"two": 2, "five": 5, "six": 6, "ten": 10}
UNITS = {"": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "gi": 2**30, "gib": 2**30}
AMOUNT = r"(\d+|two|five|six|ten)(?: (s|seconds?|min|minutes?|h|hours?|GiB)\b|(?=[),]))"
VALUE = r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)`"
BEFORE = re.compile(rf"\b{AMOUNT} \({VALUE}")
AFTER = re.compile(rf"{VALUE}(?:, | \(){AMOUNT}")


def defaults(chart: str) -> dict[str, Any]:
    """The chart's values that are no mappings, by their paths."""
    found = {}

    def walk(values: Mapping[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            else:
                found[path + key] = value

    walk(yaml.safe_load((pages.ROOT / "charts" / chart / "values.yaml").read_text()), "")
    return found


def amount(number: str, unit: str | None) -> int:
    """Seconds, bytes, or the bare number."""
    return (NUMBERS.get(number) or int(number)) * UNITS[(unit or "").lower().removesuffix("s")]


def named(page: Path) -> Iterator[tuple[str, int, str]]:
    """Values with the default that the page says beside them: path, amount, and the page's words."""
    text = " ".join(text_of(page).split())
    for match in BEFORE.finditer(text):
        yield match[3], amount(match[1], match[2]), match[0]
    for match in AFTER.finditer(text):
        yield match[1], amount(match[2], match[3]), match[0]


def test_a_default_that_a_page_names_is_the_charts() -> None:
    known = {path: value for chart in CHARTS for path, value in defaults(chart).items()}
    compared, wrong = set(), []
    for page in (*pages.PAGES, *pages.CHARTS):
        for path, says, words in named(page):
            if path in known:
                compared.add(path)
                found = re.fullmatch(r"(\d+)(\w*)", str(known[path]))
                if found is None or amount(found[1], found[2]) != says:
                    wrong.append(f"{page.name}: {words}: the chart has {known[path]}")
    assert wrong == []
    assert {"timeouts.nodeNotReady", "provisioner.gcInterval", "tuning.check.maxBytes", "metrics.port"} <= compared


@pytest.mark.parametrize("chart", CHARTS)
def test_the_rights_in_the_security_page_are_those_of_the_cluster_role(chart: str) -> None:
    rendered = yaml.safe_load_all((pages.ROOT / "charts" / chart / "tests" / "golden" / "defaults.yaml").read_text())
    [role] = [o for o in rendered if o and o["kind"] == "ClusterRole" and o["metadata"]["name"] == chart]
    given = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    page = (pages.ROOT / "docs" / "security.md").read_text()
    section = page.partition(f"\n### {chart}\n")[2].partition("\n### ")[0]
    assert set(rights(section)) == given


def rights(section: str) -> Iterator[tuple[str, str]]:
    """Resource and verb of each row of the table; verbs of several resources are parted by semicolons."""
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0].startswith(("what", "Azure", "`leases`")):
            continue
        resources = re.findall(r"`([\w/]+)`", cells[0])
        if cells[0].startswith("their"):
            resources = [f"{kind}/{part}" for kind in ("machines", "nodeclaims") for part in resources]
        verbs = [part.split(", ") for part in cells[1].partition(".")[0].split("; ")]
        for resource, of_it in zip(resources, verbs if len(verbs) > 1 else verbs * len(resources), strict=True):
            yield from ((resource, verb) for verb in of_it)


def test_the_annotations_that_the_page_lists_are_those_that_admission_knows() -> None:
    policy = (pages.ROOT / "charts" / "kaito" / "templates" / "policy-annotations.yaml").read_text()
    known = re.findall(r"'(kaito\.sh/[a-z-]+)'", policy.partition("knownAnnotations")[2].partition("- name:")[0])
    section = (pages.ROOT / "docs" / "operations.md").read_text().partition("\n## Annotations of a Workspace\n")[2]
    assert sorted(re.findall(r"^\| `(kaito\.sh/[a-z-]+)` \|", section, re.MULTILINE)) == sorted(known) != []
