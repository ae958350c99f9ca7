"""How a push goes on until the registry takes it, and what is told meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from tests.slow_clients import ask_byte_by_byte
from tests.unit.artifacts.fake_registry import UPLOADS, FakeRegistry
from tests.unit.artifacts.registry.test_writer import writer

from kaito_hooks.artifacts.errors import NotPushed
from kaito_hooks.artifacts.package import Package, pack
from kaito_hooks.artifacts.push import State, progress_served, push
from kaito_hooks.artifacts.results import Results
from kaito_hooks.artifacts.transfer.http import Transfer
from kaito_hooks.runtime import http_server
from kaito_tuning.progress import Progress, ProgressFile


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))],
)
def test_the_progress_is_told_on_the_pod_s_address(host: str) -> None:
    state = State()
    with progress_served(state, host, 0) as port:
        state.say("the registry is down")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        told = urllib3.request("GET", f"{url}/progress?x", retries=False).json()
        assert (told["phase"], told["reason"], told["message"]) == ("Pushing", "PushFailed", "the registry is down")
        assert urllib3.request("GET", f"{url}/else", retries=False).status == 404


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no address"])
def test_a_push_goes_on_where_nobody_can_ask_for_it(host: str) -> None:
    with progress_served(State(), host, 0) as port:
        assert port is None


def test_what_the_training_told_last_is_told_on_while_it_is_pushed(tmp_path: Path) -> None:
    """The trainer's own files, as it leaves them."""
    trained = ProgressFile(tmp_path / "progress.json")
    for step in (1, 2):
        trained.history.on_log(step, {"loss": 1.0 / step})
    trained.report(Progress(phase="Done", currentStep=2, totalSteps=2, epochs=1))
    trained.leave()
    state = State(Results.read(tmp_path))
    with progress_served(state, "127.0.0.1", 0) as port:
        state.say("the registry is down")
        url = f"http://127.0.0.1:{port}"
        told = urllib3.request("GET", f"{url}/progress?history=1", retries=False).json()
        assert (told["phase"], told["reason"], told["message"]) == ("Pushing", "PushFailed", "the registry is down")
        assert (told["currentStep"], told["totalSteps"]) == (2, 2)
        assert told["metrics"] == {"loss": 0.5}
        assert told["curve"] == "1 █▁ 0.5"
        assert told["history"] == {"loss": [[1, 1.0], [2, 0.5]]}
        assert "history" not in urllib3.request("GET", f"{url}/progress", retries=False).json()
        page = urllib3.request("GET", f"{url}/", retries=False)
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert b"<h1>Pushing</h1>" in page.data
        assert b"Content-Security-Policy" in page.data
        series = urllib3.request("GET", f"{url}/metrics", retries=False)
        assert series.headers["Content-Type"] == CONTENT_TYPE_LATEST
        samples = {
            s.name: s.value
            for m in text_string_to_metric_families(series.data.decode())
            for s in m.samples
            if s.labels in ({}, {"phase": "Pushing"})
        }
        assert samples["kaito_tuning_phase"] == 1.0
        assert (samples["kaito_tuning_step"], samples["kaito_tuning_loss"]) == (2.0, 0.5)


@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_there_is_no_page_where_none_was_left(path: str) -> None:
    with progress_served(State(), "127.0.0.1", 0) as port:
        assert urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False).status == 404


@pytest.mark.parametrize("path", ["/progress", "/healthz", "/nothing"])
def test_head_is_answered_as_get_without_the_body(path: str) -> None:
    with progress_served(State(), "127.0.0.1", 0) as port:
        answers = [
            urllib3.request(method, f"http://127.0.0.1:{port}{path}", retries=False) for method in ("GET", "HEAD")
        ]
        assert [(a.status, a.headers["Content-Length"]) for a in answers] == [
            (404 if path == "/nothing" else 200, str(len(answers[0].data)))
        ] * 2
        assert answers[1].data == b""


def test_who_asks_byte_by_byte_has_no_thread_of_a_push_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "LONGEST_SECONDS", 0.3)
    with progress_served(State(), "127.0.0.1", 0) as port:
        assert port is not None
        ask_byte_by_byte(port, b"GET /progress HTTP/1.1\r\nX: ")


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.at: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due, happens in [entry for entry in self.at if entry[0] <= self.now]:
            self.at.remove((due, happens))
            happens()


def packed(tmp_path: Path) -> Package:
    folder, work = tmp_path / "adapter", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return pack(folder, work=work)


def test_a_push_waits_longer_from_try_to_try_and_gives_up_at_its_deadline(
    fake: FakeRegistry, transfer: Transfer, tmp_path: Path
) -> None:
    clock, state = Clock(), State()
    fake.overrides[("POST", UPLOADS)] = (503, {}, b"")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.sleep(seconds)

    with pytest.raises(NotPushed, match=r"gave up pushing after 1.0 h: .* answered 503"):
        push(
            packed(tmp_path),
            writer=lambda: writer(fake, transfer),
            deadline=3600.0,
            state=state,
            monotonic=clock,
            sleep=sleep,
        )
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert max(waits) == 300
    assert sum(waits) == 3600
    assert "answered 503" in state.message
