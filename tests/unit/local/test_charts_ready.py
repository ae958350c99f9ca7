"""`kaito up` says that a cluster is up only when the controllers lead and a Workspace would be admitted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kaito_local.cluster import charts as charts_module
from kaito_local.cluster.charts import Charts
from kaito_local.errors import StartError

# Answers like kubectl from files of its folder; each call is a line in `calls`.
_KUBECTL = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in
  *deployments*) cat deployments ;;
  *leases*) cat leases ;;
  *pods*) cat pods ;;
  *binding*) cat binding ;;
  create*)
    if grep -q no-such-preset; then
      echo unfit >> calls
      if [ "$(grep -c ^unfit calls)" -gt "$(cat admissions)" ]; then
        echo "ValidatingAdmissionPolicy denied request: Unsupported inference preset name" >&2; exit 1
      fi
    else
      echo good >> calls
      if [ "$(grep -c ^good calls)" -le "$(cat refusals)" ]; then
        cat words >&2; exit 1
      fi
    fi ;;
esac
"""


WORDS = "ValidatingAdmissionPolicy 'x' denied request: failed to configure policy: failed to find resource"
EXAMPLE = "inference: {preset: {name: phi-3-mini-4k-instruct}}"


def kubectl_that(
    folder: Path,
    *,
    refusals: int = 0,
    admissions: int = 0,
    holder: str = "controller-1_9a",
    words: str = WORDS,
    replicas: int = 1,
    policies: bool = True,
) -> Charts:
    """``refusals``: of a good Workspace. ``admissions``: of an unfit one, until the policy asks the Catalog."""
    example = folder / "examples" / "inference" / "phi-3-mini.yaml"
    example.parent.mkdir(parents=True)
    example.write_text(EXAMPLE)
    program = folder / "kubectl"
    program.write_text(_KUBECTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "refusals").write_text(str(refusals))
    (folder / "admissions").write_text(str(admissions))
    (folder / "binding").write_text("validatingadmissionpolicybinding/catalog\n" if policies else "")
    (folder / "words").write_text(words)
    (folder / "deployments").write_text(json.dumps({"items": [{"spec": {"replicas": replicas}}]}))
    (folder / "leases").write_text(json.dumps({"items": [{"spec": {"holderIdentity": holder}}]}))
    running = [{"metadata": {"name": name}, "status": {"phase": "Running"}} for name in ("controller-1",)]
    (folder / "pods").write_text(json.dumps({"items": running}))
    return Charts(folder=folder / "charts", environment=os.environ, helm=program, kubectl=program, values={})


def tries_of(folder: Path, what: str) -> int:
    return (folder / "calls").read_text().splitlines().count(what)


def test_it_waits_until_a_workspace_is_admitted(tmp_path: Path) -> None:
    kubectl_that(tmp_path, refusals=2).wait_ready()
    assert tries_of(tmp_path, "good") == 3
    creations = [call for call in (tmp_path / "calls").read_text().splitlines() if call.startswith("create")]
    assert all("--dry-run=server" in call for call in creations)


def test_it_waits_until_the_catalog_refuses_what_it_must(tmp_path: Path) -> None:
    kubectl_that(tmp_path, admissions=2).wait_ready()
    assert tries_of(tmp_path, "unfit") == 3


def test_a_cluster_without_policies_is_up_when_a_workspace_is_admitted(tmp_path: Path) -> None:
    kubectl_that(tmp_path, admissions=10_000, policies=False).wait_ready()
    assert tries_of(tmp_path, "good") == 1
    assert tries_of(tmp_path, "unfit") == 0


@pytest.mark.parametrize("holder", ["", "controller-0_of-yesterday"])
def test_a_lease_that_nobody_who_runs_holds_is_no_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str
) -> None:
    monkeypatch.setattr(charts_module, "_READY_WITHIN", 1)
    with pytest.raises(StartError, match="leads"):
        kubectl_that(tmp_path, holder=holder).wait_ready()


def test_controllers_without_replicas_are_not_waited_for(tmp_path: Path) -> None:
    kubectl_that(tmp_path, holder="", replicas=0).wait_ready()


def test_a_refusal_that_stays_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_module, "_READY_WITHIN", 1)
    with pytest.raises(StartError, match="failed to configure policy"):
        kubectl_that(tmp_path, refusals=10_000).wait_ready()


def test_a_policy_that_never_asks_the_catalog_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_module, "_READY_WITHIN", 1)
    with pytest.raises(StartError, match=r"catalog\.workspaces\.kaito\.sh does not ask the Catalog"):
        kubectl_that(tmp_path, admissions=10_000).wait_ready()


def test_a_refusal_by_the_policy_itself_is_its_answer(tmp_path: Path) -> None:
    words = "ValidatingAdmissionPolicy 'x' denied request: the instance type Standard_NC6s_v3 is not in the catalog"
    kubectl_that(tmp_path, refusals=10_000, words=words).wait_ready()
    assert tries_of(tmp_path, "good") == 1
