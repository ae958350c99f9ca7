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
  create*)
    tries=$(grep -c ^create calls)
    if [ "$tries" -le "$(cat refusals)" ]; then
      cat words >&2; exit 1
    fi ;;
esac
"""


WORDS = "denied: failed to configure policy: failed to find resource referenced by paramKind"


def kubectl_that(folder: Path, *, refusals: int, holder: str, words: str = WORDS, replicas: int = 1) -> Charts:
    program = folder / "kubectl"
    program.write_text(_KUBECTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (folder / "refusals").write_text(str(refusals))
    (folder / "words").write_text(words)
    (folder / "deployments").write_text(json.dumps({"items": [{"spec": {"replicas": replicas}}]}))
    (folder / "leases").write_text(json.dumps({"items": [{"spec": {"holderIdentity": holder}}]}))
    running = [{"metadata": {"name": name}, "status": {"phase": "Running"}} for name in ("controller-1",)]
    (folder / "pods").write_text(json.dumps({"items": running}))
    return Charts(folder=folder / "charts", environment=os.environ, helm=program, kubectl=program, values={})


def test_it_waits_until_the_policies_admit_a_workspace(tmp_path: Path) -> None:
    kubectl_that(tmp_path, refusals=2, holder="controller-1_9a").wait_ready()
    calls = (tmp_path / "calls").read_text().splitlines()
    tries = [call for call in calls if call.startswith("create")]
    assert len(tries) == 3
    assert all("--dry-run=server" in call for call in tries)


@pytest.mark.parametrize("holder", ["", "controller-0_of-yesterday"])
def test_a_lease_that_nobody_who_runs_holds_is_no_leader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str
) -> None:
    monkeypatch.setattr(charts_module, "_READY_WITHIN", 1)
    with pytest.raises(StartError, match="leads"):
        kubectl_that(tmp_path, refusals=0, holder=holder).wait_ready()


def test_controllers_without_replicas_are_not_waited_for(tmp_path: Path) -> None:
    kubectl_that(tmp_path, refusals=0, holder="", replicas=0).wait_ready()


def test_a_refusal_that_stays_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_module, "_READY_WITHIN", 1)
    with pytest.raises(StartError, match="failed to configure policy"):
        kubectl_that(tmp_path, refusals=10_000, holder="controller-1_9a").wait_ready()


def test_a_refusal_by_the_policy_itself_is_its_answer(tmp_path: Path) -> None:
    words = "denied request: the instance type Standard_NC6s_v3 is not in the catalog"
    kubectl_that(tmp_path, refusals=10_000, holder="controller-1_9a", words=words).wait_ready()
    assert (tmp_path / "calls").read_text().count("create") == 1
