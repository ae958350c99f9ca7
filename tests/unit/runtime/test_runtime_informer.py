from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.eventually import PATIENCE, eventually
from tests.unit.runtime.clocks import TurnedClock
from tests.unit.runtime.tiny_server import TinyServer, answer, stream

from kaito_hooks.runtime import Backoff, Client, Informer, Key, Metrics, Obj, Resource

NODE = Resource(group="", version="v1", plural="nodes", kind="Node", namespaced=False)
FAST = Backoff(minimum=0.005, maximum=0.02)


def node(name: str, version: int, **labels: str) -> Obj:
    metadata = {"name": name, "resourceVersion": str(version), "labels": labels, "managedFields": [{"manager": "x"}]}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


def event(kind: str, obj: Obj) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


def listed(version: int, *items: Obj) -> Any:
    return answer(200, {"metadata": {"resourceVersion": str(version)}, "items": list(items)})


class Script:
    """Answers lists and watches by the steps given; what comes after the last watch is silence."""

    def __init__(self, *, lists: list[Any], watches: list[Any]) -> None:
        self.lists = lists
        self.watches = watches
        self.finished = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        if "watch=true" not in handler.path:
            step = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            step(handler)
        elif self.watches:
            self.watches.pop(0)(handler)
        else:
            stream(ends=False)(handler)
            self.finished.wait(2 * PATIENCE)


@pytest.fixture
def changes() -> list[tuple[str | None, str | None]]:
    return []


@pytest.fixture
def follow(
    tmp_path: Path, changes: list[tuple[str | None, str | None]], request: pytest.FixtureRequest
) -> Callable[..., tuple[Informer, TinyServer]]:
    def version(obj: Obj | None) -> str | None:
        return obj and f"{obj['metadata']['name']}@{obj['metadata']['resourceVersion']}"

    def begin(script: Script, **settings: Any) -> tuple[Informer, TinyServer]:
        server = TinyServer(script)
        client: Client = server.client(tmp_path)
        informer = Informer(client, NODE, backoff=FAST, unserved_backoff=FAST, **settings)
        informer.subscribe(lambda old, new: changes.append((version(old), version(new))))
        informer.start()

        def end() -> None:
            informer.stop()
            script.finished.set()
            server.__exit__(None, None, None)

        request.addfinalizer(end)
        return informer, server

    return begin


def test_events_are_told_once_and_in_order(follow: Any, changes: list[Any]) -> None:
    events = [
        event("ADDED", node("b", 3)),
        event("MODIFIED", node("a", 4)),
        event("MODIFIED", node("a", 4)),
        event("DELETED", node("b", 5)),
        event("DELETED", node("never-seen", 6)),
    ]
    informer, _ = follow(Script(lists=[listed(2, node("a", 1))], watches=[stream(*events, ends=False)]))
    eventually(lambda: len(changes) >= 4)
    assert changes[:4] == [(None, "a@1"), (None, "b@3"), ("a@1", "a@4"), ("b@3", None)]
    assert informer.synced


def test_an_orderly_end_goes_on_from_the_last_bookmark_without_a_list(follow: Any) -> None:
    watches = [stream(event("ADDED", node("b", 3)), event("BOOKMARK", node("", 90)))]
    _, server = follow(Script(lists=[listed(2)], watches=watches))
    eventually(lambda: len(server.requests) >= 3)
    versions = [request.path.split("resourceVersion=")[1].split("&")[0] for request in server.requests[1:3]]
    assert versions == ["2", "90"]
    assert [request.path for request in server.requests if "watch" not in request.path] == [server.requests[0].path]


@pytest.mark.parametrize(
    "broken",
    [
        stream(event("ADDED", node("b", 3)), ends=False),
        stream(event("ADDED", node("b", 3)), b"{no json}\n"),
        stream(event("ADDED", node("b", 3)), b'{"type":"ADDED","object":{"kind":"Node"}}\n'),
        stream(event("ADDED", node("b", 3)), event("ERROR", {"code": 410, "reason": "Expired"})),
        stream(event("ADDED", node("b", 3)), event("ERROR", {"code": 500, "message": "etcd is gone"})),
        answer(410, {"code": 410}),
        answer(500, b"oops"),
        answer(429, {"code": 429, "details": {"retryAfterSeconds": 0.01}}),
    ],
    ids=["dropped", "no json", "no metadata", "expired", "error", "refused 410", "refused 500", "refused 429"],
)
def test_after_any_other_end_it_lists_again_and_tells_the_differences(
    follow: Any, changes: list[Any], broken: Any
) -> None:
    lists = [listed(2, node("a", 1), node("gone", 2)), listed(8, node("a", 1), node("c", 8))]
    informer, _ = follow(Script(lists=lists, watches=[broken]))
    eventually(lambda: informer.get(Key("", "c")) is not None and informer.get(Key("", "gone")) is None)
    assert (None, "c@8") in changes
    assert ("gone@2", None) in changes
    assert changes.count((None, "a@1")) == 1
    assert {Key.of(obj).name for obj in informer.list()} == {"a", "c"}


def deep(name: str, version: int) -> bytes:
    """A Node as a user may nest it, which json.dumps cannot write."""
    text = json.dumps({**node(name, version), "spec": {"a": "HERE", "b": ["]}[{", 1]}})
    return text.replace('"HERE"', '{"[": ' * 5000 + "1" + "}" * 5000).encode()


def test_an_object_that_is_nested_too_deep_keeps_no_other_from_the_cache(follow: Any) -> None:
    body = b'{"metadata": {"resourceVersion": "2"}, "items": [%s, %s]}' % (
        deep("a", 1),
        json.dumps(node("b", 2)).encode(),
    )
    events = stream(b'{"type": "ADDED", "object": %s}\n' % deep("c", 3), event("ADDED", node("d", 4)), ends=False)
    script = Script(lists=[answer(200, body)], watches=[])

    def then_silence(handler: BaseHTTPRequestHandler) -> None:
        events(handler)
        script.finished.wait(2 * PATIENCE)

    script.watches.append(then_silence)
    informer, _ = follow(script)
    eventually(lambda: {Key.of(obj).name for obj in informer.list()} == {"a", "b", "c", "d"})
    for name in ("a", "c"):
        assert (informer.get(Key("", name)) or {})["spec"]["b"] == ["]}[{", 1]


def test_managed_fields_are_not_kept_unless_the_transform_keeps_them(follow: Any) -> None:
    informer, _ = follow(Script(lists=[listed(2, node("a", 1))], watches=[]))
    assert informer.wait_synced(PATIENCE)
    assert "managedFields" not in informer.list()[0]["metadata"]


def test_a_transform_or_a_subscriber_that_raises_loses_nothing(follow: Any, changes: list[Any]) -> None:
    def transform(obj: Obj) -> Obj:
        if obj["metadata"]["name"] == "a":
            raise RuntimeError("odd")
        return obj

    lists = [listed(2, node("a", 1)), listed(3, node("a", 1), node("b", 3))]
    informer, _ = follow(
        Script(lists=lists, watches=[stream(event("ADDED", node("b", 3)), ends=False)]), transform=transform
    )

    def raises(old: Obj | None, new: Obj | None) -> None:
        raise RuntimeError("a subscriber")

    informer.subscribe(raises)
    eventually(lambda: (None, "b@3") in changes)
    assert {Key.of(obj).name for obj in informer.list()} == {"a", "b"}
    assert informer.deaf() is None


def test_a_late_subscriber_hears_of_what_is_there(follow: Any) -> None:
    informer, _ = follow(Script(lists=[listed(2, node("a", 1))], watches=[]))
    assert informer.wait_synced(PATIENCE)
    heard: list[Obj | None] = []
    informer.subscribe(lambda old, new: heard.append(new))
    assert [obj and obj["metadata"]["name"] for obj in heard] == ["a"]


def test_an_index_answers_without_a_search(follow: Any) -> None:
    script = Script(lists=[listed(2, node("a", 1, pool="x"), node("b", 1, pool="y"))], watches=[])
    informer, _ = follow(script, indexes={"pool": lambda obj: [obj["metadata"]["labels"]["pool"]]})
    assert informer.wait_synced(PATIENCE)
    assert [Key.of(obj).name for obj in informer.by_index("pool", "x")] == ["a"]


def test_an_optional_resource_that_is_not_served_is_empty_and_synced_and_looked_for_again(
    follow: Any, changes: list[Any]
) -> None:
    absent = answer(404, b"404 page not found\n")
    informer, _ = follow(
        Script(lists=[absent, absent, listed(2, node("a", 1)), absent], watches=[answer(404, {})]), optional=True
    )
    assert informer.wait_synced(PATIENCE)
    eventually(lambda: (None, "a@1") in changes)
    eventually(lambda: ("a@1", None) in changes and not informer.served)
    assert informer.list() == []
    assert informer.synced


def test_a_required_resource_that_is_not_served_is_not_synced(follow: Any) -> None:
    informer, server = follow(Script(lists=[answer(404, {})], watches=[]))
    eventually(lambda: len(server.requests) > 3)
    assert not informer.synced
    assert "has not listed yet" in (informer.out_of_touch() or "")


def test_a_server_that_is_away_makes_it_out_of_touch_but_not_deaf(follow: Any) -> None:
    clock = TurnedClock()
    script = Script(lists=[listed(2, node("a", 1)), answer(503, {})], watches=[stream(ends=False)])
    informer, server = follow(script, clock=clock)
    assert informer.wait_synced(PATIENCE)
    for _ in range(20):
        clock.turn(30)
        before = len(server.requests)
        eventually(lambda: len(server.requests) > before + 1)  # noqa: B023
        assert informer.deaf() is None
    assert "has not heard from the API server for" in (informer.out_of_touch() or "")


def test_an_idle_informer_is_not_deaf_and_a_stuck_one_is(follow: Any) -> None:
    clock = TurnedClock()
    release = threading.Event()
    more = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        stream(event("BOOKMARK", node("", 3)), ends=False)(handler)
        more.wait(2 * PATIENCE)
        data = event("ADDED", node("b", 4))
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        release.wait(2 * PATIENCE)

    informer, _ = follow(Script(lists=[listed(2)], watches=[slowly]), clock=clock)
    assert informer.wait_synced(PATIENCE)
    clock.turn(100)
    assert informer.deaf() is None
    entered = threading.Event()

    def blocks(old: Obj | None, new: Obj | None) -> None:
        entered.set()
        release.wait(2 * PATIENCE)

    informer.subscribe(blocks)
    more.set()
    assert entered.wait(PATIENCE)
    clock.turn(151)
    assert "has made no progress for 151 s" in (informer.deaf() or "")
    release.set()
    eventually(lambda: informer.deaf() is None)


def test_its_series_count_lists_watches_and_failures(follow: Any) -> None:
    metrics = Metrics()
    watches = [stream(event("ADDED", node("b", 3)), ends=False)]
    informer, _ = follow(Script(lists=[listed(2), listed(3, node("b", 3))], watches=watches), metrics=metrics)
    value = metrics.registry.get_sample_value
    eventually(lambda: value("reflector_lists_total", {"name": "nodes"}) == 2)
    eventually(lambda: value("reflector_watches_total", {"name": "nodes"}) == 2)
    assert value("reflector_failures_total", {"name": "nodes"}) == 1
    assert value("reflector_cached_objects", {"name": "nodes"}) == len(informer.list()) == 1


def test_informers_of_one_resource_have_series_of_their_own(follow: Any) -> None:
    metrics = Metrics()
    for count, selector in ((1, "spec.unschedulable=true"), (2, "spec.unschedulable=false")):
        nodes = [node(name, 1) for name in "ab"[:count]]
        follow(Script(lists=[listed(2, *nodes)], watches=[]), metrics=metrics, field_selector=selector)
    value = metrics.registry.get_sample_value
    for count, selector in ((1, "spec.unschedulable=true"), (2, "spec.unschedulable=false")):
        series = {"name": f"nodes with {selector}"}
        eventually(lambda count=count, series=series: value("reflector_cached_objects", series) == count)


def test_stopping_ends_a_waiting_watch_at_once(follow: Any) -> None:
    informer, _ = follow(Script(lists=[listed(2)], watches=[]))
    assert informer.wait_synced(PATIENCE)
    assert informer.stop(timeout=PATIENCE)
    assert informer.deaf() is None


def test_an_object_made_again_under_its_old_name_is_told_as_two_objects(follow: Any, changes: list[Any]) -> None:
    before, after = node("a", 1), node("a", 7)
    before["metadata"]["uid"], after["metadata"]["uid"] = "one", "two"
    follow(Script(lists=[listed(2, before), listed(8, after)], watches=[stream(ends=False)]))
    eventually(lambda: len(changes) == 3)
    assert changes == [(None, "a@1"), ("a@1", None), (None, "a@7")]


def test_a_watch_without_bookmarks_ends_before_its_silence_would_mean_that_it_is_dead(follow: Any) -> None:
    quiet = stream(event("ADDED", node("b", 3)))
    speaking = stream(event("BOOKMARK", node("", 9)))
    _, server = follow(Script(lists=[listed(2)], watches=[quiet, speaking]), silence=50.0, watch_timeout=600.0)
    eventually(lambda: len(server.requests) >= 4)
    seconds = [int(request.path.split("timeoutSeconds=")[1].split("&")[0]) for request in server.requests[1:4]]
    assert seconds[0] <= 40
    assert seconds[1] <= 40
    assert 300 <= seconds[2] <= 600
