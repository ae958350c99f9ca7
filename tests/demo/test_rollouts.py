"""Two Pods of one model under streaming load: a replica is killed, a server is killed, a rolling update takes place."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.cluster.artifacts.registry_fixture import RunningRegistry, tar
from tests.demo.local_cluster import Cluster
from tests.demo.streaming import Answer, Load, ask
from tests.eventually import PATIENCE, eventually
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.nodes

NAME = "rolled"
CONTEXT = 65536  # tokens: room for an answer of minutes
MANIFEST = """
apiVersion: kaito.sh/v1alpha1
kind: Workspace
metadata: {name: %(name)s}
resource: {count: 2, instanceType: Standard_NC6s_v3, labelSelector: {matchLabels: {test: %(name)s}}}
inference:
  preset:
    name: phi-3-mini-4k-instruct
    presetOptions: {image: "%(image)s", imagePullSecrets: [%(name)s]}
"""
IDLE_MEMORY = 1.2 * 2**30  # bytes
DRAIN = 10.0  # seconds; the server's default of --drain_s, after which it takes no more requests
KUBERNETES_GRACE = 30.0  # seconds; what a Pod gets that says nothing


def with_a_long_context(folder: Path) -> dict[str, bytes]:
    """The files of the tiny model, but it may answer for longer, and the last token takes no longer than the first."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, fields in {
        "config.json": {
            "max_position_embeddings": CONTEXT,
            "original_max_position_embeddings": CONTEXT,
            "sliding_window": 512,
        },
        "tokenizer_config.json": {"model_max_length": CONTEXT},
    }.items():
        files[name] = json.dumps(json.loads(files[name]) | fields).encode()
    return files


@dataclass(frozen=True)
class Pod:
    """A Pod that serves, and its server as a process of this machine."""

    name: str
    url: str
    server: psutil.Process = field(repr=False)

    def answers(self) -> bool:
        body = {"model": "phi-3-mini-4k-instruct", "prompt": "Hi", "max_tokens": 1}
        try:
            return httpx.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE).status_code == 200
        except httpx.HTTPError:
            return False

    def sum_of(self, series: str) -> float:
        """The series of this name, added up."""
        text = httpx.get(f"{self.url}/metrics/prometheus", timeout=PATIENCE).text
        return sum(float(value) for value in re.findall(rf"^{series}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))

    def running(self) -> float:
        return self.sum_of("vllm:num_requests_running")


@dataclass(frozen=True)
class Pair:
    """A Workspace with two Pods behind one address."""

    cluster: Cluster
    url: str

    def pods(self) -> list[Pod]:
        """Both of its Pods; they are ready."""
        servers = {
            process.environ()["POD_IP"]: process
            for process in map(psutil.Process, self.cluster.processes("python -m kaito_serving"))
        }
        found = []
        for item in self.cluster.get("pods", "-l", f"kaito.sh/workspace={NAME}")["items"]:
            address = item["status"]["podIP"]
            url = f"http://{address}:5000"
            found.append(Pod(item["metadata"]["name"], url, servers[address]))
        assert len(found) == 2
        return found


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Iterator[Pair]:
    host, user, password = (cluster.environment[f"KAITO_REGISTRY{suffix}"] for suffix in ("", "_USER", "_PASSWORD"))
    files = with_a_long_context(tiny_model())
    contents = tar({f"workspace/tfs/weights/{name}": content for name, content in files.items()})
    RunningRegistry(host, user, password).image(f"models/{NAME}", "1", contents)
    cluster.kubectl(
        *("create", "secret", "docker-registry", NAME, f"--docker-server={host}"),
        *(f"--docker-username={user}", f"--docker-password={password}"),
    )
    cluster.kubectl("apply", "-f", "-", stdin=MANIFEST % {"name": NAME, "image": f"{host}/models/{NAME}:1"})
    cluster.wait_ready(NAME, seconds=300)
    yield Pair(cluster, f"http://{cluster.get('service', NAME)['spec']['clusterIP']}")
    cluster.kubectl("delete", "workspace", NAME, "--timeout=150s", timeout=180)
    cluster.kubectl("delete", "secret", NAME)


def test_two_nodes_serve_one_workspace_behind_one_address(pair: Pair) -> None:
    nodes = pair.cluster.get("workspace", NAME)["status"]["workerNodes"]
    pods = pair.cluster.get("pods", "-l", f"kaito.sh/workspace={NAME}")["items"]
    claims = pair.cluster.get("machines", "-l", f"kaito.sh/workspace={NAME}")["items"]
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == nodes
    assert len(nodes) == len(claims) == 2
    assert len({pair.cluster.chat(NAME, "What is Kubernetes?", do_sample=False) for _ in range(6)}) == 1


def working_set(process: psutil.Process) -> int:
    """Bytes that the container of this process uses, as kubelet counts them: without file pages that it could drop."""
    for line in Path(f"/proc/{process.pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            folder, usage, droppable = Path("/sys/fs/cgroup/memory"), "memory.usage_in_bytes", "total_inactive_file"
        elif not controllers:
            folder, usage, droppable = Path("/sys/fs/cgroup"), "memory.current", "inactive_file"
        else:
            continue
        folder /= path.lstrip("/")
        if (folder / usage).exists():
            stat = dict(each.split() for each in (folder / "memory.stat").read_text().splitlines())
            return int((folder / usage).read_text()) - int(stat[droppable])
    raise AssertionError(f"no memory cgroup of process {process.pid}")


def test_an_idle_pod_needs_little_memory(pair: Pair) -> None:
    used = [working_set(pod.server) for pod in pair.pods()]
    print(f"\nworking set of an idle Pod: {', '.join(f'{each / 2**20:.0f} MiB' for each in used)}")
    assert max(used) < IDLE_MEMORY


@pytest.mark.parametrize("part", ["replica", "server"])
def test_what_is_killed_costs_no_more_than_the_answers_that_it_was_giving(pair: Pair, part: str) -> None:
    victim, other = pair.pods()
    process = victim.server
    if part == "replica":
        below = victim.server.children(recursive=True)
        (process,) = [each for each in below if "ServeReplica" in " ".join(each.cmdline())]
    with Load(pair.url, patient=True) as load:
        eventually(lambda: victim.running() and other.running())
        began = time.monotonic()
        process.kill()
        process.wait(PATIENCE)  # until then, what belongs to it may still take a request
        killed = time.monotonic()
        eventually(victim.answers, timeout=2 * PATIENCE, every=0.05)
        recovered = time.monotonic() - began
        eventually(victim.running, timeout=2 * PATIENCE, what="the Service sends it no more requests")
    print(f"\n{part} killed: {len(load.answers)} requests, {load.running_at(began)} of them at that moment, ", end="")
    print(f"{len(load.failed)} failed; answers again after {recovered:.1f} s")
    assert all(answer.began <= killed for answer in load.failed), load.failed
    # What the other Pod was asked, it has answered to the end.
    asked, answered = "kaito_serving_requests_total", "vllm:request_success_total"
    eventually(lambda: other.sum_of(asked) == other.sum_of(answered) > 0, every=0.1)


def speed(url: str, *, tokens: int = 1000) -> float:
    """Tokens a second of one answer, of two the faster."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        answers = [ask(client, tokens=tokens) for _ in range(2)]
    assert [answer.error for answer in answers] == ["", ""]
    return tokens / min(answer.ended - answer.began for answer in answers)


@dataclass(frozen=True)
class LongAnswer:
    """An answer on its way, and the Pod that gives it."""

    pod: str
    answer: Future[Answer]


def long_answers(pool: ThreadPoolExecutor, pair: Pair, *, tokens: int) -> list[LongAnswer]:
    """Long answers of the Service, as many as it takes until each of its Pods, which are idle, gives one.

    Without those that are over by then: the Service may choose one Pod several times.
    """

    def work() -> Answer:
        with httpx.Client(base_url=pair.url, timeout=PATIENCE) as client:
            return ask(client, tokens=tokens)

    pods = pair.pods()
    found: list[LongAnswer] = []

    def going() -> list[LongAnswer]:
        return [each for each in found if not each.answer.done()]

    def taken() -> str | None:
        """The Pod that runs one more answer than those that are known."""
        assert not answer.done(), answer.result()
        given = Counter(each.pod for each in going())
        return next((pod.name for pod in pods if pod.running() > given[pod.name]), None)

    while {each.pod for each in going()} != {pod.name for pod in pods}:
        answer = pool.submit(work)
        found.append(LongAnswer(str(eventually(taken)), answer))
    return going()


def asked_to_end(metadata: dict[str, Any]) -> float:
    """When somebody deleted the Pod, at the latest, in seconds of the monotonic clock."""
    ends = datetime.fromisoformat(metadata["deletionTimestamp"]).timestamp()
    # The API server keeps whole seconds.
    asked = ends - metadata["deletionGracePeriodSeconds"] + 1
    return asked - time.time() + time.monotonic()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("seconds", "beyond"), [(25, DRAIN), pytest.param(70, KUBERNETES_GRACE, marks=pytest.mark.soak)], ids=["25", "70"]
)
def test_a_rolling_update_breaks_no_request_off_however_long_its_answer(
    pair: Pair, seconds: int, beyond: float
) -> None:
    """An answer takes `seconds` on a quiet machine; it goes on for more than `beyond` seconds in a Pod that ends."""
    before = {pod.name for pod in pair.pods()}
    tokens = int(1.2 * seconds * speed(pair.url))
    ending: dict[str, float] = {}

    def replaced() -> bool:
        items = pair.cluster.get("pods", "-l", f"kaito.sh/workspace={NAME}")["items"]
        for item in items:
            if "deletionTimestamp" in item["metadata"]:
                ending.setdefault(item["metadata"]["name"], asked_to_end(item["metadata"]))
        return not before & {item["metadata"]["name"] for item in items}

    with ThreadPoolExecutor() as pool:
        running = long_answers(pool, pair, tokens=tokens)
        with Load(pair.url) as load:
            began = time.monotonic()
            pair.cluster.kubectl("rollout", "restart", f"deployment/{NAME}")
            eventually(replaced, timeout=300 + 4 * seconds, every=0.5)
            pair.cluster.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=180s")
            pair.cluster.wait_ready(NAME)
            rolled = time.monotonic() - began
        answers = [(each.pod, each.answer.result()) for each in running]
    lasted = [answer.ended - answer.began for _, answer in answers]
    print(f"\nrolled in {rolled:.0f} s: {len(load.answers)} requests, {len(load.failed)} failed; ", end="")
    print(f"answers of {tokens} tokens took {', '.join(f'{each:.0f} s' for each in lasted)}")
    assert load.failed == []
    assert [answer.error for _, answer in answers if answer.error] == []
    first = min(ending, key=lambda name: ending[name])
    assert max(answer.ended - ending[first] for pod, answer in answers if pod == first) > beyond
