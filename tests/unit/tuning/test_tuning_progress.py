"""What a tuning Pod says of itself: the state, the curves, the pace, the series, the page."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import itertools
import json
import logging
import math
import re
import socket
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tests.eventually import PATIENCE, eventually

from kaito_tuning.progress import Progress, ProgressFile, curve, page, termination_message
from kaito_tuning.progress.file import HISTORY, PAGE, SERIES, TERMINATION_LIMIT
from kaito_tuning.progress.history import POINTS, History, Series
from kaito_tuning.progress.metrics import ProgressCollector
from kaito_tuning.progress.server import MOST_CONNECTIONS, ProgressServer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def trained(history: History, *, steps: int = 40) -> History:
    """A run of 2 log lines an evaluation whose loss falls from 2."""
    for step in range(1, steps + 1):
        history.on_log(step, {"loss": 2.0 / step, "grad_norm": 1.0, "learning_rate": 1e-4, "num_tokens": 100.0 * step})
        if step % 2 == 0:
            history.on_log(step, {"eval_loss": 2.5 / step, "eval_runtime": 0.1})
    return history


class TestCurves:
    @pytest.mark.parametrize("count", [1, 239, 240, 241, 100_000])
    def test_a_run_of_any_length_stays_small_and_evenly_covered(self, count: int) -> None:
        series = Series(averaged=True)
        for step in range(1, count + 1):
            series.add(step, float(step))
        points = series.points()
        assert len(points) <= POINTS
        assert points[-1][0] == count
        gaps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
        assert not gaps or max(gaps) <= max(2, 2 * math.ceil(count / POINTS) * 2)

    def test_merged_points_hold_the_mean_of_what_they_stand_for(self) -> None:
        series = Series(averaged=True, limit=4)
        for step, value in enumerate([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 2.0], start=1):
            series.add(step, value)
        assert series.points() == [(2, 2.0), (4, 6.0), (6, 10.0), (7, 2.0)]

    def test_an_evaluation_that_never_was_is_not_shown(self) -> None:
        history = History()
        given = {step: 1.0 / step for step in range(1, 1000)}
        for step, loss in given.items():
            history.on_log(step, {"eval_loss": loss})
        assert all(given[step] == loss for step, loss in history.curves()["evalLoss"])

    @pytest.mark.parametrize("length", [10, 3_000])
    def test_steps_that_are_repeated_after_a_crash_are_shown_once(self, length: int) -> None:
        history = History()
        for step in range(1, length + 1):
            history.on_log(step, {"loss": 1.0})
        for step in range(length // 2, length + 1):
            history.on_log(step, {"loss": 2.0})
        points = history.curves()["loss"]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps))
        assert points[-1] == (length, 2.0)
        assert {value for step, value in points if step >= length // 2} == {2.0}

    @pytest.mark.parametrize("broken", [math.nan, math.inf, None, "n/a", True])
    def test_what_is_no_number_is_left_out(self, broken: object) -> None:
        history = trained(History(), steps=3)
        history.on_log(4, {"loss": broken, "eval_loss": broken})
        assert history.curves()["loss"][-1][0] == 3
        json.dumps(history.curves(), allow_nan=False)
        json.dumps(history.metrics(), allow_nan=False)

    def test_the_newest_values_are_told_by_their_names(self) -> None:
        history = History()
        history.on_log(0, {"base_eval_loss": 3.0})
        history.on_log(5, {"loss": 1.0, "grad_norm": 0.5, "learning_rate": 1e-4, "mean_token_accuracy": 0.75})
        history.on_log(5, {"eval_loss": math.log(4.0), "num_tokens": 640, "peak_gpu_memory_bytes": 2.0**31})
        assert history.metrics() == {
            "baseEvalLoss": 3.0,
            "loss": 1.0,
            "gradNorm": 0.5,
            "learningRate": 1e-4,
            "meanTokenAccuracy": 0.75,
            "evalLoss": math.log(4.0),
            "perplexity": pytest.approx(4.0),
            "tokens": 640.0,
            "peakGPUMemoryBytes": 2.0**31,
        }

    def test_tokens_a_second_count_what_this_process_trained(self) -> None:
        clock = Clock()
        history = History(monotonic=clock)
        history.on_log(10, {"num_tokens": 50_000}, replayed=True)
        assert "tokensPerSecond" not in history.metrics()
        for step in range(11, 14):
            clock.now += 2
            history.on_log(step, {"num_tokens": 50_000 + 1000 * (step - 10)})
        assert history.metrics()["tokensPerSecond"] == 500.0


class TestTimeLeft:
    def test_nothing_is_known_before_the_first_step(self) -> None:
        history = History(monotonic=Clock())
        assert history.remaining_seconds(100) is None
        history.on_step(0)
        assert history.remaining_seconds(100) is None

    def test_a_slow_first_step_is_forgotten(self) -> None:
        clock = Clock()
        history = History(monotonic=clock)
        history.on_step(0)
        clock.now += 120
        history.on_step(1)
        assert history.remaining_seconds(100) == 99 * 120
        for step in range(2, 11):
            clock.now += 3
            history.on_step(step)
        assert history.remaining_seconds(100) == 90 * 3

    def test_evaluations_count_as_often_as_they_come(self) -> None:
        """A step of 1 s and every 10 steps an evaluation of 20 s: 3 s a step."""
        clock = Clock()
        history = History(monotonic=clock)
        history.on_step(0)
        for step in range(1, 1001):
            clock.now += 21 if step % 10 == 0 else 1
            history.on_step(step)
        left = history.remaining_seconds(2000)
        assert left is not None
        assert left == pytest.approx(1000 * 3, rel=0.05)

    def test_a_run_that_goes_on_counts_its_own_steps(self) -> None:
        clock = Clock()
        history = History(monotonic=clock)
        history.on_step(500)
        for step in (501, 502, 503):
            clock.now += 2
            history.on_step(step)
        assert history.remaining_seconds(510) == 14
        assert history.remaining_seconds(503) == 0
        assert history.remaining_seconds(400) == 0

    def test_a_training_that_begins_anew_forgets_the_first_try(self) -> None:
        clock = Clock()
        history = History(monotonic=clock)
        for step in range(3):
            history.on_step(step)
            clock.now += 50
        history.on_step(0)
        clock.now += 1
        history.on_step(1)
        assert history.remaining_seconds(11) == 10


@pytest.fixture
def progress(tmp_path: Path) -> ProgressFile:
    return ProgressFile(tmp_path / "progress.json", now=lambda: 1_700_000_000.0)


class TestState:
    def test_what_is_reported_is_in_the_file_with_what_was_measured(
        self, tmp_path: Path, progress: ProgressFile
    ) -> None:
        trained(progress.history)
        progress.history.on_checkpoint(30, 1.234)
        progress.report(Progress(phase="Training", currentStep=40, totalSteps=80))
        told = json.loads((tmp_path / "progress.json").read_text())
        assert told == progress.document()
        assert told["phase"] == "Training"
        assert told["metrics"]["loss"] == 2.0 / 40
        assert (told["checkpointStep"], told["checkpointSeconds"]) == (30, 1.23)
        assert told["lastUpdatedTime"] == "2023-11-14T22:13:20Z"
        assert (tmp_path / "progress.json").stat().st_mode & 0o777 == 0o644
        assert "history" not in told
        assert set(progress.document(history=True)["history"]) == {"loss", "evalLoss", "gradNorm", "learningRate"}

    def test_the_state_stays_small_however_long_the_run(self, progress: ProgressFile) -> None:
        for step in range(1, 50_000):
            progress.history.on_log(step, {"loss": 1 / step, "eval_loss": 1 / step, "learning_rate": 1e-4})
        progress.report(Progress(phase="Training", currentStep=50_000, totalSteps=80_000))
        assert len(json.dumps(progress.document())) < 1500
        assert len(json.dumps(progress.document(history=True))) < 40_000
        assert len(progress.page()) < 40_000

    @pytest.mark.skipif(sys.platform != "linux", reason="a full disk is /dev/full")
    def test_a_disk_that_is_full_costs_the_file_and_not_the_job(self, tmp_path: Path) -> None:
        """A file system of one megabyte, filled to its end."""
        script = (
            "import pathlib\n"
            "from kaito_tuning.progress import Progress, ProgressFile\n"
            "folder = pathlib.Path('/mnt')\n"
            "progress = ProgressFile(folder / 'progress.json')\n"
            "progress.report(Progress(phase='Training', currentStep=1))\n"
            "try:\n"
            "    with open(folder / 'filler', 'wb', buffering=0) as filler:\n"
            "        while True: filler.write(bytes(4096))\n"
            "except OSError: pass\n"
            "progress.report(Progress(phase='Failed', reason='DiskFull', message='x' * 9000))\n"
            "progress.leave()\n"
            "print(progress.current.phase, sorted(p.name for p in folder.iterdir()))\n"
        )
        mounted = 'mount -t tmpfs -o size=64k tmpfs /mnt && exec "$0" -c "$1"'
        done = subprocess.run(
            ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted, sys.executable, script],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no file system of one's own here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "Failed ['filler', 'progress.json']"
        assert done.stderr.count("cannot be written") == 1, "it is said once"

    def test_a_folder_that_is_gone_costs_the_file_and_not_the_job(self, tmp_path: Path) -> None:
        progress = ProgressFile(tmp_path / "none" / "progress.json")
        progress.update(phase="Failed", reason="DiskFull")
        progress.leave()
        assert progress.current.reason == "DiskFull"

    def test_restarts_are_counted_on_the_volume(self, tmp_path: Path) -> None:
        for restarts in range(3):
            progress = ProgressFile(tmp_path / "progress.json")
            assert progress.current.restarts == restarts
            progress.report(Progress(phase="Checking"))
            assert progress.current.restarts == restarts
        (tmp_path / "progress.json").write_text("[]")
        assert ProgressFile(tmp_path / "progress.json").current.restarts == 0

    def test_a_number_that_json_has_no_word_for_is_left_out(self, progress: ProgressFile) -> None:
        progress.report(Progress(phase="Training", metrics={"loss": math.nan, "evalLoss": 1.0}))
        json.dumps(progress.document(history=True), allow_nan=False)
        assert progress.document()["metrics"] == {"evalLoss": 1.0}

    def test_what_an_earlier_start_left_is_told_until_there_is_something_newer(self, progress: ProgressFile) -> None:
        progress.tell("the start before this one was killed")
        progress.report(Progress(phase="LoadingModel", message="preparing the rows"))
        assert progress.document()["message"] == "preparing the rows"
        progress.report(Progress(phase="Training", currentStep=3))
        assert progress.document()["message"] == "the start before this one was killed"
        progress.report(Progress(phase="Done"))
        assert progress.document()["message"] == ""

    @pytest.mark.parametrize("phase", ["Training", "Failed"])
    def test_a_termination_message_fits_and_is_readable(self, progress: ProgressFile, phase: str) -> None:
        trained(progress.history, steps=5_000)
        progress.update(phase=phase, reason="DiskFull", message="ä" * 5000 if phase == "Failed" else "")
        text = termination_message(progress.current)
        assert len(text.encode()) <= TERMINATION_LIMIT
        if phase == "Training":
            assert json.loads(text)["metrics"]["loss"] == 2.0 / 5000

    def test_the_step_that_goes_on_in_the_pod_finds_page_and_curves(
        self, tmp_path: Path, progress: ProgressFile
    ) -> None:
        trained(progress.history)
        progress.update(phase="Done")
        progress.leave()
        assert json.loads((tmp_path / HISTORY).read_text())["loss"][-1] == [40, 0.05]
        assert "<h1>Pushing</h1>" in (tmp_path / PAGE).read_text()
        series = (tmp_path / SERIES).read_text().splitlines()
        assert 'kaito_tuning_phase{phase="Pushing"} 1.0' in series
        assert "kaito_tuning_loss 0.05" in series
        assert not [line for line in series if "tokens_per_second" in line], "nothing trains any more"


class TestLine:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], ""),
            ([2.0], "2 ▁ 2"),
            ([2.0, 2.0, 2.0], "2 ▁▁▁ 2"),
            ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], "8 █▇▆▅▄▃▂▁ 1"),
            ([2.3456, 0.41234], "2.35 █▁ 0.412"),
        ],
        ids=["none", "one", "flat", "falling", "two"],
    )
    def test_a_curve_is_a_line_of_blocks_between_its_ends(self, values: list[float], expected: str) -> None:
        assert curve.line(list(enumerate(values))) == expected

    @pytest.mark.parametrize("count", [39, 40, 41, 79, 240])
    def test_a_long_curve_fits_a_line_of_kubectl_describe(self, count: int) -> None:
        drawn = curve.line([(step, -1e-9 * step - 1) for step in range(count)])
        assert len(drawn) <= 60
        assert drawn.split()[1][0] == "█"
        assert drawn.split()[1][-1] == "▁"


SVG = "{http://www.w3.org/2000/svg}"


class TestDrawing:
    def drawn(self, progress: ProgressFile) -> ET.Element:
        found = re.search(r"<svg.*</svg>", progress.page())
        assert found
        return ET.fromstring(found[0])

    def test_the_loss_is_drawn_within_its_frame_from_left_to_right(self, progress: ProgressFile) -> None:
        trained(progress.history)
        progress.history.on_log(0, {"base_eval_loss": 4.0})
        progress.report(Progress(phase="Training", currentStep=40, totalSteps=80))
        svg = self.drawn(progress)
        frame = svg.find(f"{SVG}rect")
        assert frame is not None
        left, top, width, height = (float(frame.attrib[name]) for name in ("x", "y", "width", "height"))
        lines = {line.attrib["class"]: line.attrib["points"] for line in svg.iter(f"{SVG}polyline")}
        places = {name: [tuple(map(float, p.split(","))) for p in points.split()] for name, points in lines.items()}
        assert len(places["loss"]) == 40
        assert len(places["eval"]) == 20
        for points in places.values():
            assert all(left <= x <= left + width and top <= y <= top + height for x, y in points)
            assert points == sorted(points), "from left to right, and downwards as the loss falls"
        assert places["loss"][-1][0] == pytest.approx(left + width / 2), "half of the steps are done"
        (base,) = [line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "base"]
        assert top <= float(base.attrib["y1"]) < min(y for _, y in places["loss"])

    @pytest.mark.parametrize(
        "losses",
        [[], [1.0], [1.0, 1.0], [0.0, 0.0], [1e-9, 2e-9], [1e12, 1.0], [-3.0, -2.0], [5.0, 5.0 + 1e-13]],
        ids=str,
    )
    def test_every_curve_can_be_drawn(self, progress: ProgressFile, losses: list[float]) -> None:
        for step, loss in enumerate(losses, start=1):
            progress.history.on_log(step, {"loss": loss})
        svg = self.drawn(progress)
        numbers = [float(n) for e in svg.iter() for n in re.findall(r"-?[\d.]+", e.attrib.get("points", ""))]
        assert all(0 <= n <= 720 for n in numbers)
        assert ("no loss yet" in "".join(svg.itertext())) is (not losses)


class Links(HTMLParser):
    """Collects tags that are open at the end, and everything that a browser would ask for."""

    VOID = frozenset({"meta", "link", "br", "rect", "line", "polyline", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(text: str) -> Links:
    parsed = Links()
    parsed.feed(text)
    parsed.close()
    return parsed


class TestPage:
    def test_a_page_without_points_is_whole_and_asks_for_nothing(self, progress: ProgressFile) -> None:
        progress.report(Progress(phase="Checking"))
        parsed = read(progress.page())
        assert parsed.open == []
        assert parsed.asked == ["data:,"]
        assert "no loss yet" in parsed.texts
        assert "of 0" not in " ".join(parsed.texts)

    def test_a_page_tells_what_people_ask_for(self, progress: ProgressFile) -> None:
        trained(progress.history)
        progress.history.on_log(0, {"base_eval_loss": 3.25})
        progress.report(
            Progress(
                phase="Training",
                progressPercentage=50,
                currentStep=40,
                totalSteps=80,
                epoch=1.5,
                epochs=3,
                estimatedRemainingSeconds=4000,
                metrics={"peakGPUMemoryBytes": 5.5 * 2**30},
            )
        )
        parsed = read(progress.page())
        assert parsed.open == []
        said = parsed.texts
        for fact in ("Training", "40 of 80", "1.5 of 3", "67 min", "0.05", "0.0625", "3.25", "5.5 GiB", "4,000"):
            assert fact in said, fact

    def test_what_comes_from_elsewhere_is_shown_and_never_run(self, progress: ProgressFile) -> None:
        progress.update(phase="Failed", reason="DatasetInvalid", message='<img src=x onerror="alert(1)"> & more')
        parsed = read(progress.page())
        assert parsed.asked == ["data:,"]
        assert 'DatasetInvalid: <img src=x onerror="alert(1)"> & more' in parsed.texts

    def test_the_policy_allows_the_page_s_own_script_and_style_and_nothing_else(self, progress: ProgressFile) -> None:
        policy = dict(part.strip().split(" ", 1) for part in page.HEADERS["Content-Security-Policy"].split(";"))
        for name in ("style", "script"):
            (found,) = re.findall(rf"<{name}>(.*?)</{name}>", progress.page(), re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
            assert policy[f"{name}-src"] == f"'sha256-{digest}'"
        assert policy["default-src"] == "'none'"
        assert " style=" not in progress.page()
        assert not re.search(r" on\w+=", progress.page())


@pytest.fixture
def server(progress: ProgressFile) -> Iterator[str]:
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress.current))
    running = ProgressServer("127.0.0.1", 0, progress=progress, registry=registry)
    running.start()
    yield f"http://127.0.0.1:{running.port}"
    running.stop()


def get(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.headers["Content-Type"], answer.read()


def serving() -> list[threading.Thread]:
    """Those that answer somebody."""
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


class TestServer:
    def test_state_and_curves_are_told(self, server: str, progress: ProgressFile) -> None:
        trained(progress.history)
        progress.report(Progress(phase="Evaluating"))
        kind, body = get(f"{server}/progress")
        assert kind == "application/json"
        assert json.loads(body) == progress.document()
        assert json.loads(get(f"{server}/progress?history=1")[1])["history"]["loss"][-1] == [40, 0.05]
        assert "history" not in json.loads(get(f"{server}/progress?history=0")[1])

    def test_people_get_a_page_with_its_policy(self, server: str, progress: ProgressFile) -> None:
        with urllib.request.urlopen(f"{server}/", timeout=PATIENCE) as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.read().decode() == progress.page()

    def test_nobody_is_answered_after_the_end_over_a_connection_that_stays_open(self, progress: ProgressFile) -> None:
        running = ProgressServer("127.0.0.1", 0, progress=progress, registry=CollectorRegistry())
        running.start()
        assert running.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
        connection.auto_open = 0
        connection.connect()
        connection.request("GET", "/progress")
        assert connection.getresponse().read()
        running.stop()
        with pytest.raises((http.client.HTTPException, OSError)):
            connection.request("GET", "/progress")

    @pytest.mark.parametrize("path", ["/progress", "/", "/metrics", "/healthz"])
    def test_head_is_answered_as_get_without_the_body(self, server: str, path: str) -> None:
        _, body = get(f"{server}{path}")
        connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=20)
        connection.request("HEAD", path)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, str(len(body)), b"")

    def test_who_breaks_off_or_asks_nonsense_leaves_no_traceback_in_the_log(
        self, server: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as asking:
            asking.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.1 400 ")
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=20) as asking:
                asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset
                asking.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert get(f"{server}/healthz")
        eventually(lambda: not serving())
        assert "Traceback" not in capfd.readouterr().err
        assert not [record for record in caplog.records if record.levelno > logging.DEBUG]

    def test_however_many_connect_and_say_nothing_others_are_answered_and_threads_are_few(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        most = 0
        with contextlib.ExitStack() as idle:
            for number in range(400):
                idle.enter_context(socket.create_connection((host, int(port)), timeout=20))
                most = max(most, len(serving()))
                if number % 50 == 0:
                    assert json.loads(get(f"{server}/progress")[1])["phase"]
        assert most <= 2 * MOST_CONNECTIONS

    @pytest.mark.parametrize("slowly", [b"G", b"GET /progress HTTP/1.1\r\nX: "], ids=["the request", "a header"])
    def test_who_asks_byte_by_byte_is_not_listened_to_for_ever(
        self, server: str, slowly: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kaito_tuning.progress.server.LONGEST_SECONDS", 0.3)
        host, _, port = server.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as asking:
            asking.sendall(slowly)
            eventually(serving)

            def ended() -> bool:
                try:
                    asking.sendall(b"x")
                except OSError:
                    return True
                return not serving()

            eventually(ended, every=0.05)

    def test_what_is_not_there_is_404(self, server: str) -> None:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{server}/nothing")

    @pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no address"])
    def test_a_training_goes_on_where_nobody_can_ask_for_it(self, progress: ProgressFile, host: str) -> None:
        running = ProgressServer(host, 0, progress=progress, registry=CollectorRegistry())
        running.start()
        assert running.port is None
        running.stop()


def test_prometheus_gets_every_series_of_the_contract(progress: ProgressFile) -> None:
    history = progress.history
    for step in (1, 2):
        history.on_log(step, {"loss": 1.5, "grad_norm": 0.5, "learning_rate": 1e-4, "mean_token_accuracy": 0.75})
        history.on_log(step, {"eval_loss": 1.25, "num_tokens": 1000 * step})
    history.on_checkpoint(2, 0.5)
    progress.report(Progress(phase="Evaluating", currentStep=2, totalSteps=10, epoch=0.5))
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress.current))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert samples.pop(("kaito_tuning_tokens_per_second",)) > 0
    phases = {key[1]: samples.pop(key) for key in [key for key in samples if len(key) == 2]}
    assert [phase for phase, value in phases.items() if value == 1] == ["Evaluating"]
    assert len(phases) == 8
    expected = {
        "step": 2, "total_steps": 10, "epoch": 0.5, "loss": 1.5, "eval_loss": 1.25, "perplexity": math.exp(1.25),
        "learning_rate": 1e-4, "grad_norm": 0.5, "mean_token_accuracy": 0.75, "tokens_total": 2000,
        "checkpoint_seconds": 0.5, "restarts_total": 0,
    }  # fmt: skip
    assert samples == {(f"kaito_tuning_{name}",): value for name, value in expected.items()}


def test_a_progress_that_was_never_reported_has_no_series_without_a_value(progress: ProgressFile) -> None:
    registry = CollectorRegistry()
    registry.register(ProgressCollector(lambda: progress.current))
    text = generate_latest(registry).decode()
    assert "kaito_tuning_loss" not in text
    assert "kaito_tuning_checkpoint_seconds" not in text
    assert 'kaito_tuning_phase{phase="Checking"} 1.0' in text
