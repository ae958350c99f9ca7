"""A model image that cannot be served: the Workspace says why, and the Pod does not spin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cluster.artifacts.registry_fixture import RunningRegistry, tar
from tests.demo.local_cluster import Cluster
from tests.eventually import eventually

pytestmark = pytest.mark.nodes

FOLDER = "workspace/tfs/weights"
PHI3 = b'{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}'
GPT2 = b'{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}'
IMAGES = {
    "empty": ({f"{FOLDER}/config.json": PHI3}, "there is no *.safetensors beside its config.json"),
    "pickled": (
        {f"{FOLDER}/config.json": PHI3, f"{FOLDER}/pytorch_model.bin": b"\x80"},
        "pickled weights only (pytorch_model.bin)",
    ),
    "foreign": (
        {f"{FOLDER}/config.json": GPT2, f"{FOLDER}/model.safetensors": b""},
        "holds a model of architecture GPT2LMHeadModel, but the preset needs Phi3ForCausalLM",
    ),
}
MANIFEST = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: bad-%(kind)s}
resource: {instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: bad-%(kind)s}}}
inference:
  preset:
    name: phi-3-mini-4k-instruct
    presetOptions: {image: "%(image)s", imagePullSecrets: [models]}
"""


@pytest.fixture(scope="module")
def applied(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    """All of this run at once, so that their nodes boot side by side."""
    kinds = [item.callspec.params["kind"] for item in request.session.items if item.path == request.path]
    host, user, password = (cluster.environment[f"KAITO_REGISTRY{suffix}"] for suffix in ("", "_USER", "_PASSWORD"))
    registry = RunningRegistry(host, user, password)
    cluster.kubectl(
        *("create", "secret", "docker-registry", "models", f"--docker-server={host}"),
        *(f"--docker-username={user}", f"--docker-password={password}"),
    )
    for kind in kinds:
        registry.image(f"models/{kind}", "1", tar(dict(IMAGES[kind][0])))
        manifest = MANIFEST % {"kind": kind, "image": f"{host}/models/{kind}:1"}
        cluster.kubectl("apply", "-f", "-", stdin=manifest)
    yield
    cluster.kubectl("delete", "workspace", *(f"bad-{kind}" for kind in kinds), "--timeout=150s", timeout=180)
    cluster.kubectl("delete", "secret", "models")


# One says how a sentence comes from a node to the Workspace; which images are bad, tests/cluster/artifacts tries all.
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        pytest.param(kind, said, id=kind, marks=[] if kind == "pickled" else pytest.mark.soak)
        for kind, (_, said) in IMAGES.items()
    ],
)
def test_bad_weights_are_explained_in_the_workspace(cluster: Cluster, applied: None, kind: str, sentence: str) -> None:
    name = f"bad-{kind}"

    def failed() -> str | None:
        condition = cluster.conditions(name).get("InferenceReady", {})
        return condition["message"] if condition.get("reason") == "WorkspaceInferenceStatusFailed" else None

    message = eventually(failed, timeout=120, every=0.5, what=f"{name} says nothing")
    assert sentence in message
    assert cluster.conditions(name)["ResourceReady"]["status"] == "True"
    assert cluster.conditions(name)["WorkspaceReady"]["status"] == "False"
    (pod,) = cluster.get("pods", "-l", f"kaito.sh/workspace={name}")["items"]
    (step,) = pod["status"]["initContainerStatuses"]
    assert step["restartCount"] <= 4
