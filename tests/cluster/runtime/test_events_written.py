from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.cluster.proxy import Answer, DropBefore, FaultProxy
from tests.cluster.runtime.objects import CONFIG_MAP, EVENT, config_map
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import Client, EventRecorder, LeadershipLost, Metrics, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

NAMESPACE = Resource(group="", version="v1", plural="namespaces", kind="Namespace", namespaced=False)


@pytest.fixture
def subject(client: Client, namespace: str) -> Obj:
    return client.create(CONFIG_MAP, config_map(namespace, "subject"))


def written(client: Client, namespace: str, name: str = "subject") -> list[Obj]:
    return client.list(EVENT, namespace=namespace, field_selector=f"involvedObject.name={name}").items


def test_equal_events_are_counted_on_one_object(client: Client, namespace: str, subject: Obj) -> None:
    recorder = EventRecorder(client, component="test")
    for _ in range(5):
        recorder.event(subject, "Warning", "NoCapacity", "the region has no Standard_NC24ads_A100_v4 left")
    assert recorder.flush(PATIENCE)
    (event,) = written(client, namespace)
    assert (event["count"], event["type"], event["reason"]) == (5, "Warning", "NoCapacity")
    assert event["involvedObject"]["uid"] == subject["metadata"]["uid"]
    assert event["source"] == {"component": "test"}
    assert event["firstTimestamp"] <= event["lastTimestamp"]
    recorder.close(5)


def test_kubectl_describe_shows_them(client: Client, namespace: str, subject: Obj, control_plane: ControlPlane) -> None:
    recorder = EventRecorder(client, component="test")
    recorder.event(subject, "Normal", "Bought", "one node")
    assert recorder.flush(PATIENCE)
    text = control_plane.kubectl("describe", "configmap", "subject", "-n", namespace)
    assert "Bought" in text
    assert "one node" in text


def test_many_similar_events_are_combined(client: Client, namespace: str, subject: Obj) -> None:
    recorder = EventRecorder(client, component="test")
    for number in range(20):
        recorder.event(subject, "Warning", "Failed", f"attempt {number}")
    assert recorder.flush(PATIENCE)
    events = written(client, namespace)
    assert len(events) == 11
    assert {event["count"] for event in events if "combined" in event["message"]} == {10}


def test_an_object_that_keeps_talking_is_slowed_down(client: Client, namespace: str, subject: Obj) -> None:
    metrics = Metrics()
    recorder = EventRecorder(client, component="test", metrics=metrics)
    for _ in range(200):
        recorder.event(subject, "Normal", "Again", "and again")
    assert recorder.flush(PATIENCE)
    (event,) = written(client, namespace)
    assert event["count"] <= 26
    dropped = metrics.registry.get_sample_value("kaito_events_dropped_total", {"component": "test"})
    assert dropped == 200 - event["count"]


@pytest.mark.parametrize("fault", [Answer(503), Answer(429), Answer(500), DropBefore()], ids=str)
def test_an_event_survives_a_passing_fault(
    client: Client,
    proxied: Client,
    proxy: FaultProxy,
    namespace: str,
    subject: Obj,
    fault: Answer | DropBefore,
) -> None:
    rule = proxy.on("POST", "/events", fault, times=2)
    recorder = EventRecorder(proxied, component="test")
    recorder.event(subject, "Normal", "Bought", "one node")
    eventually(lambda: len(written(client, namespace)) == 1)
    assert rule.hits == 2


def test_recording_never_waits_for_the_api_server(proxy: FaultProxy, subject: Obj) -> None:
    proxy.freeze()
    recorder = EventRecorder(Client.load(kubeconfig=str(proxy.kubeconfig), timeout=2 * PATIENCE), component="test")
    began = time.monotonic()
    for number in range(3000):
        recorder.event(subject, "Normal", "Bought", f"node {number}")
    assert time.monotonic() - began < PATIENCE


def test_what_can_never_be_written_is_dropped_without_an_error(client: Client, namespace: str, subject: Obj) -> None:
    metrics = Metrics()
    recorder = EventRecorder(client, component="test", metrics=metrics)
    nowhere = {**subject, "metadata": {**subject["metadata"], "namespace": "absent-namespace"}}
    recorder.event(nowhere, "Normal", "Bought", "one node")
    recorder.event({}, "Normal", "Bought", "an object without anything")
    recorder.event(subject, "Normal", "Bought", "x" * 5000)
    assert recorder.flush(PATIENCE)
    (event,) = written(client, namespace)
    assert len(event["message"]) == 1024


def test_a_process_that_does_not_lead_writes_no_event(client: Client, namespace: str, subject: Obj) -> None:
    def closed() -> float:
        raise LeadershipLost("somebody else leads")

    recorder = EventRecorder(client.fenced(closed), component="test")
    recorder.event(subject, "Normal", "Bought", "one node")
    assert recorder.flush(PATIENCE)
    assert written(client, namespace) == []


def test_an_event_about_a_cluster_scoped_object_is_in_the_default_namespace(
    client: Client, namespace: str, tmp_path: Path
) -> None:
    subject = client.get(NAMESPACE, namespace)
    recorder = EventRecorder(client, component="test")
    recorder.event(subject, "Normal", "Seen", "a namespace")
    assert recorder.flush(PATIENCE)
    assert len(written(client, "default", namespace)) == 1
