"""The rights that the chart gives are those that the provisioner uses, told from the API server's audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from tests.cluster import audit
from tests.cluster.provisioner.conftest import NAMESPACE, SWIFT, Claims, Provisioners, nodes_of
from tests.cluster.provisioner.test_faults_and_ends import PDB, events, gone, server
from tests.cluster.workspace.bare import BareCluster
from tests.eventually import eventually

from kaito_hooks.api.claim import Claim, ClaimSpec, encode
from kaito_hooks.provisioner.resources import NODE, NODE_CLAIM, PERSISTENT_VOLUME_CLAIM, VOLUME_ATTACHMENT
from kaito_hooks.runtime import Client, Obj, Resource
from kaito_local.aks import Emulator
from kaito_local.aks import Settings as CloudSettings

ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
# Asked by the API server itself, when a Node gets an owner with blockOwnerDeletion; no request shows it.
ON_BEHALF = {("karpenter.sh", "machines/finalizers", "update"), ("karpenter.sh", "nodeclaims/finalizers", "update")}


@pytest.fixture
def audited(programs: Mapping[str, Path], tmp_path: Path) -> Iterator[BareCluster]:
    """A bare cluster that writes down what accounts of the release's namespace ask for."""
    arguments = audit.arguments(tmp_path, NAMESPACE)
    with BareCluster.start(tmp_path, programs=programs, api_server_arguments=arguments) as cluster:
        yield cluster


def test_every_right_of_the_chart_is_used_and_none_is_missing(
    audited: BareCluster, chart: Callable[..., list[Obj]], tmp_path: Path
) -> None:
    """A life with everything in it: both kinds, leadership, a budget, a deadline, a volume that stays, a Node that
    somebody deletes.
    """
    rights = _install(audited, chart)
    settings = CloudSettings(
        directory=tmp_path / "cloud", machines="bare", kubeconfig=audited.plane.kubeconfig, durations=SWIFT
    )
    name = next(d["metadata"]["name"] for d in chart({}) if d["kind"] == "ServiceAccount")
    with Emulator(settings) as cloud:
        found = Provisioners(audited.plane, name, chart, tmp_path)
        try:
            for kind in ("Machine", "NodeClaim"):
                process = found.start(cloud, lead=True, nodeAPI=kind)
                _live(Claims(audited.admin, kind), audited.admin)  # type: ignore[arg-type]
                process.stop()
        finally:
            found.close()
    asked, refused = audit.read(tmp_path)
    assert refused == set()
    assert rights - asked - ON_BEHALF == set()


def _install(cluster: BareCluster, chart: Callable[..., list[Obj]]) -> set[audit.Right]:
    """Every single right that the chart gives its controller; the roles of users are bound to nobody."""
    cluster.admin.create(ACCOUNT, {"metadata": {"name": "default", "namespace": NAMESPACE}})
    roles = []
    for document in chart({"aggregateRoles": {"enabled": False}}):
        if document["kind"] in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"):
            if "helm.sh/hook" in (document["metadata"].get("annotations") or {}):
                continue
            if not document["kind"].startswith("Cluster"):
                document["metadata"]["namespace"] = NAMESPACE
            cluster.plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump(document))
            roles.append(document)
    return audit.rights(roles)


def _live(claims: Claims, admin: Client) -> None:
    """Bought, drained past a budget, given back; and another whose Node is deleted under it."""
    kind = claims.kind[:1].lower()
    guarded, deleted = f"ws000000{kind}1", f"ws000000{kind}2"
    obj = encode(ClaimSpec(guarded, {"kaito.sh/workspace": "phi"}, "Standard_NC6s_v3"), claims.kind)
    if claims.kind == NODE_CLAIM.kind:
        obj["spec"]["terminationGracePeriod"] = "30s"
    admin.create(claims.resource, obj)
    claims.ask(deleted)
    node = _registered(claims, guarded).node_name
    _registered(claims, deleted)
    for number in range(2):
        server(admin, f"pod-{kind}{number}", node)
    _stay(admin, f"agent-{kind}", node)
    # Without a controller that counts for it, a budget allows nothing.
    spec = {"minAvailable": 0, "selector": {"matchLabels": {"app": f"pod-{kind}0"}}}
    admin.create(PDB, {"metadata": {"name": f"pod-{kind}0", "namespace": NAMESPACE}, "spec": spec})
    claims.delete(guarded)
    eventually(lambda: "FailedDraining" in events(admin, f"pod-{kind}0"), every=0.2)
    if claims.kind != NODE_CLAIM.kind:
        eventually(lambda: _told_again(admin, f"pod-{kind}0"), every=0.5)
        admin.delete(PDB, f"pod-{kind}0", namespace=NAMESPACE)
    for number in range(2):
        eventually(lambda number=number: gone(admin, f"pod-{kind}{number}"), every=0.2)
    claims.until_gone(guarded)
    (other,) = nodes_of(admin, deleted)
    admin.delete(NODE, other["metadata"]["name"])
    claims.until_gone(deleted)


def _stay(admin: Client, name: str, node: str) -> None:
    """A Pod that no drain concerns, with a volume that is attached as long as the Node is."""
    disk = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}
    admin.create(PERSISTENT_VOLUME_CLAIM, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": disk})
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": name}}
    server(admin, name, node, tolerations=[{"operator": "Exists"}], volumes=[volume])
    attachment = {"attacher": "disk", "nodeName": node, "source": {"persistentVolumeName": name}}
    admin.create(VOLUME_ATTACHMENT, {"metadata": {"name": name}, "spec": attachment})


def _registered(claims: Claims, name: str) -> Claim:
    def look() -> Claim | None:
        claim = claims.read(name)
        return claim if claim is not None and claim.steps["registered"].done else None

    return eventually(look, every=0.1, what=f"{name} is not registered")  # type: ignore[return-value]


def _told_again(admin: Client, name: str) -> bool:
    event = Resource("", "v1", "events", "Event", namespaced=True)
    found = admin.list(event, field_selector=f"involvedObject.name={name}").items
    return any(e["reason"] == "FailedDraining" and e.get("count", 1) > 1 for e in found)
