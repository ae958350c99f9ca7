"""Every refusal of the taxonomy from the wire to the user: ARM's answer, the claim, the Workspace, the next try.

One bare control plane, one emulated AKS, one Workspace controller and one provisioner, each with its chart's rights;
one Workspace per refusal. The tests that concern all claims come last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.provisioner.conftest import NAMESPACE, SWIFT, Provisioner, Provisioners
from tests.cluster.workspace.bare import BareCluster, workspace
from tests.eventually import PATIENCE, eventually
from tests.taxonomy import LOST_ANSWER, ROWS, THROTTLED, Row

from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.resources import MACHINE
from kaito_hooks.runtime import Client, NotFound, Obj, Resource, TooManyRequests
from kaito_hooks.workspace.resources import WORKSPACE
from kaito_local.aks import Emulator, ready_made
from kaito_local.aks import Settings as CloudSettings

EVENT = Resource("", "v1", "events", "Event", namespaced=True)
CONFLICT = Row("name-conflict", "PoolNameConflict", "PoolNameConflict: ", (60.0,))
EVERY_ROW = (*ROWS, CONFLICT)
RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount")
FOREIGN_POOL = {"properties": {"vmSize": "Standard_D2s_v3", "count": 1, "nodeLabels": {"team": "web"}}}
# For phi-3-mini on Standard_NC6s_v3 in the Catalog as the chart has it: without prices, the smallest of each series.
FITTING = (
    "Instance type asked for: Standard_NC6s_v3. Other instance types that fit: Standard_NV18ads_A10_v5, "
    "Standard_NC4as_T4_v3, Standard_NC24ads_A100_v4, Standard_NC40ads_H100_v5, Standard_ND40rs_v2."
)


class Landscape:
    """Everything that runs, and how the tests look at it."""

    def __init__(self, cluster: BareCluster, cloud: Emulator, provisioners: Provisioners) -> None:
        self.admin = cluster.admin
        self.cloud = cloud
        self.provisioners = provisioners
        self.provisioner: Provisioner | None = None

    def ask(self, name: str) -> None:
        self.admin.create(WORKSPACE, workspace(name, "default"))

    def claim(self, name: str) -> Claim | None:
        """The one claim of that Workspace."""
        found = self.admin.list(MACHINE, label_selector=f"kaito.sh/workspace={name}").items
        return Claim.read(found[0]) if found else None

    def bought(self, name: str) -> Claim:
        return eventually(lambda: self.claim(name), every=0.1, what=f"no claim of {name}")  # type: ignore[return-value]

    def condition(self, name: str, condition: str) -> Obj:
        status = self.admin.get(WORKSPACE, name, namespace="default").get("status") or {}
        return next((c for c in status.get("conditions") or () if c["type"] == condition), {})

    def said(self, name: str) -> tuple[str, str]:
        """Reason and message of the claim's first step that is not done."""
        claim = self.claim(name)
        return (claim and claim.first_waiting()) or ("", "")

    def events(self, claim: str) -> set[tuple[str, str]]:
        found = self.admin.list(EVENT, field_selector=f"involvedObject.name={claim}").items
        return {(event["type"], event["reason"]) for event in found}

    def puts(self, pool: str = "") -> list[datetime]:
        """When pools, or one, were asked for."""
        asked = [r for r in self.cloud.requests() if r["method"] == "PUT" and pool in ("", r["pool"])]
        return [datetime.fromisoformat(request["wall"]) for request in asked]


@pytest.fixture(scope="module")
def landscape(
    programs: Mapping[str, Path],
    chart: Callable[..., list[Obj]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Landscape]:
    folder = tmp_path_factory.mktemp("taxonomy")
    with BareCluster.start(folder, programs=programs) as cluster:
        settings = CloudSettings(
            directory=folder / "cloud",
            machines="bare",
            kubeconfig=cluster.plane.kubeconfig,
            durations=SWIFT,
        )
        with Emulator(settings) as cloud:
            found = Landscape(cluster, cloud, _provisioners(cluster, chart, folder))
            cluster.start_controller(lead=False)
            _prepare(found)
            found.provisioner = found.provisioners.start(cloud)
            yield found
            found.provisioners.close()
            for process in found.provisioners.running:
                # Shown by pytest with a test that failed.
                print(process.logged()[-6000:])


def _provisioners(cluster: BareCluster, chart: Callable[..., list[Obj]], folder: Path) -> Provisioners:
    rendered = chart({})
    account = next(d["metadata"]["name"] for d in rendered if d["kind"] == "ServiceAccount")
    for document in rendered:
        if document["kind"] in RIGHTS:
            if not document["kind"].startswith("Cluster"):
                document["metadata"]["namespace"] = NAMESPACE
            cluster.plane.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump(document))
    return Provisioners(cluster.plane, account, chart, folder)


def _prepare(found: Landscape) -> None:
    """A Workspace per row, and for its claim what will go wrong; nobody provisions yet."""
    eventually(lambda: _served(found.admin, MACHINE), every=0.1)
    for name in (*(row.name for row in EVERY_ROW), LOST_ANSWER):
        found.ask(name)
    for row in ROWS:
        found.cloud.fault(row.name, pool=found.bought(row.name).name, times=None)
    found.cloud.fault(LOST_ANSWER, pool=found.bought(LOST_ANSWER).name)
    found.cloud.pools.put(found.bought(CONFLICT.name).name, FOREIGN_POOL)


def _served(admin: Client, resource: Resource) -> bool:
    """Whether a kind that was defined a moment ago is served."""
    try:
        return admin.list(resource) is not None
    except (NotFound, TooManyRequests):
        return False


@pytest.mark.parametrize("row", EVERY_ROW, ids=lambda row: row.name)
def test_a_refusal_is_told_with_its_cause_on_the_claim_and_on_the_workspace(landscape: Landscape, row: Row) -> None:
    claim = landscape.bought(row.name).name

    def told() -> bool:
        reason, message = landscape.said(row.name)
        return reason == row.reason and message.startswith(row.begins)

    eventually(told, every=0.2, what=lambda: f"the claim says {landscape.said(row.name)}")
    message = landscape.said(row.name)[1]
    assert len(message) <= 800
    assert "\n" not in message
    for condition, words in (("ResourceReady", "workspaceResourceStatus"), ("WorkspaceReady", "workspace")):
        wanted = words + ("Pending" if row.waiting else "Failed")

        def shown(condition: str = condition, wanted: str = wanted) -> bool:
            found = landscape.condition(row.name, condition)
            said = ": ".join((claim, *landscape.said(row.name)))
            return bool(found) and found["reason"] == wanted and said in found["message"]

        eventually(shown, every=0.2, what=f"{landscape.condition(row.name, condition)}, not {message}")
    event = ("Warning" if not row.waiting else "Normal", row.reason)
    eventually(lambda: event in landscape.events(claim), every=0.2, what=lambda: f"{landscape.events(claim)}")


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.reason in ("QuotaExceeded", "InstanceTypeUnavailable", "InsufficientCapacity")],
    ids=lambda row: row.name,
)
def test_a_type_that_cannot_be_had_is_told_with_others_that_fit(landscape: Landscape, row: Row) -> None:

    def refused() -> tuple[str, float] | None:
        """The words of the refusal, and the seconds until the next try; None amid a try."""
        reason, message = landscape.said(row.name)
        refusal, _, moment = message.partition(" (next try at ")
        if reason != row.reason:
            return None
        wait = (datetime.fromisoformat(moment.removesuffix(")")) - datetime.now(UTC)).total_seconds()
        return (refusal, wait) if wait > 0 else None

    refusal, wait = eventually(refused, every=0.2)  # type: ignore[misc]
    entry: Any = ready_made()[row.name]
    error = entry.get("error") or entry["body"].get("error") or entry["body"]
    assert " ".join(error["message"].split()) in refusal
    assert refusal.endswith(FITTING)
    tries = len(landscape.puts(landscape.bought(row.name).name))
    assert wait <= row.retries[tries - 1] * 1.2
    shown = landscape.condition(row.name, "WorkspaceReady")
    eventually(lambda: FITTING in landscape.condition(row.name, "WorkspaceReady")["message"], what=str(shown))


@pytest.mark.parametrize("row", [row for row in ROWS if row.retries[0] == 1.0], ids=lambda row: row.name)
def test_what_may_pass_by_itself_is_tried_again_soon_and_ever_more_rarely(landscape: Landscape, row: Row) -> None:
    pool = landscape.bought(row.name).name
    eventually(lambda: len(landscape.puts(pool)) >= 4, every=0.5)
    waits = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(landscape.puts(pool))]
    for wait, documented in zip(waits, row.retries, strict=False):
        assert documented - 0.01 <= wait < documented * 1.2 + PATIENCE
    late = [w for w, documented in zip(waits, row.retries, strict=False) if w >= documented * 1.2 + 15.0]
    assert len(late) <= 1, "a machine that stands still delays one of them"


def test_nothing_else_is_tried_again_before_its_time(landscape: Landscape) -> None:
    for row in EVERY_ROW:
        pool = landscape.bought(row.name).name
        eventually(lambda row=row: landscape.said(row.name)[0] == row.reason, every=0.2)
        for (earlier, later), documented in zip(itertools.pairwise(landscape.puts(pool)), row.retries, strict=False):
            assert later - earlier >= timedelta(seconds=documented - 0.01), row.name
    assert landscape.puts(landscape.bought(CONFLICT.name).name) == []


def test_a_failed_pool_does_not_stay(landscape: Landscape) -> None:
    eventually(
        lambda: {pool.state for pool in landscape.cloud.agent_pools()} == {"Succeeded"},
        every=0.2,
        what=f"{landscape.cloud.agent_pools()}",
    )


def test_a_lost_answer_costs_neither_a_second_pool_nor_the_claim_its_node(landscape: Landscape) -> None:
    claim = landscape.bought(LOST_ANSWER).name
    eventually(lambda: ("Warning", "LaunchFailed") in landscape.events(claim), every=0.2)
    eventually(lambda: landscape.bought(LOST_ANSWER).steps["registered"].done, every=0.2)
    assert len(landscape.puts(claim)) == 1


def test_a_pool_of_somebody_else_is_not_touched(landscape: Landscape) -> None:
    claim = landscape.bought(CONFLICT.name).name
    eventually(lambda: landscape.said(CONFLICT.name)[0] == "PoolNameConflict", every=0.2)
    assert [r["verb"] for r in landscape.cloud.requests() if r["pool"] == claim and r["verb"] != "GET"] == []


@pytest.mark.parametrize("row", THROTTLED, ids=lambda row: row.name)
def test_nobody_writes_before_the_time_that_arm_asked_for(landscape: Landscape, row: Row) -> None:
    before = len(landscape.cloud.requests())
    landscape.cloud.fault(row.name, pool="ws*", times=1)
    landscape.ask(row.name)
    claim = landscape.bought(row.name).name

    def shown() -> bool:
        found = landscape.condition(row.name, "ResourceReady")
        words = f"{claim}: Throttled: {row.begins}"
        return found.get("reason") == "workspaceResourceStatusPending" and words in found["message"]

    eventually(shown, every=0.1, what=f"{landscape.condition(row.name, 'ResourceReady')}")
    eventually(lambda: ("Warning", "Throttled") in landscape.events(claim), every=0.2)
    if row.retries[0] > 10:
        return
    eventually(lambda: landscape.bought(row.name).steps["registered"].done, every=0.2)
    log = landscape.cloud.requests(after=before)
    refused = next(number for number, request in enumerate(log) if request["status"] == 429)
    write = next(request for request in log[refused + 1 :] if request["method"] in ("PUT", "DELETE"))
    waited = datetime.fromisoformat(write["wall"]) - datetime.fromisoformat(log[refused]["wall"])
    assert waited >= timedelta(seconds=row.retries[0] - 0.01)


def test_a_provisioner_that_gets_no_token_is_told_on_the_workspace_too(landscape: Landscape) -> None:
    assert landscape.provisioner is not None
    landscape.provisioner.stop()
    tenant = "11111111-1111-1111-1111-111111111111"
    landscape.provisioners.start(landscape.cloud, environment={"AZURE_TENANT_ID": tenant})
    landscape.ask("no-token")
    claim = landscape.bought("no-token").name

    def shown() -> bool:
        found = landscape.condition("no-token", "WorkspaceReady")
        return (
            f"{claim}: AuthenticationFailed: AADSTS90002: " in found.get("message", "") and tenant in found["message"]
        )

    eventually(shown, every=0.2, what=f"{landscape.condition('no-token', 'WorkspaceReady')}")
    assert landscape.puts(claim) == []


def test_the_table_has_every_ready_made_fault() -> None:
    assert {row.name for row in (*ROWS, *THROTTLED)} | {LOST_ANSWER} == set(ready_made())
