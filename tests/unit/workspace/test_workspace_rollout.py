"""Which Workspaces are rolled by themselves: so many at a time, each once, and no further when one fails."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, timezone
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.driven.clock import SteppedClock
from tests.driven.cluster import MemoryCluster, MemoryInformer
from tests.unit.workspace.worlds import CATALOG, SmallWorld, uncounted, workspace_object

from kaito_hooks.runtime import ApiError, Client, Forbidden, Informer, Invalid, Key, Resource
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Images, Settings, Window, Workloads
from kaito_hooks.workspace.execute import Executor
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.rollout import Rolled, Rollout, choose, is_open, look_at
from kaito_hooks.workspace.world import World

Obj = dict[str, Any]
ROLL = "workspace.kaito.io/roll"


def one(
    name: str, *, drifted: bool = True, chosen: bool = False, asked: bool = False, available: bool = True
) -> Rolled:
    return Rolled(Key("models", name), drifted, chosen, asked, available)


@pytest.mark.parametrize(
    ("found", "most", "chosen"),
    [
        pytest.param([one("b"), one("a"), one("c")], 1, "a", id="one at a time, by name"),
        pytest.param([one("b"), one("a"), one("c")], 2, "ab", id="two at a time"),
        pytest.param([one("a", drifted=False), one("b")], 1, "b", id="only those that would be another"),
        pytest.param([one("a", chosen=True, asked=True), one("b")], 1, "", id="one is asked and not made yet"),
        pytest.param([one("a", drifted=False, chosen=True, available=False), one("b")], 1, "", id="one loads"),
        pytest.param([one("a", drifted=False, chosen=True), one("b")], 1, "b", id="one is done"),
        pytest.param([one("a", drifted=False, available=False), one("b")], 1, "b", id="one that loads anyway"),
        pytest.param([one("a", available=False), one("b")], 1, "b", id="who cannot serve waits for who can"),
        pytest.param(
            [one("a", chosen=True, available=False), one("b")], 1, "a", id="a failed roll that would be another"
        ),
        pytest.param([one("a", chosen=True), one("b", chosen=True)], 1, "a", id="the second upgrade"),
        pytest.param(
            [one("a", chosen=True, asked=True), one("b", chosen=True, asked=True), one("c")],
            1,
            "",
            id="too many rolling",
        ),
    ],
)
def test_who_is_next(found: list[Rolled], most: int, chosen: str) -> None:
    assert "".join(key.name for key in choose(found, max_unavailable=most)) == chosen


SATURDAY_NIGHT = Window(frozenset({5}), time(22), 4 * 3600.0)


@pytest.mark.parametrize(
    ("window", "now", "opened"),
    [
        (None, datetime(2026, 1, 2, tzinfo=UTC), True),
        (SATURDAY_NIGHT, datetime(2026, 1, 3, 21, 59, tzinfo=UTC), False),
        (SATURDAY_NIGHT, datetime(2026, 1, 3, 22, 0, tzinfo=UTC), True),
        # It began on a Saturday.
        (SATURDAY_NIGHT, datetime(2026, 1, 4, 1, 59, tzinfo=UTC), True),
        (SATURDAY_NIGHT, datetime(2026, 1, 4, 2, 0, tzinfo=UTC), False),
        (SATURDAY_NIGHT, datetime(2026, 1, 4, 22, 0, tzinfo=UTC), False),
        # Two in the morning east of Greenwich is still Saturday there where the window is.
        (SATURDAY_NIGHT, datetime(2026, 1, 4, 2, 0, tzinfo=timezone(timedelta(hours=3))), True),
        (replace(SATURDAY_NIGHT, duration=3 * 86400.0), datetime(2026, 1, 6, 21, 0, tzinfo=UTC), True),
        (replace(SATURDAY_NIGHT, duration=0.0), datetime(2026, 1, 3, 22, 0, tzinfo=UTC), False),
    ],
)
def test_a_roll_begins_only_in_its_window(window: Window | None, now: datetime, opened: bool) -> None:
    assert is_open(window, now) is opened


class Cluster:
    """Workspaces by name, each with its world; a roll of the controller's own is one write."""

    def __init__(self, count: int, *, most: int) -> None:
        settings = Settings(workloads=Workloads(upgrade="rolling", max_unavailable=most))
        self.most, self.writes, self.reconciles, self.rolled = most, 0, 0, list[str]()
        self.worlds = {
            f"w{n:02}": SmallWorld(workspace_object(metadata={"name": f"w{n:02}"}), settings=settings)
            for n in range(count)
        }
        for world in self.worlds.values():
            world.settle()

    def upgrade(self, tag: str) -> None:
        for world in self.worlds.values():
            world.settings = replace(world.settings, images=Images(hooks=f"r.io/hooks:{tag}"))
            self.reconcile(world)

    def reconcile(self, world: SmallWorld) -> None:
        self.reconciles += 1
        decided = world.reconcile()
        self.writes += len(decided.actions) + (decided.status is not None)

    def step(self) -> list[str]:
        """One look of the rollout; the chosen ones' controllers act. The names of those that are unavailable then."""
        found = [look_at(_workspace(world), _workloads(name, world), last=None) for name, world in self.worlds.items()]
        for key in choose(found, max_unavailable=self.most):
            self.rolled.append(key.name)
            self.writes += 1
            metadata = _workspace(self.worlds[key.name])["metadata"]
            metadata["annotations"][ROLL] = str(len(self.rolled))
            self.reconcile(self.worlds[key.name])
        return [name for name, world in self.worlds.items() if _is_down(name, world)]

    def finish(self, name: str) -> None:
        """The Pods of that Workspace are ready."""
        self.worlds[name].run_workloads()
        self.reconcile(self.worlds[name])

    def image(self, name: str) -> str:
        [step] = self.worlds[name].children[f"Deployment/{name}"]["spec"]["template"]["spec"]["initContainers"]
        return str(step["image"])


def _workspace(world: SmallWorld) -> Obj:
    assert world.workspace is not None
    return world.workspace


def _workloads(name: str, world: SmallWorld) -> list[Obj]:
    return [world.children[f"Deployment/{name}"]]


def _is_down(name: str, world: SmallWorld) -> bool:
    found = world.children[f"Deployment/{name}"]
    return bool(found["status"]["observedGeneration"] != found["metadata"]["generation"])


@pytest.mark.parametrize("most", [1, 3])
def test_twenty_are_rolled_each_once_and_never_more_than_so_many_at_a_time(most: int) -> None:
    cluster = Cluster(20, most=most)
    cluster.upgrade("2")
    before = cluster.writes
    for _ in range(30):
        down = cluster.step()
        assert len(down) <= most
        # The newest one is ready first: the order does not matter.
        for name in down[-1:]:
            cluster.finish(name)
    assert sorted(cluster.rolled) == sorted(cluster.worlds)
    assert {cluster.image(name) for name in cluster.worlds} == {"r.io/hooks:2"}
    # The request for a roll, the Deployment, the status that it rolls, and the one that it is done.
    assert cluster.writes - before == 20 * 4
    assert cluster.reconciles == 20 + 20 * 2


def test_a_roll_that_fails_holds_up_the_others_until_another_upgrade_mends_it() -> None:
    cluster = Cluster(5, most=1)
    cluster.upgrade("broken")
    for _ in range(10):
        assert cluster.step() == ["w00"]
    assert cluster.rolled == ["w00"]
    cluster.upgrade("2")
    for _ in range(10):
        for name in cluster.step():
            cluster.finish(name)
    assert cluster.rolled == ["w00", "w00", "w01", "w02", "w03", "w04"]
    assert {cluster.image(name) for name in cluster.worlds} == {"r.io/hooks:2"}


def test_a_controller_that_dies_after_it_asked_for_a_roll_goes_on_with_that_one() -> None:
    cluster = Cluster(3, most=1)
    cluster.upgrade("2")
    _workspace(cluster.worlds["w01"])["metadata"]["annotations"][ROLL] = "asked before the end"
    assert cluster.step() == []
    assert cluster.rolled == []
    cluster.reconcile(cluster.worlds["w01"])
    assert cluster.step() == ["w01"]
    cluster.finish("w01")
    assert cluster.step() == ["w00"]


def test_a_workspace_whose_preset_goes_after_it_was_chosen_holds_up_nobody() -> None:
    cluster = Cluster(2, most=1)
    cluster.upgrade("2")
    first = cluster.worlds["w00"]
    _workspace(first)["metadata"]["annotations"][ROLL] = "asked before the end"
    first.catalog = replace(CATALOG, presets={})
    cluster.reconcile(first)
    told = {c["type"]: c for c in _workspace(first)["status"]["conditions"]}
    assert told["WorkloadUpToDate"]["reason"] == "CannotRoll"
    assert "Unsupported inference preset name" in told["WorkloadUpToDate"]["message"]
    assert cluster.step() == ["w01"]
    # Its Pods go on, and when the preset comes back, so does the roll.
    assert told["WorkspaceReady"]["status"] == "True"
    cluster.finish("w01")
    first.catalog = CATALOG
    cluster.reconcile(first)
    assert cluster.image("w00") == "r.io/hooks:2"


@pytest.mark.parametrize(("reason", "rolling"), [("NoWorkload", False), ("CannotRoll", False), ("UpToDate", True)])
def test_a_roll_that_does_not_come_is_not_waited_for(reason: str, rolling: bool) -> None:
    """Its model is tuned again, so that nothing is served for hours; ranks are away only while they are replaced."""
    obj = workspace_object(metadata={"annotations": {ROLL: "1"}})
    obj["status"] = {"conditions": [{"type": "WorkloadUpToDate", "status": "Unknown", "reason": reason}]}
    assert look_at(obj, [], last=None).rolling is rolling


@pytest.mark.parametrize("lost", ["node", "pod"])
def test_who_was_rolled_and_is_down_later_for_another_reason_holds_up_nobody(lost: str) -> None:
    cluster = Cluster(3, most=1)
    cluster.upgrade("2")
    assert cluster.step() == ["w00"]
    cluster.finish("w00")
    assert cluster.step() == ["w01"]
    cluster.finish("w01")
    first = cluster.worlds["w00"]
    first.children["Deployment/w00"]["status"]["readyReplicas"] = 0
    if lost == "node":
        first.nodes = {}
    cluster.reconcile(first)
    cluster.step()
    assert cluster.rolled == ["w00", "w01", "w02"]


def test_a_pod_of_before_that_still_counts_as_ready_ends_no_roll() -> None:
    """For a moment a Deployment counts the new Pod as updated and the old one as ready."""
    cluster = Cluster(2, most=1)
    cluster.upgrade("2")
    assert cluster.step() == ["w00"]
    first = cluster.worlds["w00"]
    child = first.children["Deployment/w00"]
    child["status"] = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "readyReplicas": 1}
    cluster.reconcile(first)
    cluster.step()
    child["status"] = {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1}
    cluster.reconcile(first)
    cluster.step()
    assert cluster.rolled == ["w00"]
    cluster.finish("w00")
    cluster.step()
    assert cluster.rolled == ["w00", "w01"]


def test_whose_node_goes_while_it_is_rolled_holds_up_nobody_until_it_is_back() -> None:
    cluster = Cluster(3, most=1)
    cluster.upgrade("2")
    assert cluster.step() == ["w00"]
    first = cluster.worlds["w00"]
    nodes, first.nodes = first.nodes, {}
    cluster.reconcile(first)
    cluster.step()
    assert cluster.rolled == ["w00", "w01"]
    cluster.finish("w01")
    first.nodes = nodes
    cluster.reconcile(first)
    for _ in range(3):
        cluster.step()
    assert cluster.rolled == ["w00", "w01"]
    cluster.finish("w00")
    cluster.step()
    assert cluster.rolled == ["w00", "w01", "w02"]


def test_an_upgrade_that_a_workspace_cannot_have_never_rolls_it() -> None:
    cluster = Cluster(2, most=1)
    for world in cluster.worlds.values():
        world.catalog = replace(CATALOG, default_engine="vllm")  # which does not run on a V100
        cluster.reconcile(world)
    assert cluster.step() == []
    assert cluster.rolled == []


@pytest.mark.parametrize("error", [Forbidden, Invalid], ids=["a policy", "annotations of 256 KiB"])
def test_a_workspace_that_may_not_be_asked_to_roll_holds_up_no_other_and_is_asked_rarely(
    error: type[ApiError],
) -> None:
    clock, cluster, told = SteppedClock(), MemoryCluster(SteppedClock()), list[tuple[str, str]]()
    informers: list[MemoryInformer] = []

    def follow(client: Client, resource: Resource, **selection: Any) -> Informer:
        informers.append(MemoryInformer(cluster, resource, **selection))
        return cast(Informer, informers[-1])

    def event(obj: Obj, type: str, reason: str, message: str, **_: Any) -> None:
        told.append((obj["metadata"]["name"], reason))

    for name in ("a", "b", "c"):
        condition = {"type": "WorkloadUpToDate", "status": "False", "reason": "PlatformChanged"}
        obj = workspace_object(metadata={"name": name, "uid": f"uid-{name}"}, status={"conditions": [condition]})
        cluster.put(resources.WORKSPACE, obj)
    client = cast(Client, cluster)
    world = World.over(client, "Machine", follow=follow)
    for informer in informers:
        informer.sync()
    tries: list[str] = []

    def refuse(what: str, after: bool) -> None:
        if not after:
            tries.append(what.split()[-1])
            if what.endswith(" a"):
                raise error("it may not be written", status=403, reason="Forbidden")

    cluster.touch, cluster.product_writes = refuse, True
    executor = Executor(
        client,
        recorder=cast(Any, SimpleNamespace(event=event)),
        memories=Memories(),
        metrics=uncounted(),
        clock=clock,
        refusal_pause=30.0,
    )
    rollout = Rollout(world, executor, settings=Workloads(upgrade="rolling", max_unavailable=1), clock=clock)
    for _ in range(30):
        rollout.proceed()
        clock.advance(2)
    assert tries == ["a", "b"]
    assert told == [("a", "RollRefused"), ("b", "RollStarted")]
    for name in ("b", "c"):
        cluster.drop(resources.WORKSPACE, name, "models")
    for informer in informers:
        informer.sync()
    clock.advance(600)
    rollout.proceed()
    assert tries == ["a", "b", "a"]
