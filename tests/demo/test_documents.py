"""The quick starts, and the README's first steps, as their readers type them: each page is one bash script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.demo.local_cluster import ROOT, Cluster
from tests.documents import pages

pytestmark = [pytest.mark.nodes, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
MUTE = re.compile(r"^(make |git )")


def typed(page: str, *, upto: str = "") -> str:
    """The blocks of the page, up to the one that has ``upto`` in it."""
    blocks = [block.text for block in pages.commands(ROOT / page) if block.language != "inline"]
    last = next((index for index, text in enumerate(blocks) if upto and upto in text), len(blocks) - 1)
    lines = "\n".join(blocks[: last + 1]).splitlines()
    return "\n".join(line for line in lines if not MUTE.match(line))


def run(cluster: Cluster, script: str) -> str:
    """What the script prints. Commands of `.venv` are those of this Python, and mean that cluster."""
    script = re.sub(r"eval .*kaito env\)\"", ":", script.replace(".venv/bin/", ""))
    script = re.sub(r"^kaito (?!chat)(.*?)(\s+#.*)?$", rf"kaito \1 --name {cluster.name}", script, flags=re.MULTILINE)
    path = f"{cluster.environment.get('PATH', os.environ['PATH'])}:{BIN}"
    environment = {**os.environ, **cluster.environment, "PATH": path}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"],
        cwd=ROOT,
        # The cluster's addresses are this machine's own business: no proxy knows them.
        env={name: value for name, value in environment.items() if not name.lower().endswith("_proxy")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )
    print(f"\n{done.stdout}")
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_quick_start_of_inference_answers_and_gives_the_node_back(cluster: Cluster) -> None:
    said = run(cluster, typed("docs/quickstart-inference.md"))
    assert '{"Result":"What is Kubernetes?' in said.replace('": "', '":"')
    assert "phi-3-mini-4k-instruct" in said
    assert '"chat.completion"' in said
    assert cluster.find("workspace", "workspace-phi-3-mini") is None


def test_the_first_steps_of_the_readme_show_what_was_bought_and_answer(cluster: Cluster) -> None:
    cluster.kubectl("apply", "-f", str(ROOT / "examples" / "inference" / "phi-3-mini.yaml"))
    cluster.wait_ready("workspace-phi-3-mini")
    forward = block("docs/serving.md", "port-forward")
    answers = "until curl -sS --fail http://localhost:8080/health; do sleep 1; done"
    said = run(cluster, forward.replace("&\n", f"&\n{answers}\n") + block("docs/serving.md", "curl -N"))
    assert "data: [DONE]" in said
    said = run(cluster, typed("README.md", upto="kaito aks pools"))
    assert re.search(r"workspace.kaito.sh/workspace-phi-3-mini +Standard_NC6s_v3 +True +True +True", said)
    assert '"vmSize": "Standard_NC6s_v3"' in said
    assert cluster.pools() == []


def block(page: str, having: str) -> str:
    """The one block of the page that has that in it."""
    [found] = [b.text for b in pages.commands(ROOT / page) if b.language != "inline" and having in b.text]
    return found


def test_a_new_installation_and_a_running_one_are_looked_at_as_the_pages_say(cluster: Cluster) -> None:
    said = run(cluster, block("docs/install-aks.md", "helm test"))
    assert "Phase:          Succeeded" in said
    said = run(cluster, block("docs/operations.md", "--raw"))
    assert "controller_runtime_reconcile_total" in said
    assert "kaito_provisioner_pools" in said
    assert re.search(r'"level": ?"info"', said)


@pytest.fixture(scope="module")
def tuned(cluster: Cluster) -> str:
    """What the quick start of tuning prints until its adapter is pushed, asked and its Workspace gone."""
    return run(cluster, typed("docs/quickstart-tuning.md"))


@pytest.mark.soak
def test_the_quick_start_of_tuning_teaches_what_only_the_data_say(tuned: str) -> None:
    assert "TuningChecked" in tuned
    assert "AdapterPushed" in tuned
    assert "marmalade" in tuned.rpartition("adapterDigest")[2]


@pytest.mark.soak
def test_the_quick_start_of_adapters_mixes_the_adapter_that_was_pushed(cluster: Cluster, tuned: str) -> None:
    said = run(cluster, typed("docs/quickstart-adapters.md"))
    answers = re.findall(r'"content": *"([^"]*)"', said)
    assert len(answers) == 3
    assert "marmalade" in answers[0]
    assert "marmalade" not in answers[2]
    assert "phi-3-mini-4k-instruct:garden" in said
