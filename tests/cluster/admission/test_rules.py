"""Every case of the rules' table against a real API server with the charts installed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from tests.cluster.admission.rules_table import Case, creations, updates
from tests.eventually import eventually

from kaito_hooks.runtime import Client, Invalid, NotFound, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
CATALOG = Resource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False)
POLICY = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", False
)

WARNED_OF_NOTHING = {
    "apiVersion": "kaito.sh/v1alpha1",
    "kind": "Workspace",
    "resource": {"instanceType": "Standard_NC4as_T4_v3", "labelSelector": {}},
    "inference": {"preset": {"name": "phi-2"}},
}


@pytest.fixture(scope="module", autouse=True)
def _policies_in_force(admin: Client) -> None:
    """A policy takes effect some seconds after it was created: wait until both refuse what they must."""
    by_case = {case.id: case for case in creations()}
    for name in ("C12 unknown preset", "C16 two adapters of one name"):
        write = partial(_create, admin, by_case[name].new)
        eventually(partial(_refusal, admin, write), every=0.2, what=f"{name} is still admitted")


def _with_default(engine: str) -> list[Case]:
    return [case for case in creations() if case.default_engine == engine]


@pytest.mark.parametrize("case", _with_default("transformers"), ids=lambda case: case.id)
def test_a_new_workspace(admin: Client, case: Case) -> None:
    _assert_as_expected(case, _refusal(admin, lambda: _create(admin, case.new)))


@pytest.mark.parametrize("case", updates(), ids=lambda case: case.id)
def test_a_changed_workspace(admin: Client, case: Case) -> None:
    assert case.old is not None
    stored = _create(admin, case.old)

    def change() -> Obj:
        kept = {key: stored["metadata"][key] for key in ("resourceVersion", "namespace")}
        return admin.update(WORKSPACE, {**case.new, "metadata": {**case.new["metadata"], **kept}})

    _assert_as_expected(case, _refusal(admin, change))


@pytest.fixture(scope="class")
def _vllm_is_the_default(admin: Client) -> Iterator[None]:
    """The Catalog of a chart with serving.variant: vllm."""
    on_a_v100 = next(case for case in _with_default("vllm") if case.id == "C35 vllm by default on V100")
    write = partial(_create, admin, on_a_v100.new)
    admin.patch(CATALOG, "kaito", {"spec": {"defaultEngine": "vllm"}})
    eventually(partial(_refusal, admin, write), every=0.2, what="vllm is not the default")
    yield
    admin.patch(CATALOG, "kaito", {"spec": {"defaultEngine": "transformers"}})
    eventually(lambda: not _refusal(admin, write), every=0.2, what="vllm still is the default")


@pytest.mark.usefixtures("_vllm_is_the_default")
class TestWhereVLLMIsTheDefault:
    @pytest.mark.parametrize("case", _with_default("vllm"), ids=lambda case: case.id)
    def test_a_new_workspace(self, admin: Client, case: Case) -> None:
        _assert_as_expected(case, _refusal(admin, lambda: _create(admin, case.new)))


def test_a_catalog_whose_spread_preset_has_another_engine_is_refused(admin: Client) -> None:
    for changes in ({"engines": ["transformers", "vllm"]}, {"engines": ["transformers"]}):
        with pytest.raises(Invalid, match="a distributed preset is served by vllm alone"):
            admin.patch(CATALOG, "kaito", {"spec": {"presets": {"spread": changes}}})
    for wrong in ([], ["onnx"], ["vllm", "vllm"]):
        with pytest.raises(Invalid, match=r"spec\.presets.+engines"):
            admin.patch(CATALOG, "kaito", {"spec": {"presets": {"phi-2": {"engines": wrong}}}})


def test_the_policies_have_no_type_errors(admin: Client) -> None:
    prefixes = ("", "catalog.", "instance-types.", "annotations.")
    for name in (f"{prefix}workspaces.kaito.sh" for prefix in prefixes):
        status = eventually(
            lambda name=name: (s := admin.get(POLICY, name).get("status", {})) and "typeChecking" in s and s,
            every=0.2,
            what=f"{name} was never checked",
        )
        assert status["typeChecking"].get("expressionWarnings", []) == []


@pytest.mark.parametrize(
    ("instance_type", "warning"),
    [
        ("Standard_NC6s_v33", "the Catalog does not list the instance type Standard_NC6s_v33"),
        ("standard_nc6s_v3", "the cloud retires the instance type Standard_NC6s_v3 on 2025-09-30"),
    ],
)
def test_an_instance_type_that_may_not_be_had_is_warned_of(
    installed: ControlPlane, instance_type: str, warning: str
) -> None:
    def apply(instance_type: str, *options: str) -> str:
        text = (
            "{apiVersion: kaito.sh/v1alpha1, kind: Workspace, metadata: {name: w}, resource: "
            f"{{instanceType: {instance_type}, labelSelector: {{}}}}, inference: {{preset: {{name: phi-2}}}}}}"
        )
        return installed.kubectl("apply", "--dry-run=server", *options, "-f", "-", input=text)

    with pytest.raises(CommandError, match=warning):
        eventually(lambda: not apply(instance_type, "--warnings-as-errors"), every=0.2, what="nobody warns")
    assert "workspace.kaito.sh/w created" in apply(instance_type)
    assert "workspace.kaito.sh/w created" in apply("standard_nc4as_t4_v3", "--warnings-as-errors")


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        (
            {"annotations": {"kaito.sh/runtme": "vllm"}},
            "metadata.annotations: nothing reads kaito.sh/runtme of a Workspace; known are kaito.sh/enablelb,"
            " kaito.sh/roll, kaito.sh/runtime, kaito.sh/tolerations, kaito.sh/tuning-check, kaito.sh/tuning-gate",
        ),
        (
            {"annotations": {"Kaito.sh/Runtime": "vllm", "kaito.sh/bypass-resource-checks": "True"}},
            "metadata.annotations: nothing reads Kaito.sh/Runtime, kaito.sh/bypass-resource-checks of a Workspace",
        ),
        ({"labels": {"kaito.sh/runtime": "vllm"}}, "metadata.labels: nothing reads kaito.sh/runtime among the labels"),
    ],
    ids=["misspelt", "upstream's and capitals", "as a label"],
)
def test_metadata_without_effect_are_warned_of_once(
    admin: Client, installed: ControlPlane, metadata: dict[str, dict[str, str]], warning: str
) -> None:
    def apply(metadata: dict[str, dict[str, str]]) -> str:
        text = json.dumps(WARNED_OF_NOTHING | {"metadata": {"name": "w", "namespace": "default", **metadata}})
        options = ("--server-side", "--dry-run=server", "--warnings-as-errors")
        return installed.kubectl("apply", *options, "-f", "-", input=text)

    with pytest.raises(CommandError, match=re.escape(warning)):
        eventually(lambda: not apply(metadata), every=0.2, what="nobody warns")
    known = {"kaito.sh/runtime": "vllm", "kaito.sh/tuning-check": "off", "kaito.sh/roll": "1", "example.com/roll": "1"}
    assert "serverside-applied" in apply({"annotations": known, "labels": {"kaito.sh/team": "ml"}})

    _create(admin, WARNED_OF_NOTHING | {"metadata": {"name": "w", **metadata}})
    try:
        more = metadata.get("annotations", {}) | {"example.com/more": "1"}
        assert "serverside-applied" in apply(metadata | {"annotations": more})
    finally:
        admin.delete(WORKSPACE, "w", namespace="default")


def test_several_faults_are_told_at_once(admin: Client) -> None:
    by_case = {case.id: case for case in creations()}
    wrong = by_case["C16 two adapters of one name"].new
    wrong["metadata"]["annotations"] = {"kaito.sh/runtime": "onnx"}
    said = _refusal(admin, lambda: _create(admin, wrong))
    assert "Duplicate adapter source name found: a; The annotation kaito.sh/runtime is 'onnx'" in said
    wrong = by_case["C12 unknown preset"].new
    wrong["resource"]["instanceType"] = "Mega_42"
    said = _refusal(admin, lambda: _create(admin, wrong))
    assert "Unsupported inference preset name phi-9-mega" in said
    assert "; Unsupported instance type Mega_42" in said


def test_an_unknown_field_is_refused_by_kubectl(installed: ControlPlane) -> None:
    text = (
        "{apiVersion: kaito.sh/v1alpha1, kind: Workspace, metadata: {name: w}, "
        "resource: {labelSelector: {}}, inference: {presett: {name: phi-2}}}"
    )
    with pytest.raises(Exception, match=r'unknown field "inference\.presett"'):
        installed.kubectl("apply", "--dry-run=server", "-f", "-", input=text)


def _create(client: Client, manifest: Obj) -> Obj:
    return client.create(WORKSPACE, manifest, namespace="default")


def _refusal(client: Client, write: Callable[[], Obj]) -> str:
    """What the API server says against the write, "" if it takes it; the Workspace is removed again."""
    try:
        write()
    except Invalid as error:
        return str(error.message)
    else:
        return ""
    finally:
        for stored in client.list(WORKSPACE, namespace="default").items:
            with contextlib.suppress(NotFound):
                client.delete(WORKSPACE, stored["metadata"]["name"], namespace="default")


def _assert_as_expected(case: Case, said: str) -> None:
    if not case.expected:
        assert said == ""
        return
    assert case.expected in said
    if "ValidatingAdmissionPolicy" not in said and case.path not in ("", "spec", "metadata.name"):
        assert f"{case.path}" in said
