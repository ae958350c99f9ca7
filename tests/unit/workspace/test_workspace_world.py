"""The caches: what one Workspace costs them, and whom the Event of a claim concerns."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.eventually import PATIENCE, eventually
from tests.unit.runtime.tiny_server import TinyServer, answer, stream
from tests.unit.workspace.worlds import START, UID, claim_object, workspace_object

from kaito_hooks.api.claim import Claim
from kaito_hooks.runtime import Controller, Key, Result
from kaito_hooks.workspace.decision.snapshot import Memory
from kaito_hooks.workspace.memory import Memories
from kaito_hooks.workspace.world import World

Obj = dict[str, Any]
KEY = Key("models", "phi")


class Cluster:
    """An API server that lists these objects and, when told so, sends the Event of a claim in its watch."""

    def __init__(self, folder: Path, **objects: list[Obj]) -> None:
        self._objects = objects
        self._happening = threading.Event()
        self._event = b""
        self.memories = Memories()
        self.seen: list[Key] = []
        self.server = TinyServer(self._answer)
        self.world = World.over(self.server.client(folder), "Machine")
        self.controller = Controller("workspace", reconcile=self._reconcile, workers=1, resync=None)
        self.world.wire(self.controller, self.memories)

    def start(self) -> None:
        """Returns when everything is in the caches and every Workspace was looked at."""
        for informer in self.controller.informers:
            informer.start()
        for informer in self.controller.informers:
            assert informer.wait_synced(PATIENCE)
        self.controller.start()
        eventually(lambda: len(self.seen) == len(self._objects["workspaces"]))
        self.seen.clear()

    def warn(self, claim: str) -> None:
        """A warning about the claim of that name."""
        metadata = {"name": "e", "namespace": "default", "resourceVersion": "2"}
        event = {"metadata": metadata, "involvedObject": {"kind": "Machine", "name": claim}}
        self._event = json.dumps({"type": "ADDED", "object": event}).encode() + b"\n"
        self._happening.set()

    def stop(self) -> None:
        self.controller.stop()
        self._happening.set()
        self.server.__exit__(None, None, None)
        for informer in self.controller.informers:
            informer.stop()

    def _reconcile(self, key: Key) -> Result:
        self.seen.append(key)
        return Result()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        plural = path.rpartition("/")[2]
        if "watch=true" not in query:
            items = self._objects.get(plural, [])
            answer(200, {"metadata": {"resourceVersion": "1"}, "items": items})(handler)
        elif plural == "events" and "Machine" in query:
            self._happening.wait(2 * PATIENCE)
            stream(self._event, ends=False)(handler)
        else:
            stream(ends=False)(handler)
            self.server.finished.wait(2 * PATIENCE)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    made: list[Cluster] = []

    def make(**objects: list[Obj]) -> Cluster:
        made.append(Cluster(tmp_path, **objects))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def lost(*, why: list[Obj] | None = None) -> Callable[[Memory], Memory]:
    """A memory of the claim ws1 that was there, with these conditions, and is gone."""

    def change(memory: Memory) -> Memory:
        claim = Claim.read(claim_object("ws1", conditions=why))
        bounds: Any = {"slots": {"ws1": 0}, "now": START, "minimum": 30, "maximum": 1800}
        return replace(memory, purchases=memory.purchases.look([claim], **bounds).look([], **bounds))

    return change


def test_what_a_workspace_costs_does_not_depend_on_how_many_nodes_it_asks_for(cluster: Callable[..., Cluster]) -> None:
    resource = workspace_object()["resource"] | {"count": 100_000}
    made = cluster(workspaces=[workspace_object(resource=resource)])
    tracemalloc.start()
    try:
        made.start()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * 2**20


def test_the_event_of_a_claim_concerns_the_workspace_in_its_labels(cluster: Callable[..., Cluster]) -> None:
    claim = claim_object("ws1", resourceVersion="1")
    other = workspace_object(metadata={"name": "other", "uid": "other"})
    made = cluster(workspaces=[workspace_object(), other], machines=[claim])
    made.start()
    made.warn("ws1")
    eventually(lambda: made.seen)
    assert set(made.seen) == {KEY}


def test_the_event_of_a_claim_that_is_gone_concerns_who_does_not_know_why_it_went(
    cluster: Callable[..., Cluster],
) -> None:
    other = workspace_object(metadata={"name": "other", "uid": "other"})
    made = cluster(workspaces=[workspace_object(), other])
    made.memories.change(UID, lost())
    made.start()
    made.warn("ws1")
    eventually(lambda: made.seen)
    assert set(made.seen) == {KEY}


def test_a_claim_that_went_for_a_known_reason_is_not_missed() -> None:
    memories = Memories()
    memories.change("unknown", lost())
    quota = {"type": "MachineLaunched", "status": "False", "reason": "QuotaExceeded", "message": "6 cores more"}
    memories.change("known", lost(why=[quota]))
    assert memories.missing("ws1") == ["unknown"]
