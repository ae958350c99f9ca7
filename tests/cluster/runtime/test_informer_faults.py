from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.proxy import (
    EXPIRED,
    Answer,
    CutWatch,
    DropBefore,
    EndWatch,
    FaultProxy,
    Freeze,
    FreezeWatch,
    InjectWatch,
    OnlyBookmarks,
)
from tests.cluster.runtime.objects import CONFIG_MAP, CRD, config_map, widget_definition
from tests.eventually import PATIENCE, eventually, never

from kaito_hooks.runtime import Backoff, Client, Gone, Informer, Key, Obj, Resource
from kaito_local.cluster.controlplane import ControlPlane

WATCH = r"/configmaps\?.*watch=true"
LIST = r"/configmaps\?(?!.*watch=true)"


class Follower:
    """An informer of one namespace's ConfigMaps, and the truth to hold it against."""

    def __init__(self, direct: Client, proxied: Client, namespace: str, **settings: Any) -> None:
        self.direct = direct
        self.namespace = namespace
        self.told: list[tuple[str | None, str | None]] = []
        self.model: dict[Key, Obj] = {}
        self.informer = Informer(proxied, CONFIG_MAP, namespace=namespace, **settings)
        self.informer.subscribe(self._hear)
        self.informer.start()
        assert self.informer.wait_synced(PATIENCE)

    def _hear(self, old: Obj | None, new: Obj | None) -> None:
        """Keeps a model from nothing but what it is told: a lost or doubled event shows."""
        if new is None:
            assert old is not None
            del self.model[Key.of(old)]
        else:
            assert (Key.of(new) in self.model) == (old is not None)
            self.model[Key.of(new)] = new

    def write(self, name: str, **data: str) -> None:
        self.direct.apply(CONFIG_MAP, config_map(self.namespace, name, **data), field_manager="test")

    def remove(self, name: str) -> None:
        self.direct.delete(CONFIG_MAP, name, namespace=self.namespace)

    def agrees(self) -> bool:
        """Whether cache and model are what the API server has."""
        truth = {Key.of(obj): version(obj) for obj in self.direct.list(CONFIG_MAP, namespace=self.namespace).items}
        cached = {Key.of(obj): version(obj) for obj in self.informer.list()}
        return cached == truth == {key: version(obj) for key, obj in self.model.items()}

    def converges(self) -> None:
        eventually(self.agrees, every=0.1, what="the cache never agreed with the API server")


def version(obj: Obj) -> str:
    return str(obj["metadata"]["resourceVersion"])


@pytest.fixture
def follow(client: Client, proxied: Client, namespace: str) -> Iterator[Callable[..., Follower]]:
    followers: list[Follower] = []

    def begin(**settings: Any) -> Follower:
        settings.setdefault("backoff", Backoff(minimum=0.05, maximum=0.5))
        followers.append(Follower(client, proxied, namespace, **settings))
        return followers[-1]

    yield begin
    for follower in followers:
        assert follower.informer.deaf() is None
        assert follower.informer.stop()


def test_a_dropped_watch_costs_a_list_and_no_event(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    rule = proxy.on("GET", WATCH, CutWatch(after=2))
    follower = follow()
    for name in ("a", "b", "c"):
        follower.write(name, x="1")
    follower.remove("a")
    rule.wait()
    follower.converges()
    eventually(lambda: len(proxy.seen("GET", "/configmaps", watch=False)) == 2)


def test_a_watch_dropped_again_and_again_backs_off_and_still_converges(
    proxy: FaultProxy, follow: Callable[..., Follower]
) -> None:
    rule = proxy.on("GET", WATCH, CutWatch(after=0), times=None)
    follower = follow(backoff=Backoff(minimum=0.1, maximum=1.0))
    for number in range(20):
        follower.write(f"a{number % 5}", x=str(number))
    eventually(lambda: len(proxy.seen("GET", "/configmaps", watch=True)) >= 8)
    opened = [seen.at for seen in proxy.seen("GET", "/configmaps", watch=True)]
    # 0.1 s, 0.2 s, 0.4 s, 0.8 s, then 1 s at most; jitter takes up to half of it. A watch that lasted begins anew.
    failures = 0
    for pause in (later - earlier for earlier, later in itertools.pairwise(opened)):
        assert pause >= min(0.1 * 2**failures, 1.0) / 2, opened
        failures = 0 if pause >= 5.0 else failures + 1
    follower.converges()
    rule.stop()
    follower.write("last", x="1")
    follower.converges()


def test_all_connections_cut_at_once_is_survived(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    follower = follow()
    for number in range(5):
        proxy.cut()
        follower.write(f"a{number}", x="1")
        follower.converges()


def test_an_orderly_end_costs_no_list(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    rule = proxy.on("GET", WATCH, EndWatch(after=1), times=3)
    follower = follow()
    for number in range(6):
        follower.write(f"a{number}", x="1")
        follower.converges()
    assert rule.hits == 3
    assert len(proxy.seen("GET", "/configmaps", watch=False)) == 1


def test_a_watch_of_real_timeouts_never_lists_again(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    follower = follow(watch_timeout=2.0)
    for number in range(8):
        follower.write(f"a{number}", x="1")
        time.sleep(0.5)
    follower.converges()
    eventually(lambda: len(proxy.seen("GET", "/configmaps", watch=True)) >= 3)
    assert len(proxy.seen("GET", "/configmaps", watch=False)) == 1


@pytest.mark.parametrize(
    "fault",
    [InjectWatch(EXPIRED, after=1), Answer(410, reason="Expired")],
    ids=["within the watch", "instead of the watch"],
)
def test_410_leads_to_a_list(proxy: FaultProxy, follow: Callable[..., Follower], fault: Any) -> None:
    rule = proxy.on("GET", WATCH, fault)
    follower = follow()
    follower.write("a", x="1")
    rule.wait()
    follower.write("b", x="1")
    follower.remove("a")
    follower.converges()
    eventually(lambda: len(proxy.seen("GET", "/configmaps", watch=False)) == 2)


def test_a_silent_half_open_connection_is_noticed(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    rule = proxy.on("GET", WATCH, FreezeWatch(after=0))
    follower = follow(silence=2.0)
    rule.wait()
    follower.write("a", x="1")
    # Nothing but a second list can tell of it.
    follower.converges()
    assert len(proxy.seen("GET", "/configmaps", watch=False)) >= 2


def test_a_network_that_swallows_everything_for_a_while_is_survived(
    proxy: FaultProxy, namespace: str, client: Client
) -> None:
    impatient = Client.load(kubeconfig=str(proxy.kubeconfig), timeout=1.0)
    follower = Follower(client, impatient, namespace, silence=1.0, backoff=Backoff(minimum=0.05, maximum=0.5))
    proxy.freeze()
    follower.write("a", x="1")
    never(lambda: follower.informer.get(Key(namespace, "a")), within=4)
    assert follower.informer.deaf() is None
    proxy.thaw()
    follower.converges()
    assert follower.informer.stop()


def test_a_watch_of_bookmarks_only_is_idle_and_not_deaf(proxy: FaultProxy, follow: Callable[..., Follower]) -> None:
    rule = proxy.on("GET", WATCH, OnlyBookmarks(), times=None)
    follower = follow(watch_timeout=6.0, silence=30.0)
    eventually(lambda: rule.hits >= 3)
    assert len(proxy.seen("GET", "/configmaps", watch=False)) == 1
    assert follower.informer.deaf() is None
    assert follower.informer.out_of_touch() is None


def test_bookmarks_carry_a_quiet_watch_over_the_end_of_the_servers_memory(
    proxy: FaultProxy, follow: Callable[..., Follower], client: Client
) -> None:
    """Other namespaces move on; the bookmarks before each orderly end keep this one's resourceVersion fresh."""
    follower = follow(watch_timeout=6.0)
    eventually(lambda: proxy.seen("GET", "/configmaps", watch=True))
    first = proxy.seen("GET", "/configmaps", watch=True)[0].query["resourceVersion"]
    for number in range(10):
        client.apply(CONFIG_MAP, config_map("default", "elsewhere", x=str(number)), field_manager="test")
    eventually(lambda: int(proxy.seen("GET", "/configmaps", watch=True)[-1].query["resourceVersion"]) > int(first))
    assert len(proxy.seen("GET", "/configmaps", watch=False)) == 1
    follower.converges()


@pytest.mark.parametrize(
    "fault",
    [DropBefore(), Answer(500), Answer(503, headers={"Retry-After": "1"}), Answer(429, headers={"Retry-After": "1"})],
    ids=["dropped", "500", "503", "429"],
)
def test_a_list_that_fails_is_tried_again(proxy: FaultProxy, follow: Callable[..., Follower], fault: Any) -> None:
    proxy.on("GET", LIST, fault, times=3)
    began = time.monotonic()
    follower = follow()
    if isinstance(fault, Answer) and fault.headers:
        assert time.monotonic() - began >= 3
    follower.write("a", x="1")
    follower.converges()


def test_a_list_that_is_never_answered_is_given_up_and_tried_again(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    proxy.on("GET", LIST, Freeze())
    impatient = Client.load(kubeconfig=str(proxy.kubeconfig), timeout=1.0)
    follower = Follower(client, impatient, namespace)
    follower.write("a", x="1")
    follower.converges()
    assert follower.informer.stop()


def test_an_informer_that_starts_before_the_api_server_syncs_when_it_comes(
    proxy: FaultProxy, client: Client, namespace: str
) -> None:
    proxy.refuse()
    informer = Informer(Client.load(kubeconfig=str(proxy.kubeconfig)), CONFIG_MAP, namespace=namespace)
    informer.start()
    never(lambda: informer.synced, within=1.5)
    assert informer.deaf() is None
    proxy.accept()
    assert informer.wait_synced(PATIENCE)
    assert informer.stop()


def test_through_random_faults_the_cache_converges_and_no_event_is_lost_or_doubled(
    proxy: FaultProxy, follow: Callable[..., Follower]
) -> None:
    proxy.on("GET", WATCH, CutWatch(after=7), times=None)
    proxy.on("GET", LIST, DropBefore(), skip=2, times=2)
    follower = follow(page_size=3)
    for number in range(120):
        name = f"a{number * 7 % 11}"
        follower.write(name, x=str(number))
        if number % 4 == 3:
            follower.remove(name)
        if number % 40 == 20:
            proxy.cut()
    follower.converges()


def test_an_optional_resource_comes_and_goes(client: Client, namespace: str) -> None:
    group = f"{secrets.token_hex(4)}.example.com"
    widgets = Resource(group=group, version="v1", plural="widgets", kind="Widget", namespaced=True)
    often = Backoff(minimum=0.1, maximum=0.3)
    informer = Informer(client, widgets, optional=True, backoff=often, unserved_backoff=often)
    told: list[tuple[bool, bool]] = []
    informer.subscribe(lambda old, new: told.append((old is not None, new is not None)))
    informer.start()
    assert informer.wait_synced(PATIENCE)
    assert not informer.served
    client.create(CRD, widget_definition(group))
    eventually(lambda: client.served(widgets))
    client.create(widgets, {"metadata": {"namespace": namespace, "name": "w"}, "spec": {"size": 1}})
    eventually(lambda: informer.served and len(informer.list()) == 1)
    client.delete(CRD, f"widgets.{group}")
    eventually(lambda: not informer.served)
    assert informer.list() == []
    assert informer.synced
    assert told[0] == (False, True)
    assert told[-1] == (True, False)
    assert informer.stop()


# Its length alone makes it no other kind of fault.
@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.soak)])
def test_an_api_server_that_is_away_for_seconds(fresh_control_plane: ControlPlane, seconds: int) -> None:
    direct = Client.load(kubeconfig=str(fresh_control_plane.kubeconfig))
    follower = Follower(direct, Client.load(kubeconfig=str(fresh_control_plane.kubeconfig)), "default")
    follower.write("before", x="1")
    follower.write("changed", x="1")
    follower.converges()
    since = direct.list(CONFIG_MAP, namespace="default").resource_version
    follower.write("changed", x="1.5")
    fresh_control_plane.stop_api_server()
    never(lambda: follower.informer.deaf(), within=seconds, every=0.5)
    assert len(follower.informer.list()) >= 2
    fresh_control_plane.start_api_server()
    follower.write("changed", x="2")
    follower.remove("before")
    follower.write("after", x="1")
    follower.converges()
    assert follower.informer.stop()
    with pytest.raises(Gone):
        list(direct.watch(CONFIG_MAP, namespace="default", resource_version=since, timeout_seconds=2))


@pytest.mark.parametrize("total", [600, pytest.param(5000, marks=pytest.mark.soak)])
def test_more_objects_than_a_page_holds(client: Client, namespace: str, proxy: FaultProxy, total: int) -> None:
    numbers = iter(range(total))
    lock = threading.Lock()

    def create() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            wanted = config_map(namespace, f"many-{number}", x="1")
            wanted["metadata"]["labels"] = {"many": str(number % 10)}
            client.create(CONFIG_MAP, wanted)

    makers = [threading.Thread(target=create) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(240)
    informer = Informer(
        Client.load(kubeconfig=str(proxy.kubeconfig)),
        CONFIG_MAP,
        namespace=namespace,
        label_selector="many",
        indexes={"many": lambda obj: [obj["metadata"]["labels"]["many"]]},
        backoff=Backoff(minimum=0.05, maximum=0.5),
    )
    told: list[str] = []
    informer.subscribe(lambda old, new: told.append(Key.of(new or old or {}).name))
    informer.start()
    assert informer.wait_synced(PATIENCE)
    assert len(informer.list()) == total
    assert len(informer.by_index("many", "3")) == total // 10
    assert len(told) == total
    told.clear()
    client.patch(CONFIG_MAP, "many-77", {"data": {"x": "2"}}, namespace=namespace)
    eventually(lambda: told == ["many-77"])
    proxy.cut()
    client.patch(CONFIG_MAP, "many-78", {"data": {"x": "2"}}, namespace=namespace)
    eventually(lambda: told == ["many-77", "many-78"])
    assert informer.stop()


def test_two_informers_of_one_process_do_not_disturb_each_other(
    client: Client, proxy: FaultProxy, follow: Callable[..., Follower], namespace: str, tmp_path: Path
) -> None:
    proxy.on("GET", WATCH, CutWatch(after=1), times=5)
    first, second = follow(), follow()
    for number in range(10):
        first.write(f"a{number}", x="1")
    first.converges()
    second.converges()
