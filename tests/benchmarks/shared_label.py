"""What one look at a Workspace costs when all Workspaces of a cluster have copied one label.

    python -m tests.benchmarks.shared_label [--sizes 10 100 1000]

A case N is N Workspaces with a node each, all with the label of the quick start; the nodes are bought, or the users'
own. Measured is what a reconcile does before it acts, over full caches of the product's own kind: the Snapshot, and the
plan for it, in milliseconds of this process; and how many Workspaces a change of one node in use wakes. Nothing is
asserted; aim: neither grows with N.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from tests.driven.clock import SteppedClock
from tests.unit.workspace.running import one
from tests.unit.workspace.worlds import CATALOG_OBJECT, node_object

from kaito_hooks.runtime import Client, Informer, Key, Obj, Resource
from kaito_hooks.runtime.client.cache import Cache
from kaito_hooks.workspace import resources
from kaito_hooks.workspace.configuration.settings import Settings
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.observe import Observer
from kaito_hooks.workspace.plan import plan
from kaito_hooks.workspace.status.poller import ProgressPoller
from kaito_hooks.workspace.world import World

LOOKS = 50


class Full(Cache):
    """An informer's cache, filled by hand."""

    served = True

    def __init__(self, _: Client, resource: Resource, **options: Any) -> None:
        super().__init__(options.get("indexes") or {})


def build(size: int, *, bought: bool) -> tuple[World, Observer]:
    """Caches of N Workspaces that are ready, each on its node."""
    world = World.over(cast(Client, None), "Machine", follow=cast(Any, Full))
    fill(world.catalogs, [CATALOG_OBJECT])
    workspaces, nodes, claims = [], [], []
    for number in range(size):
        name, node = f"ws-{number}", f"node-{number:04}"
        obj = one(name=name)
        obj["status"] = {"workerNodes": [node]}
        workspaces.append(obj)
        marks = {"kaito.sh/workspace": name, "kaito.sh/workspacenamespace": "models"} if bought else {}
        nodes.append(node_object(node, labels={**marks, "accelerator": "nvidia"}))
        if bought:
            claims.append(
                {
                    "apiVersion": resources.MACHINE.api_version,
                    "kind": "Machine",
                    "metadata": {"name": f"claim-{number}", "uid": f"uid-{node}", "labels": marks},
                    "status": {"nodeName": node, "conditions": [{"type": "Ready", "status": "True"}]},
                }
            )
    fill(world.workspaces, workspaces)
    fill(world.nodes, nodes)
    fill(world.machines, claims)
    settings = replace(Settings(), node_api="Machine" if bought else "none")
    observer = Observer(
        world,
        client=cast(Client, None),
        memories=Memories(),
        poller=ProgressPoller(),
        settings=settings,
        clock=SteppedClock(),
    )
    return world, observer


def fill(informer: Informer, objects: Iterable[Obj]) -> None:
    """Put the objects into the cache as an informer would."""
    for obj in objects:
        cast(Full, informer).put(Key.of(obj), copy.deepcopy(obj))


def look(observer: Observer, size: int) -> float:
    """Milliseconds of one observation and its plan, the mean over some Workspaces."""
    keys = [Key("models", f"ws-{number * size // LOOKS % size}") for number in range(LOOKS)]
    began = time.process_time()
    for key in keys:
        snapshot = observer.observe(key)
        assert snapshot is not None
        plan(snapshot)
    return 1000 * (time.process_time() - began) / LOOKS


class Woken:
    """Whom the World wakes for a change of a node."""

    def __init__(self, world: World) -> None:
        self.mappings: dict[int, Any] = {}
        self.world = world

    def watch(self, informer: Any, to_keys: Any) -> None:
        self.mappings[id(informer)] = to_keys

    def of(self, node: Obj) -> int:
        return len(set(self.mappings[id(self.world.nodes)](node)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    print("nodes         N  ms a look  woken by one node")
    for bought in (True, False):
        for size in arguments.sizes:
            world, observer = build(size, bought=bought)
            woken = Woken(world)
            cast(Any, world.workspaces).subscribe = lambda handler: None
            world.wire(cast(Any, woken), Memories())
            node = world.nodes.get(Key("", "node-0000"))
            assert node is not None
            spent = look(observer, size)
            print(f"{'bought' if bought else 'own':9} {size:5} {spent:10.2f} {woken.of(node):18}")


if __name__ == "__main__":
    main()
