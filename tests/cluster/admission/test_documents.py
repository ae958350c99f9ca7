"""Every command, manifest and values file of README, docs and charts does what an API server can show that it does.

The commands of a page are one bash script, in the order of the page; the programs that they call are
tests/documents/shim.py. What only a whole cluster can do is run by tests/demo/test_documents.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.cluster.charts.helm import Helm
from tests.documents import pages, shim
from tests.eventually import eventually

from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder

NAMESPACES = {
    "documents": "Standard_NC6s_v3",
    "documents-sold": "Standard_NC4as_T4_v3",
    "documents-own": "Standard_NC12s_v3",
}
"""Where the commands of pages run, and the instance type of the Workspaces there: it cannot be changed."""
NAMESPACE_OF = {
    "install-aks.md": "documents-sold",
    "karpenter.md": "documents-sold",
    "install-no-cloud.md": "documents-own",
}
"""Pages that put a type of their own into the manifests, or none, for which the API has a default."""
PLACEHOLDERS = {
    "NAME": "workspace-phi-3-mini",
    "POOL": "ws1b4f9d2ca",
    "FILE": "answers.jsonl",
    "DIR": ".",
    "URL": "http://localhost:8080",
    "SIZE": "Standard_NC6s_v3",
}
"""What stands for a user's own name, and one that exists here."""
MENTIONS = {
    *(
        "kubectl apply",
        "kubectl delete",
        "kubectl logs",
        "kubectl rollout restart",
        "kubectl scale",
        "kubectl describe",
        "kubectl edit",
        "kubectl patch",
        "kubectl taint",
    ),
    *(
        "helm upgrade",
        "helm test",
        "helm install",
        "helm uninstall",
        "helm package",
        "helm rollback",
        "az aks nodepool",
        "az aks stop",
        "kaito aks",
    ),
    *("az aks nodepool list", "kubectl scale deployment/NAME"),
}
"""Commands that a text speaks of without saying them whole."""
WORKSPACES = ("workspace-phi-3-mini", "tune", "garden", "garden-on-aks", "adapted")
NODES = ("my-gpu-node", "aks-ws1b4f9d2ca-12345678-vmss000000")
WORKSPACE = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {instanceType: %(type)s, labelSelector: {matchLabels: {apps: %(label)s}}}
%(does)s
---
apiVersion: v1
kind: Service
metadata: {name: %(name)s}
spec: {ports: [{port: 80, targetPort: 5000}], selector: {kaito.sh/workspace: %(name)s}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %(name)s}
spec: &spec
  replicas: 1
  selector: {matchLabels: {kaito.sh/workspace: %(name)s}}
  template:
    metadata: {labels: {kaito.sh/workspace: %(name)s}}
    spec: {containers: [{name: server, image: registry.example.com/server}]}
---
"""
SERVES = "inference: {preset: {name: phi-3-mini-4k-instruct}}"
TUNES = """
tuning:
  preset: {name: phi-3-mini-4k-instruct}
  method: qlora
  input: {urls: ["http://10.0.0.1:8099/garden.jsonl"]}
  output: {image: "registry.example.com/adapters/garden:0.1.0", imagePushSecret: my-registry}
"""
TUNES_ON_AKS = TUNES.replace("registry.example.com", "mykaitoregistry.azurecr.io").replace(
    "http://10.0.0.1:8099/garden.jsonl", "https://mykaitodata.blob.core.windows.net/data/garden.jsonl"
)
OTHERS = """
apiVersion: batch/v1
kind: Job
metadata: {name: kaito-guard-uninstall, namespace: kaito-workspace}
spec:
  suspend: true
  template:
    spec: {restartPolicy: Never, containers: [{name: guard, image: registry.example.com/guard}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: garden}
spec:
  suspend: true
  template:
    spec: {restartPolicy: Never, containers: [{name: tune, image: registry.example.com/tune}]}
---
apiVersion: karpenter.sh/v1alpha5
kind: Machine
metadata: {name: ws1b4f9d2ca}
spec: {requirements: [], machineTemplateRef: {name: ws1b4f9d2ca}, resources: {requests: {}}}
"""
PAGES = (*pages.PAGES, *pages.CHARTS)
SCRIPTS = {page: pages.commands(page) for page in PAGES if pages.commands(page)}
MANIFESTS = [
    pytest.param(block, id=f"{page.relative_to(pages.ROOT)}:{block.line}")
    for page in PAGES
    for block in pages.blocks(page)
    if block.language == "yaml"
]


@pytest.fixture(scope="module", autouse=True)
def catalog(installed: ControlPlane, helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The Catalog that the chart makes with the values of docs/presets.md, as its reader's upgrade would."""
    folder = tmp_path_factory.mktemp("presets")
    for name in ("my-presets.yaml", "my-workspace.yaml"):
        (folder / name).write_text(named(name))

    def refused() -> bool:
        try:
            installed.kubectl("apply", "--dry-run=server", "-f", str(folder / "my-workspace.yaml"))
        except CommandError as error:
            return "Unsupported inference preset name my-phi" in str(error)
        return False

    # For a moment after the charts were installed no policy is in force.
    eventually(refused, every=0.2, what="a preset that is in no Catalog is admitted")
    before = installed.kubectl("get", "catalog", "kaito", "-o", "json")
    (folder / "before.yaml").write_text(helm("get", "values", "kaito", "-n", "kaito-workspace", "-o", "yaml"))
    rendered = helm(
        *("template", "kaito", str(pages.ROOT / "charts" / "kaito"), "--show-only", "templates/catalog.yaml"),
        *("--values", str(folder / "before.yaml"), "--values", str(folder / "my-presets.yaml")),
    )
    installed.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=rendered)
    eventually(
        lambda: installed.kubectl("apply", "--dry-run=server", "-f", str(folder / "my-workspace.yaml")),
        every=0.2,
        despite=CommandError,
        what="the preset of docs/presets.md is not admitted",
    )
    yield
    spec = json.loads(before)["spec"]
    installed.kubectl("patch", "catalog", "kaito", "--type=json", "-p",
                      json.dumps([{"op": "replace", "path": "/spec", "value": spec}]))  # fmt: skip


def named(file: str) -> str:
    """The text of the block of docs/presets.md that is called so."""
    return next(block.text for block in pages.blocks(pages.ROOT / "docs" / "presets.md") if block.file == file)


@pytest.fixture(scope="module")
def environment(
    installed: ControlPlane, programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """PATH leads to shims alone; kubectl works in a namespace with what pages speak of."""
    bin_folder = tmp_path_factory.mktemp("bin")
    for program in shim.SHIMS:
        path = bin_folder / program
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{shim.__file__}" {program} "$@"\n')
        path.chmod(0o755)
    for program in shim.REAL:
        (bin_folder / program).symlink_to(f"/usr/bin/{program}")
    home = tmp_path_factory.mktemp("home")
    made = {
        "PATH": str(bin_folder),
        "HOME": str(home),
        "PYTHONPATH": str(pages.ROOT),
        "KUBECONFIGS": str(home),
        "DOCUMENTS_KUBECTL": str(programs["kubectl"]),
        "DOCUMENTS_HELM": str(programs["helm"]),
    }
    signing = gotools.ensure(gotools.SIGNING, tools=pages.ROOT / "tools", cache=cache_folder())
    made |= {f"DOCUMENTS_{name.upper()}": str(path) for name, path in signing.items()}
    others = OTHERS + "".join(f"\n---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n" for name in NODES)
    for namespace, instance_type in NAMESPACES.items():
        installed.kubectl("create", "namespace", namespace)
        config = home / namespace
        config.write_text(installed.kubeconfig.read_text())
        run = [str(programs["kubectl"]), "--kubeconfig", str(config)]
        subprocess.run([*run, "config", "set-context", "--current", "--namespace", namespace], check=True)
        subprocess.run([*run, "wait", "--for=create", "serviceaccount/default", "--timeout=60s"], check=True)
        manifest = "".join(workspace(name, instance_type) for name in WORKSPACES) + others
        subprocess.run([*run, "apply", "-f", "-"], input=manifest, text=True, check=True, stdout=subprocess.DEVNULL)
    yield made
    installed.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")
    installed.kubectl("delete", "job", "kaito-guard-uninstall", "--namespace", "kaito-workspace", "--wait=false")
    for kind, names in (("node", NODES), ("machine", ["ws1b4f9d2ca"])):
        installed.kubectl("delete", kind, *names, "--wait=false")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which commands find what a clone has, and may leave files."""
    for entry in pages.ROOT.iterdir():
        if entry.name not in (".git", ".venv"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def workspace(name: str, instance_type: str = "Standard_NC6s_v3") -> str:
    """A Workspace as the pages' manifests have it, and what the controller would make of it."""
    label = "phi-3" if name == "workspace-phi-3-mini" else name
    does = {"garden": TUNES, "garden-on-aks": TUNES_ON_AKS}.get(name, SERVES)
    return WORKSPACE % {"name": name, "label": label, "does": does, "type": instance_type}


def script(page: Path) -> str:
    """The page's commands, without what is only mentioned."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in SCRIPTS[page]:
        text = block.text.replace(".venv/bin/", "")
        if block.language == "inline":
            if text.strip() in MENTIONS:
                continue
            for placeholder, value in PLACEHOLDERS.items():
                text = re.sub(rf"(?<![\w$-]){placeholder}(?![\w-])", value, text)
            text = text.replace("\n", " &\n") if "port-forward" in text else text
        lines.append(text)
    return "\n".join(lines)


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_the_commands_of_a_page_run(page: Path, environment: dict[str, str], checkout: Path, tmp_path_factory) -> None:
    log = tmp_path_factory.mktemp("log") / "commands"
    log.touch()
    for block in pages.blocks(page):
        if block.file:
            (checkout / block.file).write_text(block.text)
    done = subprocess.run(
        ["/bin/bash", "-c", script(page)],
        cwd=checkout / page.parent.relative_to(pages.ROOT) if page in pages.CHARTS else checkout,
        env={
            **environment,
            "DOCUMENTS_LOG": str(log),
            "KUBECONFIG": f"{environment['KUBECONFIGS']}/{NAMESPACE_OF.get(page.name, 'documents')}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    ran = [json.loads(line) for line in log.read_text().splitlines()]
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}\nlast: {ran[-2:]}"
    counted = Counter(entry["how"] for entry in ran if entry["how"])
    print(f"\n{page.relative_to(pages.ROOT)}: " + "; ".join(f"{number} {how}" for how, number in counted.most_common()))


@pytest.mark.parametrize("block", MANIFESTS)
def test_the_yaml_of_a_page_is_a_manifest_or_values_that_are_accepted(
    block: pages.Block, installed: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    documents = [document for document in yaml.safe_load_all(block.text) if document]
    assert documents
    if all("apiVersion" in document for document in documents):
        said = installed.kubectl("apply", "--dry-run=server", "-f", "-", input=block.text)
        assert "(server dry run)" in said
        return
    [found] = documents
    charts = [chart for chart in ("kaito", "gpu-provisioner") if found.keys() <= values_of(chart).keys()]
    if not charts:
        # A part of a manifest: the rest of a Workspace or of a ClusterRole is around it.
        around = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "documents"},
        }
        if "rules" not in found:
            [around, *_] = yaml.safe_load_all(workspace("documents"))
            around["resource"]["instanceType"] = "Standard_NC24ads_A100_v4"
        assert found.keys() <= {"metadata", "rules", "resource", "inference", "tuning"}, f"what is {list(found)}?"
        whole = {**around, **found, "metadata": {**around["metadata"], **found.get("metadata", {})}}
        installed.kubectl("apply", "--dry-run=server", "-f", "-", input=yaml.safe_dump(whole))
        return
    file = tmp_path / "values.yaml"
    file.write_text(block.text)
    rendered = helm("template", charts[0], str(pages.ROOT / "charts" / charts[0]), "--values", str(file))
    assert rendered
    for document in yaml.safe_load_all(rendered):
        if document and document["kind"] == "Catalog":
            installed.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-",
                              input=yaml.safe_dump(document))  # fmt: skip


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        pytest.param("my-workspace.yaml", "", "", "created (server dry run)", id="it fits"),
        pytest.param("my-workspace.yaml", "Standard_NC4as_T4_v3", "Standard_NV12s_v3", "my-phi", id="too small"),
        pytest.param("my-presets.yaml", "gpuCount: 1", "gpuCuont: 1", "gpuCuont", id="a misspelt field"),
        pytest.param("my-presets.yaml", "gpuCount: 1", "gpuCount: -1", "gpuCount", id="a negative number of GPUs"),
        pytest.param("my-presets.yaml", "    weights:", "    wieghts:", "wieghts", id="a misspelt source"),
    ],
)
def test_the_preset_of_the_page_is_told_what_is_wrong_with_it(
    installed: ControlPlane, helm: Helm, tmp_path: Path, file: str, old: str, new: str, said: str
) -> None:
    path = tmp_path / file
    path.write_text(named(file).replace(old, new) if old else named(file))
    if file == "my-presets.yaml":
        chart = str(pages.ROOT / "charts" / "kaito")
        assert said in helm("template", "kaito", chart, "--values", str(path), check=False)
        return
    try:
        answer = installed.kubectl("apply", "--dry-run=server", "-f", str(path))
    except CommandError as error:
        answer = str(error)
    assert said in answer
    assert ("created" in answer) == (not old)


def values_of(chart: str) -> dict[str, object]:
    return dict(yaml.safe_load((pages.ROOT / "charts" / chart / "values.yaml").read_text()))
