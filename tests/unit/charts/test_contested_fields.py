"""Which fields of a CRD an upgrade leaves to others: those of whoever applies it again, and of nobody else."""

from __future__ import annotations

import pytest

from kaito_hooks.helm.crds import contested
from kaito_hooks.runtime import Obj

VERSIONS = ".spec.versions"


def crd(manager: str, operation: str, **entry: str) -> Obj:
    return {"metadata": {"managedFields": [{"manager": manager, "operation": operation, **entry}]}}


@pytest.mark.parametrize("manager", ["argocd-controller", "helm-controller", "kustomize-controller"])
def test_one_that_applies_the_crd_again_and_again_keeps_its_fields(manager: str) -> None:
    held = {manager: [VERSIONS]}
    assert contested(held, crd(manager, "Apply")) == held


@pytest.mark.parametrize(
    ("manager", "operation"), [("helm", "Update"), ("helm", "Apply"), ("kubectl", "Apply"), ("kubectl-edit", "Update")]
)
def test_helm_of_any_version_and_a_change_by_hand_are_no_rivals(manager: str, operation: str) -> None:
    """Helm 4 applies the files of crds/ on the server's side, and like helm 3 only once."""
    assert contested({manager: [VERSIONS]}, crd(manager, operation)) == {}


def test_one_that_applies_only_the_status_is_no_rival() -> None:
    assert contested({"theirs": [VERSIONS]}, crd("theirs", "Apply", subresource="status")) == {}


def test_a_crd_that_came_in_between_has_no_rival_yet() -> None:
    assert contested({"theirs": [VERSIONS]}, None) == {}
