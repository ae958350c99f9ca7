"""Charts are installed on a cluster that serves the kinds of their CRDs, however slow its API server is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kaito_local.cluster import definitions
from kaito_local.cluster.charts import Charts
from kaito_local.cluster.definitions import apply_definitions
from kaito_local.errors import CommandError, StartError
from kaito_local.machine.progress import Step

# kubectl and helm in one; answers for the kind when it is asked for the third time.
_PROGRAM = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in
  apply*) echo customresourcedefinition.apiextensions.k8s.io/catalogs.kaito.sh ;;
  *catalogs.kaito.sh*)
    echo asked >> calls
    if [ "$(grep -c ^asked calls)" -le 2 ]; then
      echo 'error: the server doesn'"'"'t have a resource type "catalogs"' >&2; exit 1
    fi ;;
esac
"""


def test_helm_runs_once_the_kinds_are_served(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(_PROGRAM)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    charts = Charts(
        folder=tmp_path / "charts",
        environment=os.environ,
        helm=program,
        kubectl=program,
        values={"kaito": {}, "gpu-provisioner": {}},
    )
    charts.install(work=tmp_path / "values", step=Step("installing", begin=0.0, clock=lambda: 0.0))
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls if call.split()[0] in ("apply", "asked", "upgrade")] == [
        *("apply", "asked", "asked", "asked", "upgrade"),
        *("apply", "asked", "upgrade"),
    ]


def test_all_kinds_are_asked_for_in_all_folders(tmp_path: Path) -> None:
    calls: list[tuple[str, ...]] = []

    def kubectl(*arguments: str) -> str:
        calls.append(arguments)
        names = ("catalogs.kaito.sh", "machines.karpenter.sh")
        return "".join(f"customresourcedefinition.apiextensions.k8s.io/{name}\n" for name in names)

    apply_definitions(kubectl, tmp_path / "a", tmp_path / "b")
    apply, get = calls
    assert {f"--filename={tmp_path / 'a'}", f"--filename={tmp_path / 'b'}"} < set(apply)
    assert "--force-conflicts" not in apply
    assert get[:2] == ("get", "catalogs.kaito.sh,machines.karpenter.sh")


def test_a_kind_that_is_never_served_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(definitions, "_SERVED_WITHIN", 0.3)

    def kubectl(*arguments: str) -> str:
        if arguments[0] == "get":
            raise CommandError("kubectl get failed: NotFound")
        return "customresourcedefinition.apiextensions.k8s.io/catalogs.kaito.sh\n"

    with pytest.raises(StartError, match=r"catalogs\.kaito\.sh are not served after 0 s: .*NotFound"):
        apply_definitions(kubectl, tmp_path)
