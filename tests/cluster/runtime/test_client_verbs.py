from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

import pytest
from tests.cluster.runtime.objects import CONFIG_MAP, CRD, POD, config_map, widget_definition
from tests.eventually import PATIENCE, eventually

from kaito_hooks.runtime import (
    AlreadyExists,
    BadRequest,
    Client,
    Conflict,
    Invalid,
    NotFound,
    Obj,
    Resource,
    TooManyRequests,
)


@pytest.fixture(scope="module")
def group() -> str:
    return f"{secrets.token_hex(4)}.example.com"


@pytest.fixture
def widgets(client: Client, group: str) -> Iterator[Resource]:
    """A custom resource with a status subresource, served."""
    resource = Resource(group=group, version="v1", plural="widgets", kind="Widget", namespaced=True)
    client.create(CRD, widget_definition(group))
    eventually(lambda: client.served(resource))
    yield resource
    client.delete(CRD, f"widgets.{group}")
    eventually(lambda: not client.served(resource))


def test_create_get_list_delete(client: Client, namespace: str) -> None:
    made = client.create(CONFIG_MAP, config_map(namespace, "a", x="1"))
    assert client.get(CONFIG_MAP, "a", namespace=namespace) == made
    found = client.list(CONFIG_MAP, namespace=namespace, field_selector="metadata.name=a")
    assert [obj["data"] for obj in found.items] == [{"x": "1"}]
    assert (found.items[0]["apiVersion"], found.items[0]["kind"]) == ("v1", "ConfigMap")
    assert client.delete(CONFIG_MAP, "a", namespace=namespace) is None
    with pytest.raises(NotFound, match='configmaps "a" not found'):
        client.get(CONFIG_MAP, "a", namespace=namespace)


def test_a_taken_name_an_old_version_and_a_wrong_value_are_three_errors(client: Client, namespace: str) -> None:
    made = client.create(CONFIG_MAP, config_map(namespace, "a", x="1"))
    with pytest.raises(AlreadyExists):
        client.create(CONFIG_MAP, config_map(namespace, "a"))
    client.update(CONFIG_MAP, {**made, "data": {"x": "2"}})
    with pytest.raises(Conflict):
        client.update(CONFIG_MAP, {**made, "data": {"x": "3"}})
    with pytest.raises(Invalid) as caught:
        client.create(CONFIG_MAP, config_map(namespace, "Not A Name"))
    assert caught.value.details is not None
    assert caught.value.details["causes"][0]["field"] == "metadata.name"
    with pytest.raises(BadRequest):
        client.create(CONFIG_MAP, {**config_map(namespace, "b"), "data": 7})


def test_server_side_apply_owns_its_fields_and_no_others(client: Client, namespace: str) -> None:
    client.apply(CONFIG_MAP, config_map(namespace, "a", mine="1"), field_manager="me")
    client.apply(CONFIG_MAP, config_map(namespace, "a", theirs="1"), field_manager="them")
    changed = client.apply(CONFIG_MAP, config_map(namespace, "a", other="2"), field_manager="me")
    assert changed["data"] == {"other": "2", "theirs": "1"}
    with pytest.raises(Conflict) as caught:
        client.apply(CONFIG_MAP, config_map(namespace, "a", theirs="3"), field_manager="me", force=False)
    assert "them" in caught.value.message
    forced = client.apply(CONFIG_MAP, config_map(namespace, "a", theirs="3"), field_manager="me")
    assert forced["data"] == {"theirs": "3"}
    again = client.apply(CONFIG_MAP, {**forced, "data": {"theirs": "4"}}, field_manager="me")
    assert again["data"]["theirs"] == "4"


def test_apply_with_a_uid_never_recreates_an_object(client: Client, namespace: str) -> None:
    made = client.create(CONFIG_MAP, config_map(namespace, "a"))
    client.delete(CONFIG_MAP, "a", namespace=namespace)
    wanted = config_map(namespace, "a", x="1")
    wanted["metadata"]["uid"] = made["metadata"]["uid"]
    with pytest.raises(Conflict):
        client.apply(CONFIG_MAP, wanted, field_manager="me")


def test_the_three_kinds_of_patches(client: Client, namespace: str) -> None:
    client.create(CONFIG_MAP, config_map(namespace, "a", x="1", y="1"))
    merged = client.patch(CONFIG_MAP, "a", {"data": {"x": None, "z": "3"}}, namespace=namespace)
    assert merged["data"] == {"y": "1", "z": "3"}
    steps = [{"op": "test", "path": "/data/y", "value": "1"}, {"op": "replace", "path": "/data/y", "value": "2"}]
    assert client.patch(CONFIG_MAP, "a", steps, namespace=namespace, kind="json")["data"]["y"] == "2"
    with pytest.raises(Invalid):
        client.patch(CONFIG_MAP, "a", steps, namespace=namespace, kind="json")
    strategic = client.patch(CONFIG_MAP, "a", {"data": {"z": None}}, namespace=namespace, kind="strategic")
    assert strategic["data"] == {"y": "2"}


def test_status_is_written_apart_from_the_spec(client: Client, namespace: str, widgets: Resource) -> None:
    made = client.create(widgets, {"metadata": {"namespace": namespace, "name": "w"}, "spec": {"size": 1}})
    changed: Obj = {**made, "spec": {"size": 2}, "status": {"phase": "Ready"}}
    written = client.update(widgets, changed, subresource="status")
    assert (written["spec"], written["status"]) == ({"size": 1}, {"phase": "Ready"})
    written = client.update(widgets, {**written, "spec": {"size": 3}, "status": {}})
    assert (written["spec"], written["status"]) == ({"size": 3}, {"phase": "Ready"})
    with pytest.raises(Invalid, match="size"):
        client.update(widgets, {**written, "spec": {"size": 0}})


def test_a_delete_holds_to_its_preconditions(client: Client, namespace: str) -> None:
    made = client.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(Conflict):
        client.delete(CONFIG_MAP, "a", namespace=namespace, uid="11111111-1111-1111-1111-111111111111")
    with pytest.raises(Conflict):
        client.delete(CONFIG_MAP, "a", namespace=namespace, resource_version="1")
    assert client.delete(CONFIG_MAP, "a", namespace=namespace, uid=made["metadata"]["uid"]) is None


def test_a_delete_returns_what_finalizers_keep(client: Client, namespace: str) -> None:
    wanted = config_map(namespace, "a")
    wanted["metadata"]["finalizers"] = ["example.com/keep"]
    client.create(CONFIG_MAP, wanted)
    kept = client.delete(CONFIG_MAP, "a", namespace=namespace, propagation="Background")
    assert kept is not None
    assert kept["metadata"]["deletionTimestamp"]
    steps = [{"op": "test", "path": "/metadata/finalizers/0", "value": "example.com/keep"}]
    steps += [{"op": "remove", "path": "/metadata/finalizers/0"}]
    client.patch(CONFIG_MAP, "a", steps, namespace=namespace, kind="json")
    with pytest.raises(NotFound):
        client.get(CONFIG_MAP, "a", namespace=namespace)


def test_an_eviction_that_a_budget_forbids_is_too_many_requests(client: Client, namespace: str) -> None:
    budgets = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", True)
    labels = {"app": "a"}
    selector = {"matchLabels": labels}
    client.create(
        budgets,
        {"metadata": {"name": "b", "namespace": namespace}, "spec": {"minAvailable": 1, "selector": selector}},
    )
    pod = {
        "metadata": {"name": "p", "namespace": namespace, "labels": labels},
        "spec": {"nodeName": "nowhere", "containers": [{"name": "c", "image": "none"}]},
    }
    made = client.create(POD, pod)
    running = {
        **made,
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    client.update(POD, running, subresource="status")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": "p", "namespace": namespace},
    }
    with pytest.raises(TooManyRequests, match="disruption budget"):
        client.create(POD, eviction, subresource="eviction", name="p")
    client.delete(POD, "p", namespace=namespace, grace_period_seconds=0)


def test_a_list_of_many_pages_is_whole(client: Client, namespace: str) -> None:
    for number in range(25):
        client.create(CONFIG_MAP, config_map(namespace, f"many-{number:02}"))
    found = client.list(CONFIG_MAP, namespace=namespace, page_size=4)
    names = [obj["metadata"]["name"] for obj in found.items if obj["metadata"]["name"].startswith("many-")]
    assert names == [f"many-{number:02}" for number in range(25)]
    assert found.resource_version


def test_a_watch_tells_what_happened_since_and_ends_at_its_timeout(client: Client, namespace: str) -> None:
    since = client.list(CONFIG_MAP, namespace=namespace).resource_version
    client.create(CONFIG_MAP, config_map(namespace, "a", x="1"))
    client.patch(CONFIG_MAP, "a", {"data": {"x": "2"}}, namespace=namespace)
    client.delete(CONFIG_MAP, "a", namespace=namespace)
    stream = client.watch(CONFIG_MAP, namespace=namespace, resource_version=since, timeout_seconds=round(PATIENCE))
    told = (event for event in stream if event.type != "BOOKMARK")
    seen = [(event.type, event.object["data"]["x"]) for event in itertools.islice(told, 3)]
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]
    stream.close()
    now = client.list(CONFIG_MAP, namespace=namespace).resource_version
    quiet = client.watch(CONFIG_MAP, namespace=namespace, resource_version=now, timeout_seconds=2)
    assert [event for event in quiet if event.type != "BOOKMARK"] == []


def test_discovery_knows_what_is_served(client: Client) -> None:
    assert client.served(CONFIG_MAP)
    assert not client.served(Resource("", "v1", "configmapz", "ConfigMap", True))
    assert not client.served(Resource("absent.example.com", "v1", "things", "Thing", True))
