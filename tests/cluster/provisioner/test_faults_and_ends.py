"""What users see when the cloud refuses, machines misbehave or Pods will not leave; and what is cleaned up."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.cluster.provisioner.conftest import NAMESPACE, Claims, Provisioners, created, nodes_of
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.api.claim import Claim, ClaimSpec, NodeClassRef, encode
from kaito_hooks.provisioner.resources import NODE, NODE_CLAIM, POD
from kaito_hooks.runtime import Client, Conflict, Informer, NotFound, Obj, Resource, SystemClock, now_rfc3339
from kaito_local.aks import Emulator, ready_made
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.machine.ports import free_ports

PDB = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", namespaced=True)
EVENT = Resource("", "v1", "events", "Event", namespaced=True)
# For Machines every one is followed to the Workspace in test_taxonomy.py.
SHOWN = ("quota-vcpu", "allocation-failed", "operation-in-progress", "no-cluster")


def events(admin: Client, name: str) -> list[str]:
    found = admin.list(EVENT, field_selector=f"involvedObject.name={name}").items
    return [event["reason"] for event in found]


@pytest.mark.parametrize("name", SHOWN)
def test_a_refusal_is_on_a_node_claim_too_with_its_cause_and_an_event(
    cloud: Emulator, provisioners: Provisioners, admin: Client, name: str
) -> None:
    cloud.fault(name)
    claims = Claims(admin, "NodeClaim")
    provisioners.start(cloud, nodeAPI="NodeClaim")
    claims.ask("ws0000000e1")
    reason, message = claims.until_waiting("ws0000000e1", str(ready_made()[name]["reason"]))
    entry = ready_made()[name]
    error: Any = entry.get("error") or entry["body"].get("error", entry["body"])
    assert message.startswith(f"{error['code']}: ")
    eventually(lambda: reason in events(admin, "ws0000000e1"))
    claims.delete("ws0000000e1")
    claims.until_gone("ws0000000e1")
    assert cloud.agent_pools() == []


def test_no_claim_is_bought_before_retry_after_and_others_wait_too(
    cloud: Emulator, provisioners: Provisioners, machines: Claims
) -> None:
    cloud.fault(method="PUT", status=429, headers={"Retry-After": "4"}, body={"error": {"code": "TooManyRequests"}})
    provisioners.start(cloud)
    machines.ask("ws0000000e2")
    eventually(lambda: any(r["status"] == 429 for r in cloud.requests()))
    machines.ask("ws0000000e3")
    machines.until_ready("ws0000000e2")
    machines.until_ready("ws0000000e3")
    refused, *bought = [r for r in cloud.requests() if r["method"] == "PUT"]
    assert refused["status"] == 429
    first = min(datetime.fromisoformat(r["wall"]) for r in bought)
    assert first - datetime.fromisoformat(refused["wall"]) >= timedelta(seconds=4 - 0.01)


def test_a_failed_pool_whose_deletion_is_refused_costs_few_requests_and_keeps_its_cause(
    cloud: Emulator, provisioners: Provisioners, claims: Claims
) -> None:
    busy = {"code": "OperationNotAllowed", "message": "another operation is in progress on the cluster"}
    cloud.fault(method="PUT", error={"code": "AllocationFailed", "message": "no capacity in this region"})
    cloud.fault(method="DELETE", status=409, body={"error": busy}, times=None)
    provisioners.start(cloud, nodeAPI=claims.kind)
    claims.ask("ws0000000ea")
    claims.until_waiting("ws0000000ea", "InsufficientCapacity")
    eventually(lambda: any(r["status"] == 409 for r in cloud.requests()), what="no deletion was tried")
    before, began = len(cloud.requests()), time.monotonic()

    def changed() -> bool:
        found = claims.read("ws0000000ea")
        return found is None or (found.first_waiting() or ("",))[0] != "InsufficientCapacity"

    never(changed, within=10.0, every=0.1)
    assert len(cloud.requests()) - before <= 6 * (time.monotonic() - began) / 10
    assert [pool.state for pool in cloud.agent_pools()] == ["Failed"]


@contextlib.contextmanager
def reasons(admin: Client, claims: Claims) -> Iterator[set[str]]:
    """Every reason that any claim ever gave for a step that is not done, however short."""
    seen: set[str] = set()

    def note(old: Obj | None, new: Obj | None) -> None:
        waiting = Claim.read(new).first_waiting() if new else None
        seen.update(waiting[:1] if waiting else ())

    informer = Informer(admin, claims.resource)
    informer.subscribe(note)
    informer.start()
    assert informer.wait_synced(PATIENCE)
    yield seen
    informer.stop()


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"never": True}, "WaitingForNode"),
        ({"provider_id": False}, "WaitingForNode"),
        ({"ready": False}, "NodeNotReady"),
    ],
    ids=["never", "no providerID", "never ready"],
)
def test_a_machine_that_does_not_become_a_node_says_so_and_is_given_back(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client, machine: dict[str, Any], reason: str
) -> None:
    cloud.fault(target="machine", machine=machine)
    with reasons(admin, machines) as given:
        provisioners.start(cloud, registrationTimeout="6s", nodeRepairTimeout="6s")
        machines.ask("ws0000000e4")
        machines.until_gone("ws0000000e4")
        eventually(lambda: reason in given, what=f"only {given}")
    assert cloud.agent_pools() == []


def test_a_node_that_comes_late_is_waited_for(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    cloud.fault(target="machine", machine={"late": 4.0})
    with reasons(admin, machines) as given:
        provisioners.start(cloud)
        machines.ask("ws0000000e5")
        machines.until_ready("ws0000000e5")
        eventually(lambda: "WaitingForNode" in given, what=f"only {given}")


def test_two_nodes_of_one_pool_are_reported(cloud: Emulator, provisioners: Provisioners, machines: Claims) -> None:
    cloud.fault(target="machine", machine={"count": 2})
    provisioners.start(cloud)
    machines.ask("ws0000000e6")
    machines.until_waiting("ws0000000e6", "MultipleNodesFound")
    machines.delete("ws0000000e6")
    machines.until_gone("ws0000000e6")


def test_a_dead_node_is_repaired_within_its_timeout(
    cloud: Emulator, provisioners: Provisioners, claims: Claims, admin: Client
) -> None:
    provisioners.start(cloud, nodeAPI=claims.kind, nodeRepairTimeout="4s")
    claims.ask("ws0000000e7")
    die(admin, claims.until_ready("ws0000000e7").node_name)
    claims.until_gone("ws0000000e7")
    assert cloud.agent_pools() == []
    assert nodes_of(admin, "ws0000000e7") == []


def die(admin: Client, node: str) -> None:
    """What the node lifecycle controller says of a node whose kubelet is silent."""
    ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
    ready["lastTransitionTime"] = now_rfc3339(SystemClock())
    admin.patch(NODE, node, {"status": {"conditions": [ready]}}, subresource="status", kind="strategic")


def test_what_others_own_is_never_written(cloud: Emulator, provisioners: Provisioners, admin: Client) -> None:
    ours = Claims(admin, "NodeClaim")
    ours.ask("ws0000000f1", node_class=NodeClassRef("karpenter.azure.com", "AKSNodeClass", "gpu"))
    user_node: Obj = {
        "metadata": {
            "name": "user-node",
            "labels": {"agentpool": "ws0000000f2", "kaito.sh/workspace": "phi"},
            "finalizers": ["karpenter.sh/termination"],
        },
        "spec": {"providerID": "azure:///user"},
    }
    admin.create(NODE, user_node)
    provisioners.start(cloud, nodeAPI="NodeClaim")
    ours.ask("ws0000000f2")
    ours.until_ready("ws0000000f2")
    ours.delete("ws0000000f2")
    ours.until_gone("ws0000000f2")
    foreign = admin.get(NODE_CLAIM, "ws0000000f1")
    assert "status" not in foreign
    assert "finalizers" not in foreign["metadata"]
    node = admin.get(NODE, "user-node")
    assert node["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    assert "karpenter.sh/registered" not in node["metadata"]["labels"]
    assert created(cloud) == ["ws0000000f2"]


def server(admin: Client, name: str, node: str, **spec: Any) -> None:
    """A Pod that runs on the node and is Ready, as its kubelet would say."""
    admin.create(
        POD,
        {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "none"}],
                "tolerations": [{"key": "sku", "operator": "Exists"}],
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 1,
                **spec,
            },
        },
    )
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    admin.patch(POD, name, {"status": status}, namespace=NAMESPACE, subresource="status", kind="strategic")


def guard(admin: Client, name: str) -> None:
    """A budget that never allows an eviction, once the disruption controller has counted."""
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": name}}}
    admin.create(PDB, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
    eventually(lambda: (admin.get(PDB, name, namespace=NAMESPACE).get("status") or {}).get("currentHealthy") == 1)


def gone(admin: Client, name: str) -> bool:
    """Whether the Pod is gone; one that is to go is let go, as its kubelet would."""
    try:
        pod = admin.get(POD, name, namespace=NAMESPACE)
        if pod["metadata"].get("deletionTimestamp"):
            admin.delete(POD, name, namespace=NAMESPACE, grace_period_seconds=0)
    except (NotFound, Conflict):
        return True
    return False


def test_a_budget_holds_the_machine_until_it_allows_the_eviction(
    cloud: Emulator, provisioners: Provisioners, machines: Claims, admin: Client
) -> None:
    provisioners.start(cloud)
    machines.ask("ws0000000g1")
    node = machines.until_ready("ws0000000g1").node_name
    server(admin, "guarded", node)
    guard(admin, "guarded")
    machines.delete("ws0000000g1")
    eventually(lambda: "FailedDraining" in events(admin, "guarded"))
    never(lambda: any(p.state != "Succeeded" for p in cloud.agent_pools()), within=3.0, every=0.2)
    found = admin.get(NODE, node)
    assert any(t["key"] == "karpenter.sh/disrupted" for t in found["spec"]["taints"])
    admin.delete(PDB, "guarded", namespace=NAMESPACE)
    eventually(lambda: gone(admin, "guarded"), every=0.2)
    machines.until_gone("ws0000000g1")


def test_a_budget_is_overruled_by_the_grace_period_of_the_claim(
    cloud: Emulator, provisioners: Provisioners, admin: Client
) -> None:
    claims = Claims(admin, "NodeClaim")
    provisioners.start(cloud, nodeAPI="NodeClaim")
    obj = encode(ClaimSpec("ws0000000g2", {"kaito.sh/workspace": "phi"}, "Standard_NC6s_v3"), "NodeClaim")
    obj["spec"]["terminationGracePeriod"] = "8s"
    admin.create(NODE_CLAIM, obj)
    node = claims.until_ready("ws0000000g2").node_name
    server(admin, "overruled", node)
    guard(admin, "overruled")
    asked = time.monotonic()
    claims.delete("ws0000000g2")
    eventually(lambda: gone(admin, "overruled"), every=0.2)
    assert time.monotonic() - asked > 5
    claims.until_gone("ws0000000g2")
    admin.delete(PDB, "overruled", namespace=NAMESPACE)


def test_changing_the_node_api_deletes_nothing_and_what_is_held_can_still_end(
    cloud: Emulator, provisioners: Provisioners, machines: Claims
) -> None:
    first = provisioners.start(cloud, nodeAPI="Machine")
    machines.ask("ws0000000h1")
    machines.until_ready("ws0000000h1")
    first.stop()
    provisioners.start(cloud, nodeAPI="NodeClaim")
    never(lambda: not machines.until_ready("ws0000000h1"), within=6.0, every=1.0)
    machines.delete("ws0000000h1")
    machines.until_gone("ws0000000h1")
    assert cloud.agent_pools() == []


def test_the_process_ends_with_a_sentence_when_its_environment_is_wrong(plane: ControlPlane) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kaito_hooks.provisioner"],
        env={"KUBECONFIG": str(plane.kubeconfig), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stderr == "gpu-provisioner: subscription ID not set: ARM_SUBSCRIPTION_ID is empty\n"


def test_claims_with_bad_credentials_say_so_and_the_process_goes_on(
    cloud: Emulator, provisioners: Provisioners, machines: Claims
) -> None:
    process = provisioners.start(cloud, environment={"AZURE_TENANT_ID": "11111111-1111-1111-1111-111111111111"})
    machines.ask("ws0000000j1")
    _, message = machines.until_waiting("ws0000000j1", "AuthenticationFailed")
    assert "AADSTS90002" in message
    assert process.process.poll() is None
    assert json.loads(process.logged().splitlines()[0])


@pytest.mark.parametrize(
    ("environment", "words"),
    [({}, ""), ({"AZURE_CLIENT_ID": "11111111-1111-1111-1111-111111111111"}, "AADSTS700016")],
    ids=["good", "bad"],
)
def test_the_process_is_ready_when_its_credentials_are_usable(
    cloud: Emulator, provisioners: Provisioners, environment: dict[str, str], words: str
) -> None:
    health, metrics = free_ports(2)
    ports = {"HEALTH_PROBE_PORT": str(health), "METRICS_PORT": str(metrics)}
    provisioners.start(cloud, environment=ports | environment)

    def ready() -> bool:
        status, body = answer(health, "/readyz")
        return status >= 500 and words in body if words else status == 200

    eventually(ready, every=0.2)
    assert answer(health, "/healthz")[0] == 200
    for series in (
        "kaito_provisioner_leader",
        "karpenter_nodeclaims_created_total",
        'kaito_provisioner_claims{kind="Machine",phase="Launching"}',
    ):
        eventually(lambda series=series: series in answer(metrics, "/metrics")[1], every=0.2, what=series)


def answer(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 while nothing listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""
