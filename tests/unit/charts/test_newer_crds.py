"""Which fields stored objects would lose to the CRD of another chart, and what is done about them."""

from __future__ import annotations

import pytest

from kaito_hooks.helm import schema_fields
from kaito_hooks.helm.crds import newer_fields
from kaito_hooks.helm.errors import UnsafeUpgrade
from kaito_hooks.runtime import Obj

TEXT: Obj = {"type": "string"}


def crd(schema: Obj, *, version: str = "v1") -> Obj:
    versions = [{"name": version, "schema": {"openAPIV3Schema": schema}}]
    return {"metadata": {"name": "things.example.com"}, "spec": {"versions": versions}}


def of(**properties: Obj) -> Obj:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("found", "wanted", "fields"),
    [
        pytest.param(of(a=TEXT, b=TEXT), of(a=TEXT), ["b"], id="a field"),
        pytest.param(of(a=of(b=of(c=TEXT))), of(a=of()), ["a.b"], id="not what is below it"),
        pytest.param(of(a={"items": of(b=TEXT)}), of(a={"items": of()}), ["a[].b"], id="in a list"),
        pytest.param(
            of(a={"additionalProperties": of(b=TEXT)}), of(a={"additionalProperties": of()}), ["a.*.b"], id="in a map"
        ),
        pytest.param(of(a={"additionalProperties": TEXT}), of(a=of()), ["a.*"], id="any key of a map"),
        pytest.param(
            of(a=of(b=TEXT)), of(a={"x-kubernetes-preserve-unknown-fields": True}), [], id="what keeps everything"
        ),
        pytest.param(of(a=TEXT), of(a=TEXT, b=TEXT), [], id="a newer one"),
    ],
)
def test_the_fields_that_objects_would_lose_are_named(found: Obj, wanted: Obj, fields: list[str]) -> None:
    assert schema_fields.lost(crd(found), crd(wanted)) == fields


def test_a_version_that_only_one_of_them_has_is_not_compared() -> None:
    assert schema_fields.lost(crd(of(a=TEXT), version="v2"), crd(of())) == []


NEWER, OLDER = crd(of(a=TEXT, b=TEXT)), crd(of(a=TEXT))


@pytest.mark.parametrize("manager", ["helm", "Helm", "kubectl", "kubectl-client-side-apply"])
def test_a_newer_crd_that_a_chart_or_a_user_of_its_files_has_brought_stays(manager: str) -> None:
    assert newer_fields(NEWER, OLDER, held={manager: [".spec.versions"]}) == ["b"]
    assert newer_fields(NEWER, OLDER, held={}) == ["b"]


def test_a_field_that_was_added_by_hand_holds_no_upgrade() -> None:
    assert newer_fields(NEWER, OLDER, held={"kubectl-edit": [".spec.versions"]}) == []


def test_a_change_by_hand_elsewhere_says_nothing_of_the_fields() -> None:
    assert newer_fields(NEWER, OLDER, held={"kubectl-edit": [".spec.names.categories"]}) == ["b"]


def test_an_older_crd_and_none_are_replaced() -> None:
    assert newer_fields(OLDER, NEWER, held={}) == []
    assert newer_fields(None, NEWER, held={}) == []


def test_two_crds_of_which_neither_is_newer_are_not_exchanged() -> None:
    with pytest.raises(UnsafeUpgrade, match=r"things\.example\.com would lose b, .* brings c; .*kubectl apply"):
        newer_fields(NEWER, crd(of(a=TEXT, c=TEXT)), held={})
