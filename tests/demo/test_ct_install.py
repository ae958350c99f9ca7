"""`ct install` of both charts: installed with the files of ci/, tested by `helm test`, and deleted again.

On a cluster of its own, as objects without a namespace are there once in a cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.demo.local_cluster import KAITO, ROOT, Cluster, environment_of
from tests.eventually import eventually

from kaito_local.cluster.charts import local_values
from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.cluster.state import cluster_folder
from kaito_local.images.mirrors import mirrors_for_charts
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.progress import Progress
from kaito_local.nodes.cluster import recorded_network

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

PROVISIONER, OPERATOR = "gpu-provisioner", "kaito"
# The federated credential of the emulated cloud is for one account in one namespace.
PLACE = {PROVISIONER: ["--namespace=gpu-provisioner"], OPERATOR: []}
NO_PULL = "its images are in a registry that is none"
NO_MONITORS = "the kinds of the Prometheus operator are not in this cluster"
# What of ci/ is installed in `make test`, in `make soak`, and not at all.
ALWAYS = {PROVISIONER: ["defaults"], OPERATOR: ["defaults"]}
SOAK = {PROVISIONER: ["aks", "local", "nodeclaim"], OPERATOR: ["karpenter", "local", "no-cloud"]}
NEVER = {
    PROVISIONER: {"available": NO_MONITORS, "mirrored": NO_PULL, "umbrella": NO_PULL},
    OPERATOR: {
        "available": NO_MONITORS,
        "mirrored": NO_PULL,
        "umbrella": NO_PULL,
        "restricted": "it names an account that somebody else makes",
    },
}


def test_every_file_of_ci_is_installed_or_has_a_reason_not_to_be() -> None:
    for chart in (PROVISIONER, OPERATOR):
        files = {file.name.removesuffix("-values.yaml") for file in (ROOT / "charts" / chart / "ci").iterdir()}
        assert files == {*ALWAYS[chart], *SOAK[chart], *NEVER[chart]}


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """A local cluster without charts."""
    if os.geteuid() != 0:
        pytest.skip("real nodes need root")
    name = f"c{secrets.token_hex(2)}"
    up = [str(KAITO), "up", "--name", name, "--no-charts"]
    try:
        done = subprocess.run(up, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        printed = subprocess.run([str(KAITO), "env", "--name", name], capture_output=True, text=True, check=True).stdout
        cluster = Cluster(name=name, environment=environment_of(printed))
        cluster.kubectl("create", "namespace", PROVISIONER)
        # A node of the user's own with a GPU, which the chart's test looks for where nothing is bought.
        gpu = {"status": {"capacity": {"nvidia.com/gpu": "1"}}}
        cluster.kubectl("patch", "node", "system", "--subresource=status", "--type=merge", "-p", json.dumps(gpu))
        yield cluster
    finally:
        subprocess.run([str(KAITO), "down", "--name", name, "--purge"], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def overlay(bare: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """By chart: the values that lead to the emulated cloud, without which gpu-provisioner is never ready."""
    directory = cluster_folder(bare.name)
    cluster, network = LocalCluster(directory), recorded_network(directory)
    mirror = cluster.registry.mirror
    values = local_values(
        cloud=cluster.cloud.settings(),
        mirrors=mirrors_for_charts(mirror),
        plain_http=[mirror],
        network=network.node_cidr,
    )
    file = tmp_path_factory.mktemp("overlay") / "cloud.yaml"
    file.write_text(yaml.safe_dump(values[PROVISIONER]))
    return {PROVISIONER: file}


def ct_install(cluster: Cluster, chart: str, files: list[str], *, overlay: Mapping[str, Path], folder: Path) -> str:
    """What `ct install` prints; AssertionError if it fails. All files are installed one after another."""
    copy = folder / chart
    shutil.copytree(ROOT / "charts" / chart, copy, ignore=lambda path, _: ["ci"] if Path(path).name == chart else [])
    (copy / "ci").mkdir()
    for name in files:
        shutil.copy(ROOT / "charts" / chart / "ci" / f"{name}-values.yaml", copy / "ci")
    ct = gotools.ensure(["ct"], tools=ROOT / "tools", cache=cache_folder(), progress=Progress.to(sys.stderr))["ct"]
    return cluster.run(
        *(str(ct), "install", f"--config={ROOT / 'ct.yaml'}", f"--charts={copy}", *PLACE[chart]),
        *([f"--helm-extra-set-args=--values={overlay[chart]}"] if chart in overlay else []),
        timeout=600,
    )


@pytest.mark.parametrize(
    "files", [pytest.param(ALWAYS, id="defaults"), pytest.param(SOAK, id="others", marks=pytest.mark.soak)]
)
def test_ct_installs_and_tests_both_charts(
    bare: Cluster, overlay: Mapping[str, Path], tmp_path: Path, files: Mapping[str, list[str]]
) -> None:
    # kaito's own test looks for the kinds that gpu-provisioner brings, and deleted releases leave their CRDs.
    for chart in (PROVISIONER, OPERATOR):
        said = ct_install(bare, chart, files[chart], overlay=overlay, folder=tmp_path)
        assert "All charts installed successfully" in said
        assert said.count("Installing chart with values file") == len(files[chart])
        if chart == OPERATOR:
            assert said.count("Phase:          Succeeded") == len(files[chart])
    kinds = "deployments,daemonsets,jobs,clusterroles,clusterrolebindings,validatingadmissionpolicies,catalogs"
    left = ("get", kinds, "-A", "-l", "app.kubernetes.io/part-of=kaito", "-o", "name")
    eventually(lambda: bare.kubectl(*left) == "", every=0.5, what=lambda: bare.kubectl(*left))
