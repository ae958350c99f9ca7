"""An API server that does not know the kind Catalog yet, as for up to 30 s after its start, refuses nobody for it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from tests.cluster.admission.rules_table import creations
from tests.eventually import eventually

from kaito_hooks.runtime import Client, Invalid, NotFound, Resource, TooManyRequests
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.cluster.definitions import apply_definitions

CHART = Path(__file__).parents[3] / "charts" / "kaito"
WORKSPACE = Resource("kaito.sh", "v1alpha1", "workspaces", "Workspace", True)


@pytest.fixture
def admin(fresh_control_plane: ControlPlane, programs: Mapping[str, Path]) -> Client:
    """The policies come before the kinds: the API server has looked for Catalog, and looks again every 30 s."""
    plane = fresh_control_plane
    command: list[str | Path] = [programs["helm"], "template", "kaito", CHART, "--no-hooks"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    rendered = [document for document in yaml.safe_load_all(text) if document]
    policies = [document for document in rendered if document["kind"].startswith("ValidatingAdmissionPolicy")]
    catalog = [document for document in rendered if document["kind"] == "Catalog"]
    plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(policies))
    apply_definitions(plane.kubectl, CHART / "crds")
    plane.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(catalog))
    client = Client.load(kubeconfig=str(plane.kubeconfig))
    eventually(lambda: client.list(WORKSPACE), every=0.1, despite=(NotFound, TooManyRequests))
    return client


def test_a_good_workspace_is_admitted_at_once_and_a_bad_one_refused_in_the_end(admin: Client) -> None:
    by_id = {case.id: case.new for case in creations()}
    admin.create(WORKSPACE, by_id["C1 preset"], namespace="default")

    def refused() -> bool:
        try:
            admin.create(WORKSPACE, {**by_id["C12 unknown preset"], "metadata": {"name": "bad"}}, namespace="default")
        except Invalid as error:
            return "Unsupported inference preset name phi-9-mega" in error.message
        admin.delete(WORKSPACE, "bad", namespace="default")
        return False

    eventually(refused, every=0.5, what="the Catalog is never asked")
