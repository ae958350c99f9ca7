"""Golden renders tell what a set-up installs, and generated files that differ are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito_local.charts import generated
from kaito_local.charts.checks import covered
from kaito_local.charts.golden import goldens
from kaito_local.charts.setups import DEFAULTS, Setup, setups
from kaito_local.cluster.charts import Cloud, local_values
from kaito_local.machine.folders import ROOT

LOCAL = local_values(
    cloud=Cloud(*("https://10.0.0.1",) * 2, "pem", *("",) * 6), mirrors={}, plain_http=[], network="10.0.0.0/24"
)


def document(kind: str, name: str, more: str = "") -> str:
    return f"---\n# Source: mine/templates/{kind.lower()}.yaml\nkind: {kind}\nmetadata:\n  name: {name}\n{more}"


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    (tmp_path / "mine" / "crds").mkdir(parents=True)
    return tmp_path / "mine"


def written(chart: Path, **renders: str) -> dict[str, str]:
    found = goldens({Setup(chart, chart / "ci" / f"{name}-values.yaml"): text for name, text in renders.items()})
    return {file.name: text for file, text in found.items()}


def test_a_set_up_is_told_by_what_is_otherwise_than_in_the_defaults(chart: Path) -> None:
    same, gone = document("Service", "a"), document("DaemonSet", "b")
    before, after = (
        document("Deployment", "c", "spec: {replicas: 1}\n"),
        document("Deployment", "c", "spec: {replicas: 2}\n"),
    )
    found = written(chart, defaults=same + gone + before, other=same + after)
    assert found["defaults.yaml"].count("kind: ") == 3
    assert found["other.yaml"] == (
        "# What is otherwise than in defaults.yaml with ci/other-values.yaml.\n# Not there: DaemonSet b\n" + after
    )


def test_a_crd_that_an_object_carries_is_named_only(chart: Path) -> None:
    (chart / "crds" / "x.yaml").write_text("kind: CustomResourceDefinition\n\nspec: {}\n")
    carried = "data:\n  x.yaml: |\n    kind: CustomResourceDefinition\n    \n    spec: {}\n"
    [golden] = written(chart, defaults=document("ConfigMap", "crds", carried)).values()
    assert "    (crds/x.yaml)\n" in golden
    assert "CustomResourceDefinition" not in golden


def test_a_dashboard_that_an_object_carries_is_named_only(chart: Path) -> None:
    (chart / "dashboards").mkdir()
    (chart / "dashboards" / "x.json").write_text('{"title": "x"}')
    carried = 'data:\n  x.json: "{\\"title\\": \\"x\\"}"\n'
    [golden] = written(chart, defaults=document("ConfigMap", "dashboards", carried)).values()
    assert "  x.json: (dashboards/x.json)\n" in golden


def test_every_chart_has_a_set_up_of_its_defaults_and_others() -> None:
    for chart in ("kaito", "gpu-provisioner"):
        names = [setup.name for setup in setups(ROOT) if setup.chart == chart]
        assert names[0] == DEFAULTS
        assert len(names) > 3


def test_what_would_be_written_otherwise_is_named_with_the_lines(tmp_path: Path) -> None:
    good, bad, new = tmp_path / "good", tmp_path / "bad", tmp_path / "folder" / "new"
    for file in (good, bad):
        file.write_text("one\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "stranger").touch()
    wanted, folders = {good: "one\n", bad: "two\n", new: "three\n"}, frozenset({tmp_path / "folder"})
    found = generated.differences(wanted, only_in=folders, root=tmp_path)
    assert len(found) == 3
    assert found[0].startswith("--- bad\n")
    assert "-one\n+two" in found[0]
    assert found[1].startswith("--- folder/new\n")
    assert found[2] == "folder/stranger is not generated any more"
    assert generated.write(wanted, only_in=folders) == [bad, new, tmp_path / "folder" / "stranger"]
    assert generated.differences(wanted, only_in=folders, root=tmp_path) == []


def test_a_template_that_no_set_up_renders_is_named(chart: Path) -> None:
    (chart / "templates").mkdir()
    for template in ("service.yaml", "monitor.yaml", "_helpers.tpl"):
        (chart / "templates" / template).write_text("kind: Service\n")
    (chart / "templates" / "unfit.yaml").write_text('{{ fail "no" }}\n')
    rendered = {Setup(chart, chart / "ci" / "defaults-values.yaml"): document("Service", "a")}
    assert covered(rendered).findings == ["mine/templates/monitor.yaml renders nothing in any set-up of ci/"]


@pytest.mark.parametrize("chart", LOCAL)
def test_the_set_up_local_sets_what_a_local_cluster_sets(chart: str) -> None:
    file = ROOT / "charts" / chart / "ci" / "local-values.yaml"
    assert keys(yaml.safe_load(file.read_text())) == keys(LOCAL[chart])


def keys(values: Any) -> Any:
    """The keys of a map, without those of the user's own."""
    if not isinstance(values, dict):
        return None
    return {name: None if name == "mirrors" else keys(below) for name, below in values.items()}
