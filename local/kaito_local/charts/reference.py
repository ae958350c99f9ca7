"""The documents of docs/reference: every value of the charts, every field of the CRDs, every preset.

Each is made of the one source that the product itself reads, and of nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kaito_local.charts.setups import charts
from kaito_local.charts.shapes import Field, fields, limits_of, type_of
from kaito_local.charts.tables import code, table, text

_GENERATED = "<!-- `make generate` writes this file from {}. -->\n"


def documents(root: Path) -> dict[Path, str]:
    """File -> content of all of them."""
    folder = root / "docs" / "reference"
    found = {folder / f"values-{chart.name}.md": values(chart) for chart in charts(root)}
    for file in sorted((root / "charts").glob("*/crds/*.yaml")):
        crd = yaml.safe_load(file.read_text())
        found[folder / f"{crd['spec']['names']['singular']}.md"] = kind(crd, str(file.relative_to(root)))
    found[folder / "presets.md"] = presets(root)
    return {folder / "README.md": index(found), **found}


def index(documents: Mapping[Path, str]) -> str:
    """A page with a link to each of the documents, by its title."""
    titles = {file.name: text.partition("\n")[0].removeprefix("# ") for file, text in documents.items()}
    links = "".join(f"- [{title}]({name})\n" for name, title in titles.items())
    return "# Reference\n\n" + _GENERATED.format("the charts and presets") + "\n" + links


def values(chart: Path) -> str:
    """Every value of a chart: key, type, default, meaning."""
    schema = json.loads((chart / "values.schema.json").read_text())
    defaults = yaml.safe_load((chart / "values.yaml").read_text())
    definitions = schema.get("$defs", {})
    rows = []
    for field in fields(schema, definitions):
        if field.schema.get("$ref") != "#/$defs/ofUpstream":
            default = _default(field.path, defaults)
            # What values.yaml gives is not required of who installs.
            meaning = _meaning(field if default is None else replace(field, required=False), definitions)
            # A value whose parts have rows of their own has its default there.
            shown = "" if default != "`{}`" and "properties" in field.schema else default or ""
            rows.append((code(field.path), type_of(field.schema, definitions), shown, meaning))
    return (
        f"# Values of the chart {chart.name}\n\n"
        + _GENERATED.format(f"charts/{chart.name}/values.yaml and values.schema.json")
        + "\nA key without a default may be left out. `<name>` stands for any name, `[]` for each item of a list. A key"
        " that is not in this list is refused.\n\n" + table(("value", "type", "default", "meaning"), rows)
    )


def kind(crd: Mapping[str, Any], source: str) -> str:
    """Every field of a kind, and the rules that the API server checks besides."""
    spec = crd["spec"]
    page = f"# {spec['names']['kind']}\n\n" + _GENERATED.format(source)
    for version in spec["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        rows = [
            (
                code(field.path),
                type_of(field.schema, {}),
                code(json.dumps(field.schema["default"])) if "default" in field.schema else "",
                _meaning(field, {}),
            )
            for field in fields(schema, {})
            if field.path not in ("apiVersion", "kind", "metadata")
        ]
        scope = "Of a namespace." if spec["scope"] == "Namespaced" else "Of the cluster, not of a namespace."
        page += f"\n`apiVersion: {spec['group']}/{version['name']}`, `kind: {spec['names']['kind']}`. {scope}"
        page += f" {schema.get('description', '')}".rstrip() + "\n\n"
        page += table(("field", "type", "default", "meaning"), rows)
        rules = list(_rules(schema))
        if rules:
            page += "\nThe API server refuses what breaks one of these rules:\n\n" + table(("at", "answer"), rules)
    return page


def presets(root: Path) -> str:
    """The models and instance types that the charts bring, with their sizes."""
    folder = root / "presets"
    models = {name: entry for _, found in _files(folder / "models") for name, entry in found.items()}
    page = (
        "# Presets and instance types\n\n"
        + _GENERATED.format("presets/")
        + "\nWhat the fields mean, and which type holds which preset, is in"
        " [presets/README.md](../../presets/README.md); a model of your own is one entry of the value `presets`"
        " ([values](values-kaito.md)). Memory and disk are in GiB.\n\n## Models\n\n"
    )
    page += table(
        (
            *(
                "preset",
                "family",
                "GPUs",
                "memory",
                "memory of each GPU",
                "disk",
                "context",
                "engines",
                "several nodes",
            ),
            *("access", "ready within", "memory to tune: qlora, lora"),
        ),
        [
            (
                code(name),
                entry["family"],
                str(entry["gpuCount"]),
                str(entry["totalGPUMemoryGiB"]),
                str(entry["perGPUMemoryGiB"] or "not checked"),
                str(entry["diskGiB"]),
                f"{entry['contextLength']:,}",
                ", ".join(entry["engines"]),
                "yes" if entry["distributed"] else "no",
                entry["accessMode"],
                entry["readinessTimeout"],
                ", ".join(str(entry["tuning"][method]["gpuMemoryGiB"]) for method in ("qlora", "lora"))
                if "tuning" in entry
                else "not tuned",
            )
            for name, entry in models.items()
        ],
    )
    for cloud, types in _files(folder / "instance-types"):
        page += f"\n## Instance types of {cloud}\n\n" + table(
            ("instance type", "GPUs", "memory of all", "model", "vendor", "retired by its cloud"),
            [
                (
                    code(name),
                    str(entry["gpuCount"]),
                    str(entry["totalGPUMemoryGiB"]),
                    entry.get("gpuModel", ""),
                    entry.get("gpuVendor", "nvidia"),
                    str(entry.get("retired", "")),
                )
                for name, entry in types.items()
            ],
        )
    return page


def _files(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(folder.glob("*.yaml")):
        yield file.stem, yaml.safe_load(file.read_text())


def _default(path: str, defaults: Any) -> str | None:
    """The value of values.yaml as code; None for a key that is not there."""
    value = defaults
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return code(json.dumps(value, ensure_ascii=False))


def _meaning(field: Field, definitions: Mapping[str, Any]) -> str:
    said = text(str(field.schema.get("description", "")).strip())
    must = [*(["required"] if field.required else []), *limits_of(field.schema, definitions)]
    limits = f"{'; '.join(must)}." if must else ""
    return " ".join(part for part in (said, limits[:1].upper() + limits[1:]) if part)


def _rules(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    below = [Field("", schema, required=False), *fields(schema, {})]
    for field in below:
        for rule in field.schema.get("x-kubernetes-validations", ()):
            if "message" in rule:
                yield code(field.path) or "the object", text(rule["message"])
