"""Links between the pages lead somewhere, and so do the names of values, files and metrics in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.documents import pages

ROOT = pages.ROOT
READ = (
    *pages.PAGES,
    *(ROOT / "charts" / chart / "README.md" for chart in ("kaito", "gpu-provisioner")),
    ROOT / "presets" / "README.md",
    ROOT / "examples" / "README.md",
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def text_of(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(text_of(index))}
    assert {page for page in pages.PAGES if page != index} - linked == set()


def known_values() -> set[str]:
    """Paths of values, of both charts; below an open mapping anything may follow."""
    found = set()

    def walk(value: Any, path: str) -> None:
        found.add(path)
        for key, below in value.items() if isinstance(value, dict) else ():
            walk(below, f"{path}.{key}" if path else key)

    for chart in ("kaito", "gpu-provisioner"):
        walk(yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text()), "")
    return found


def known_fields() -> set[str]:
    """Names of fields of our kinds."""
    crds = "\n".join(path.read_text() for path in ROOT.glob("charts/*/crds/*.yaml"))
    return set(re.findall(r"^ +([a-zA-Z]+):", crds, re.MULTILINE))


def test_every_value_of_a_chart_that_is_named_exists() -> None:
    known, fields = known_values(), known_fields()
    unknown = set()
    for page in pages.PAGES:
        for code in CODE.findall(text_of(page)):
            path = re.split(r"[=:]", code)[0]
            parts = path.split(".")
            if not re.fullmatch(r"([a-zA-Z]+)(\.[a-zA-Z0-9]+)+", path) or parts[0] not in known:
                continue
            is_field, is_room = set(parts) <= fields, (ROOT / "hooks" / "kaito_hooks" / Path(*parts)).is_dir()
            is_open = parts[0] in ("presets", "instanceTypes", "agentPool")
            if path not in known and not is_field and not is_room and not is_open:
                unknown.add(f"{page.name}: {path}")
    assert not unknown, f"no chart has these values: {sorted(unknown)}"


def test_every_metric_that_is_named_is_exported() -> None:
    sources = [*ROOT.glob("hooks/kaito_hooks/**/*.py"), *ROOT.glob("serving/kaito_serving/**/*.py")]
    sources += ROOT.glob("tuning/kaito_tuning/**/*.py")
    text = "\n".join(path.read_text() for path in sources)
    exported = set(re.findall(r'"(?:vllm:)?([a-z][a-z0-9]*(?:_[a-z0-9]+)+)"', text))
    prefixes = ("controller_runtime_", "workqueue_", "kaito_provisioner_", "karpenter_", "leader_election_", "vllm:")
    named = {
        (page.name, code)
        for page in pages.PAGES
        for code in CODE.findall(text_of(page))
        if code.startswith(prefixes) and re.fullmatch(r"[a-z:_0-9]+", code) and not code.endswith("_")
    }
    assert named
    bare = {(page, name.removeprefix("vllm:")) for page, name in named}
    missing = {(page, name) for page, name in bare if not {name, name.removesuffix("_total")} & exported}
    assert not missing, f"nothing exports {sorted(missing)}"


def test_every_file_of_the_project_that_is_named_exists() -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    missing = set()
    for page in READ:
        for code in CODE.findall(text_of(page)):
            path = code.rstrip("/")
            if "/" not in path or " " in path or not re.fullmatch(r"[\w./*<>{},-]+", path):
                continue
            is_ours = path.partition("/")[0] in folders and not re.search("[<{]", path)
            if is_ours and not list(ROOT.glob(path)) and not list(page.parent.glob(path)):
                missing.add(f"{page.name}: {code}")
    assert not missing, f"these do not exist: {sorted(missing)}"
