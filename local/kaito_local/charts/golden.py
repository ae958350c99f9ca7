"""Golden renders: what each set-up installs, kept where a change of it is seen in a review.

That of the defaults is whole. The others hold the objects that differ from it and name those that they lack, so that a
change of a template is read once, and a set-up's file says what its values do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaito_local.charts.setups import DEFAULTS, Setup

_SOURCE = re.compile(r"^# Source: (\S+)$", re.MULTILINE)
_FIRST = {key: re.compile(rf"^(?:  )?{key}: (\S+)$", re.MULTILINE) for key in ("kind", "name")}


def goldens(rendered: Mapping[Setup, str]) -> dict[Path, str]:
    """File -> content for the renders of set-ups, which are all those of their charts."""
    defaults = {setup.chart: objects(text) for setup, text in rendered.items() if setup.name == DEFAULTS}
    return {
        folder(setup) / f"{setup.name}.yaml": _golden(setup, objects(text), defaults[setup.chart])
        for setup, text in rendered.items()
    }


def folder(setup: Setup) -> Path:
    """Where the golden renders of a chart lie."""
    return setup.folder / "tests" / "golden"


def objects(rendered: str) -> list[str]:
    """The objects of a render as helm writes them, each with the comment that names its template."""
    return [part.strip() for part in re.split(r"^---$", rendered, flags=re.MULTILINE) if _SOURCE.search(part)]


def _golden(setup: Setup, found: Sequence[str], defaults: Sequence[str]) -> str:
    if setup.name == DEFAULTS:
        said, shown = f"# The chart {setup.chart} with its default values.", found
    else:
        said = f"# What is otherwise than in {DEFAULTS}.yaml with ci/{setup.values.name}."
        shown = [text for text in found if text not in defaults]
    there = {title(text) for text in found}
    lacking = [f"# Not there: {name}" for text in defaults if (name := title(text)) not in there]
    return "\n".join([said, *lacking, *(f"---\n{_without_files(text, setup.folder)}" for text in shown)]) + "\n"


def title(text: str) -> str:
    """``Kind name`` of an object; its first line of each is at the top or in its metadata."""
    kind, name = (pattern.search(text) for pattern in _FIRST.values())
    return " ".join(match[1] for match in (kind, name) if match)


def _without_files(text: str, chart: Path) -> str:
    """The object without CRDs and dashboards that it carries word for word: they are files of the chart already."""
    for file in sorted((chart / "crds").glob("*.yaml")):
        lines = file.read_text().strip().splitlines()
        carried = "\n".join(f"    {line}" if line else "    " for line in lines)
        text = text.replace(carried, f"    (crds/{file.name})")
    for file in sorted((chart / "dashboards").glob("*.json")):
        text = re.sub(
            rf'^  {re.escape(file.name)}: ".*"$', f"  {file.name}: (dashboards/{file.name})", text, flags=re.M
        )
    return text
