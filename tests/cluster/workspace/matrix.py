"""Hundreds of Workspaces on their way at once, each of which meets one fault at one request; all must end the same.

A Workspace of either kind passes phases: it comes to readiness, through a change, and away again. A case is one
Workspace that fails in one phase; undisturbed Workspaces among them say what the end of each phase should be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from tests.cluster.proxy import Action, FaultProxy, Rule
from tests.cluster.workspace.bare import NAMESPACE, SERVICE_ACCOUNT, tuning_workspace, workspace
from tests.cluster.workspace.stand_ins.following import Obj
from tests.cluster.workspace.stand_ins.provisioner import Provisioner
from tests.cluster.workspace.stand_ins.workloads import digest_of
from tests.eventually import PATIENCE, eventually

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Client
from kaito_hooks.workspace.purchases.claims import claim_name
from kaito_hooks.workspace.resources import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    EVENT,
    JOB,
    MACHINE,
    NETWORK_POLICY,
    NODE,
    SERVICE,
    WORKSPACE,
)

NAME = "w"
SECOND_IMAGE = "r.io/team/adapter:0.2"
_ADAPTERS = [{"source": {"name": "one", "image": "r.io/x/one:1"}, "strength": "0.5"}]

Phase = Literal["serving", "changing", "deleting", "tuning", "tuning again", "giving back"]
STAGES: tuple[tuple[Phase, Phase], ...] = (
    ("serving", "tuning"),
    ("changing", "tuning again"),
    ("deleting", "giving back"),
)
"""What Workspaces for inference and those for tuning do at the same time."""
CHANGES: Mapping[Phase, Obj] = {
    "changing": {"inference": {"adapters": _ADAPTERS}},
    "tuning again": {"tuning": {"output": {"image": SECOND_IMAGE}}},
    "giving back": {"tuning": {"serveResult": False}},
}


@dataclass(frozen=True, slots=True)
class Step:
    """A request of the controller: ``{place}`` is the Workspace's namespace, ``{claim}`` its claim's name."""

    method: str
    pattern: str
    skip: int = 0
    body: str = ""


OWN = "own the Deployment's fields"
_OBJECT = r"/namespaces/{place}/%s/w$"
_COLLECTION = r"/namespaces/{place}/%s$"
_STATUS = r"/{place}/workspaces/w/status$"
_TRAINER = '"kaito_tuning"'
"""The module that trains, in the body of a Job; that of its check has another name."""
_TEMPLATE = r"/configmaps/qlora-params-template$"
STEPS: Mapping[Phase, Mapping[str, Step]] = {
    "serving": {
        "take up the Workspace": Step("PATCH", _OBJECT % "workspaces"),
        "record the revision": Step("POST", _COLLECTION % "controllerrevisions"),
        "buy the node": Step("POST", r"/machines$", body='"{claim}"'),
        "label the node": Step("PATCH", r"/nodes/{place}\."),
        "write the first status": Step("PUT", _STATUS),
        "write the second status": Step("PUT", _STATUS, skip=1),
        "write the third status": Step("PUT", _STATUS, skip=2),
        "create the Service": Step("POST", _COLLECTION % "services"),
        "create the NetworkPolicy": Step("POST", _COLLECTION % "networkpolicies"),
        "create the Deployment": Step("POST", _COLLECTION % "deployments"),
        "write an Event": Step("POST", _COLLECTION % "events"),
    },
    "changing": {
        "take up the change": Step("PATCH", _OBJECT % "workspaces"),
        "record the change": Step("POST", _COLLECTION % "controllerrevisions"),
        "look at the Deployment": Step("GET", _OBJECT % "deployments"),
        OWN: Step("PATCH", r"/{place}/deployments/w$"),
        "apply the Deployment": Step("PATCH", r"/{place}/deployments/w\?.*fieldManager"),
        "write the status of the change": Step("PUT", _STATUS),
    },
    "deleting": {
        "delete the Deployment": Step("DELETE", _OBJECT % "deployments"),
        "delete the claim": Step("DELETE", r"/machines/{claim}$"),
        "write the status of the deletion": Step("PUT", _STATUS),
        "list the claims": Step("GET", r"/machines\?.*{place}"),
        "let the Workspace go": Step("PATCH", _OBJECT % "workspaces"),
    },
    "tuning": {
        "look for the configuration": Step("GET", r"/{place}" + _TEMPLATE),
        # Every Workspace asks for the same object: the next one to ask meets the fault.
        "look for the default": Step("GET", "/kaito" + _TEMPLATE),
        "copy the default": Step("POST", _COLLECTION % "configmaps"),
        "create the check": Step("POST", _COLLECTION % "jobs", body='"w-check-1"'),
        "record the check": Step("PUT", _STATUS, body='"result"'),
        "remove the check": Step("DELETE", r"/namespaces/{place}/jobs/w-check-1$"),
        "create the Job": Step("POST", _COLLECTION % "jobs", body=_TRAINER),
        "record the result": Step("PUT", _STATUS, body='"adapterDigest"'),
        "serve the result": Step("POST", _COLLECTION % "deployments"),
    },
    "tuning again": {
        "take up the change": Step("PATCH", _OBJECT % "workspaces"),
        "remove the server": Step("DELETE", _OBJECT % "deployments"),
        "remove the Job": Step("DELETE", _OBJECT % "jobs"),
        "create the Job": Step("POST", _COLLECTION % "jobs", body=_TRAINER),
        "record the result": Step("PUT", _STATUS, body=digest_of(SECOND_IMAGE)),
    },
    "giving back": {
        "remove the server": Step("DELETE", _OBJECT % "deployments"),
        "give the claim back": Step("DELETE", r"/machines/{claim}$"),
        "write the status of the end": Step("PUT", _STATUS),
    },
}


@dataclass(frozen=True, slots=True)
class Row:
    """Which request of which phase meets which fault; without a step: none."""

    phase: Phase
    step: str = ""
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.step}: {self.fault}"


UNDISTURBED: Mapping[Phase, Row] = {phase: Row(phase) for phase in STEPS}


@dataclass(slots=True)
class Case:
    """One Workspace: ``end`` is all that is left of it after its phase, without what differs between Workspaces.

    ``unanswered``: how many requests of its reconciles had no answer in time, by a fault or as the machine stood still.
    """

    row: Row
    place: str
    uid: str = ""
    claim: str = ""
    rule: Rule | None = None
    end: str = ""
    bought: int = 0
    events: set[str] = field(default_factory=set)
    unanswered: int = 0

    @property
    def tunes(self) -> bool:
        return self.row.phase in [tuning for _, tuning in STAGES]

    def arm(self, proxy: FaultProxy, action: Action) -> None:
        """Have this case's request meet that action."""
        step = STEPS[self.row.phase][self.row.step]
        self.rule = proxy.on(
            step.method, self._filled(step.pattern), action, skip=step.skip, body=self._filled(step.body)
        )

    def _filled(self, pattern: str) -> str:
        return pattern.replace("{place}", self.place).replace("{claim}", self.claim)


def in_two_tiers(rows: Iterable[Row], sample: Iterable[Row]) -> list[Any]:
    """The rows as parameters of a test: those of the sample for every run, the others for ``make soak``."""
    ordinary = set(sample)
    return [row if row in ordinary else pytest.param(row, marks=pytest.mark.soak) for row in rows]


def rows_of_this_run(request: pytest.FixtureRequest) -> list[Row]:
    """The rows of the tests that were chosen from the file that asks."""
    items = [item for item in request.session.items if item.path == request.path]
    return list(dict.fromkeys(i.callspec.params["row"] for i in items if hasattr(i, "callspec")))


class Matrix:
    """The cluster of all cases, and what is to be found in it."""

    def __init__(self, admin: Client, rows: Iterable[Row], provisioner: Provisioner) -> None:
        self.admin, self.provisioner = admin, provisioner
        self.cases = {row: Case(row, f"f-{n:03d}") for n, row in enumerate([*UNDISTURBED.values(), *rows])}
        self.each(self.cases.values(), self._submit)

    def of(self, phases: Iterable[Phase]) -> list[Case]:
        """The cases that fail in one of the phases, and the undisturbed ones among them."""
        return [case for row, case in self.cases.items() if row.phase in phases]

    def undisturbed(self, row: Row) -> Case:
        """What says how that row should end."""
        return self.cases[UNDISTURBED[row.phase]]

    def each(self, cases: Iterable[Case], what: Callable[[Case], None]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(what, cases))

    def _submit(self, case: Case) -> None:
        self.admin.create(NAMESPACE, {"metadata": {"name": case.place}})
        if case.tunes:
            self.admin.create(SERVICE_ACCOUNT, {"metadata": {"name": "default", "namespace": case.place}})
        make = tuning_workspace if case.tunes else workspace
        made = self.admin.create(WORKSPACE, make(NAME, case.place))
        case.uid = made["metadata"]["uid"]
        case.claim = claim_name(Workspace.read(made), 0)

    def begin(self, phases: Iterable[Phase]) -> None:
        """Have users ask for what these phases are about; that of the first came with the Workspaces."""

        def ask(case: Case) -> None:
            if case.row.step == OWN:
                self._disown(case)
            if case.row.phase == "deleting":
                self.admin.delete(WORKSPACE, NAME, namespace=case.place)
            elif (change := CHANGES.get(case.row.phase)) is not None:
                self.admin.patch(WORKSPACE, NAME, change, namespace=case.place)

        self.each(self.of(phases), ask)

    def _disown(self, case: Case) -> None:
        """Make the Deployment's fields those of a POST, as they mostly are.

        A controller that posts twice, because its cache has not heard of the first time, owns them already.
        """
        found = self.admin.get(DEPLOYMENT, NAME, namespace=case.place)
        owners = [
            {**owner, "manager": "kaito-workspace", "operation": "Update"} if owner["operation"] == "Apply" else owner
            for owner in found["metadata"]["managedFields"]
        ]
        patch = [{"op": "replace", "path": "/metadata/managedFields", "value": owners}]
        self.admin.patch(DEPLOYMENT, NAME, patch, namespace=case.place, kind="json")

    def settle(
        self, phases: Sequence[Phase], *, timeout: float = PATIENCE, is_told: Callable[[Case], bool] | None = None
    ) -> None:
        """Until all ended as the undisturbed ones did, or the time is over: the tests tell which did not.

        ``is_told``: whether Events tell enough of a case.
        """
        cases = self.of(phases)
        guides = [self.cases[UNDISTURBED[phase]] for phase in phases]
        _patiently(lambda: all(self._is_done(case) for case in guides), timeout=timeout)
        _patiently(lambda: self._seem_done(cases), timeout=timeout)
        self.each(guides, self._note)

        def same() -> bool:
            self.each([case for case in cases if case.end != self.undisturbed(case.row).end], self._note)
            if is_told is not None:
                self._look_at_events()
            return all(
                case.end == self.undisturbed(case.row).end and (is_told is None or is_told(case)) for case in cases
            )

        _patiently(same, timeout=PATIENCE)

    def _seem_done(self, cases: Iterable[Case]) -> bool:
        """What one list of all Workspaces can tell."""
        found = {w["metadata"]["namespace"]: w for w in self.admin.list(WORKSPACE).items}
        return all(
            case.place not in found if case.row.phase == "deleting" else _is_ready(found.get(case.place))
            for case in cases
        )

    def _is_done(self, case: Case) -> bool:
        """Whether an undisturbed Workspace has come to the end of its phase."""
        if not self._seem_done([case]):
            return False
        claims, deployments = self._claims(case), self.admin.list(DEPLOYMENT, namespace=case.place).items
        if case.row.phase in ("deleting", "giving back"):
            return not claims and not deployments
        wanted = {"changing": "adapter-one", "tuning again": digest_of(SECOND_IMAGE)}.get(case.row.phase, "")
        return bool(deployments) and wanted in json.dumps(deployments)

    def _claims(self, case: Case) -> list[Obj]:
        return self.admin.list(MACHINE, label_selector=f"kaito.sh/workspacenamespace={case.place}").items

    def _look_at_events(self) -> None:
        by_place = {case.place: case for case in self.cases.values()}
        for event in self.admin.list(EVENT, field_selector="involvedObject.kind=Workspace").items:
            if event["metadata"]["namespace"] in by_place:
                known = by_place[event["metadata"]["namespace"]].events
                known.update(f"{event['type']}: {_gist(part)}" for part in event["message"].split("; "))

    def _note(self, case: Case) -> None:
        """Write down how the case ended."""
        case.bought = list(self.provisioner.made.values()).count((case.place, NAME))
        resources = (WORKSPACE, DEPLOYMENT, SERVICE, NETWORK_POLICY, CONTROLLER_REVISION)
        found = [
            obj
            for resource in (*resources, *((JOB, CONFIG_MAP) if case.tunes else ()))
            for obj in sorted(
                self.admin.list(resource, namespace=case.place).items, key=lambda o: int(o.get("revision") or 0)
            )
        ]
        nodes = self.admin.list(NODE, label_selector=f"kaito.sh/workspacenamespace={case.place}").items
        left: list[Any] = [_plain(obj) for obj in found]
        left += [claim["metadata"]["name"] for claim in self._claims(case)]
        left += [n["metadata"]["labels"].get("accelerator") for n in nodes]
        text = json.dumps(left, indent=1, sort_keys=True)
        jobs = [(obj["metadata"]["uid"], "JOB") for obj in found if obj["kind"] == "Job"]
        for value, word in ((case.place, "PLACE"), (case.uid, "UID"), (case.claim, "CLAIM"), *jobs):
            text = text.replace(value, word)
        case.end = text


def assert_undisturbed(matrix: Matrix) -> None:
    """Whether the undisturbed Workspaces ended as they should."""
    ends = {phase: json.loads(matrix.cases[row].end) for phase, row in UNDISTURBED.items()}
    objects = {phase: [o for o in end if isinstance(o, dict)] for phase, end in ends.items()}
    kinds = {phase: [o["kind"] for o in found] for phase, found in objects.items()}
    others = {phase: [o for o in end if not isinstance(o, dict)] for phase, end in ends.items()}
    serving = ["Workspace", "Deployment", "Service", "NetworkPolicy", "ControllerRevision"]
    assert kinds["serving"] == serving
    assert kinds["changing"] == [*serving, "ControllerRevision"]
    assert kinds["tuning"] == [*serving, "Job", "ConfigMap"]
    assert kinds["tuning again"] == [*serving, "ControllerRevision", "Job", "ConfigMap"]
    assert "Deployment" not in kinds["giving back"]
    assert not {"Workspace", "Deployment"} & set(kinds["deleting"])
    for phase in UNDISTURBED:
        # This provisioner leaves the Node behind.
        assert others[phase] == (["nvidia"] if phase in ("deleting", "giving back") else ["CLAIM", "nvidia"])
        if phase != "deleting":
            conditions = {c["type"]: c["status"] for c in objects[phase][0]["status"]["conditions"]}
            assert conditions["WorkspaceReady"] == "True"
    assert "adapter-one" in matrix.cases[UNDISTURBED["changing"]].end


def _is_ready(found: Obj | None) -> bool:
    if found is None:
        return False
    return any(
        (c["type"], c["status"], c["observedGeneration"]) == ("WorkspaceReady", "True", found["metadata"]["generation"])
        for c in (found.get("status") or {}).get("conditions") or ()
    )


def _gist(sentence: str) -> str:
    """The sentence without how long the start took; of what was created only whether it bills, as faults divide the
    children among several Events."""
    if not sentence.startswith("created "):
        return sentence.partition(" after ")[0]
    return "created Machine" if sentence.startswith("created Machine ") else "created children"


def _patiently(probe: Callable[[], bool], *, timeout: float) -> None:
    try:
        eventually(probe, timeout=timeout, every=0.3)
    except AssertionError:
        return


def _plain(obj: Obj) -> Obj:
    """The object without what the API server numbers and dates, and without hashes of such."""
    metadata = obj["metadata"]
    kept = {
        key: metadata[key]
        for key in ("name", "namespace", "labels", "finalizers", "ownerReferences")
        if key in metadata
    }
    if obj["kind"] == "ControllerRevision":
        kept.pop("name")  # a hash
    annotations = {
        k: v for k, v in (metadata.get("annotations") or {}).items() if not k.endswith(("/fingerprint", "/hash"))
    }
    kept["labels"] = {k: v for k, v in (kept.get("labels") or {}).items() if not k.endswith("/workload-hash")}
    plain = {**obj, "metadata": {**kept, "annotations": annotations}}
    if obj["kind"] == "Service":
        plain["spec"] = {k: v for k, v in obj["spec"].items() if not k.startswith("clusterIP")}
    if obj["kind"] in ("Deployment", "Job"):
        plain.pop("status", None)
    status = plain.get("status") or {}
    if "conditions" in status:
        conditions = [{k: v for k, v in c.items() if k != "lastTransitionTime"} for c in status["conditions"]]
        plain["status"] = {**status, "conditions": sorted(conditions, key=lambda c: str(c["type"]))}
    if "startup" in status:
        plain["status"]["startup"] = [phase["name"] for phase in status["startup"]["phases"]]
    return plain
