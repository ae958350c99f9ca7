"""Neither a rule nor a missing Catalog ever blocks a status, a finalizer or a deletion of what is stored already."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.admission.rules_table import creations
from tests.eventually import eventually

from kaito_hooks.runtime import ApiError, Client, Conflict, Invalid, NotFound, Obj, Resource

WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)
CATALOG = Resource("kaito.sh", "v1alpha1", "catalogs", "Catalog", False)
CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
BINDING = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", False
)
CRDS = Path(__file__).parents[3] / "charts" / "kaito" / "crds"
BROKEN = [case for case in creations() if case.refused and not case.schema]


@pytest.fixture(scope="module")
def stored(admin: Client) -> Iterator[Mapping[str, Obj]]:
    """Workspaces that break each a rule, stored while the rules were not there; now the rules are in force again."""
    real = yaml.safe_load((CRDS / "kaito.sh_workspaces.yaml").read_text())
    lenient = copy.deepcopy(real)
    for version in lenient["spec"]["versions"]:
        _drop_rules(version["schema"]["openAPIV3Schema"])
    bindings = [_without_server_fields(binding) for binding in admin.list(BINDING).items]
    for binding in bindings:
        admin.delete(BINDING, binding["metadata"]["name"])
    admin.apply(CRD, lenient, field_manager="test")
    found = {}
    for number, case in enumerate(BROKEN):
        manifest = copy.deepcopy(case.new)
        manifest["metadata"]["name"] = f"stored-{number}" if case.rule != "C3" else f"{number}.stored"
        found[case.id] = _taken(
            lambda manifest=manifest: admin.create(WORKSPACE, manifest, namespace="default"), Invalid
        )
    admin.apply(CRD, real, field_manager="test")
    for binding in bindings:
        admin.create(BINDING, binding)
    _wait_until_refused(admin, creations())
    yield found
    for workspace in admin.list(WORKSPACE, namespace="default").items:
        admin.delete(WORKSPACE, workspace["metadata"]["name"], namespace="default")


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.id)
def test_an_old_workspace_gets_a_status_and_goes(admin: Client, stored: Mapping[str, Obj], case: Any) -> None:
    name = stored[case.id]["metadata"]["name"]
    finalizer = [{"op": "add", "path": "/metadata/finalizers", "value": ["workspace.finalizer.kaito.sh"]}]
    current = admin.patch(WORKSPACE, name, finalizer, namespace="default", kind="json")
    admin.patch(WORKSPACE, name, {"metadata": {"annotations": {"a": "b"}}}, namespace="default")
    current = admin.get(WORKSPACE, name, namespace="default")
    admin.update(WORKSPACE, {**current, "status": {"workerNodes": ["n"]}}, subresource="status")
    admin.delete(WORKSPACE, name, namespace="default")
    released = [{"op": "remove", "path": "/metadata/finalizers"}]
    admin.patch(WORKSPACE, name, released, namespace="default", kind="json")
    with pytest.raises(NotFound):
        admin.get(WORKSPACE, name, namespace="default")


def test_without_a_catalog_everything_goes_on(admin: Client) -> None:
    by_id = {case.id: case.new for case in creations()}
    good = {**by_id["C1 preset"], "metadata": {"name": "kept"}}
    unknown = {**by_id["C12 unknown preset"], "metadata": {"name": "unchecked"}}
    admin.create(WORKSPACE, good, namespace="default")
    catalog = _without_server_fields(admin.get(CATALOG, "kaito"))
    admin.delete(CATALOG, "kaito")
    try:
        _taken(lambda: admin.create(WORKSPACE, unknown, namespace="default"), Invalid)
        admin.delete(WORKSPACE, "unchecked", namespace="default")
        admin.patch(WORKSPACE, "kept", {"resource": {"preferredNodes": ["a"]}}, namespace="default")
        current = admin.get(WORKSPACE, "kept", namespace="default")
        admin.update(WORKSPACE, {**current, "status": {"workerNodes": ["n"]}}, subresource="status")
        admin.delete(WORKSPACE, "kept", namespace="default")
    finally:
        admin.create(CATALOG, catalog)
    _wait_until_refused(admin, creations())


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"cloud": "mars"}, "spec.cloud"),
        ({"presets": {"phi-2": {"gpuCount": 0}}}, "spec.presets.phi-2.gpuCount"),
        ({"presets": {"phi-2": {"totalGPUMemoryGiB": "12Gi"}}}, "totalGPUMemoryGiB"),
        ({"presets": {"phi-2": {"readinessTimeout": "soon"}}}, "readinessTimeout"),
        ({"presets": {"phi-2": {"weights": {"volume": {"nfs": {"server": "s", "path": "/"}}}}}}, "weights"),
        ({"presets": {"phi-2": {"weights": None}}}, "weights: Required value"),
        ({"instanceTypes": {"Standard_NC6s_v3": {"gpuVendor": "intel"}}}, "gpuVendor"),
        ({"instanceTypes": {"Standard_NC6s_v3": {"totalGPUMemoryGiB": -1}}}, "totalGPUMemoryGiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_catalog_cannot_be_edited_into_nonsense(admin: Client, patch: Obj, said: str) -> None:
    with pytest.raises(Invalid, match=re.escape(said)):
        admin.patch(CATALOG, "kaito", {"spec": patch})


def _drop_rules(schema: Any) -> None:
    if isinstance(schema, dict):
        schema.pop("x-kubernetes-validations", None)
        for below in schema.values():
            _drop_rules(below)


def _without_server_fields(obj: Obj) -> Obj:
    metadata = {key: obj["metadata"][key] for key in ("name", "labels", "annotations") if key in obj["metadata"]}
    return {**{key: value for key, value in obj.items() if key != "status"}, "metadata": metadata}


def _wait_until_refused(admin: Client, cases: list[Any]) -> None:
    by_id = {case.id: case for case in cases}
    for name in ("C1 neither", "C12 unknown preset", "C16 two adapters of one name"):
        manifest = {**by_id[name].new, "metadata": {"name": "probe"}}
        _eventually_refused(
            lambda manifest=manifest: admin.create(WORKSPACE, manifest, namespace="default"),
            by_id[name].refused,
            clean=lambda: admin.delete(WORKSPACE, "probe", namespace="default"),
        )


def _taken(write: Callable[[], Obj], error: type[Exception]) -> Obj:
    """The write's result, once it is no longer answered with that error."""
    return eventually(write, every=0.2, despite=(error, Conflict))


def _eventually_refused(write: Callable[[], Any], said: str, *, clean: Callable[[], Any]) -> None:
    """Until the write is refused with these words; what it wrote before that is cleaned up."""

    def refused() -> bool:
        try:
            write()
        except ApiError as error:
            return said in str(error.message)
        clean()
        return False

    eventually(refused, every=0.2, what=f"never refused with {said!r}")
