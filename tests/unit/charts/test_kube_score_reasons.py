"""A finding of kube-score needs a reason, and a reason a finding."""

from __future__ import annotations

from kaito_local.charts.review import Finding, Reason, findings, reasons, unexplained
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder

TAG = Finding("container-image-tag", "Deployment a", "(a) Image with latest tag")
OTHER = Finding("container-image-tag", "Deployment b", "(b) Image with latest tag")


def reason(check: str, *objects: str) -> Reason:
    return Reason(check, frozenset(objects), "because")


def test_a_finding_without_a_reason_is_told_once() -> None:
    assert unexplained([TAG, TAG, OTHER], [reason("container-image-tag", "Deployment b")]) == [
        "Deployment a: container-image-tag: (a) Image with latest tag"
    ]


def test_a_reason_without_objects_is_one_for_all() -> None:
    assert unexplained([TAG, OTHER], [reason("container-image-tag")]) == []


def test_a_reason_that_has_no_finding_is_told() -> None:
    given = [reason("container-image-tag", "Deployment a", "Deployment c"), reason("pod-probes")]
    assert unexplained([TAG], given) == [
        "container-image-tag has a reason for Deployment c, which passes",
        "pod-probes has a reason, and no object fails it",
    ]


def test_every_reason_of_the_charts_says_why() -> None:
    assert all(len(given.why) > 40 for given in reasons(ROOT / "charts" / "kube-score.yaml"))


def test_kube_score_finds_a_privileged_container_of_a_moving_tag() -> None:
    program = gotools.ensure(["kube-score"], tools=ROOT / "tools", cache=cache_folder())["kube-score"]
    deployment = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: a}
spec:
  replicas: 2
  selector: {matchLabels: {a: a}}
  template:
    metadata: {labels: {a: a}}
    spec:
      containers:
      - {name: a, image: "a:latest", securityContext: {privileged: true}}
"""
    found = findings(deployment, kube_score=program, kubernetes="v1.34")
    assert {"container-image-tag", "container-security-context-privileged"} <= {each.check for each in found}
    assert {each.object for each in found} == {"Deployment a"}
