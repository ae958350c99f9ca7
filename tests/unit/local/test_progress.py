import io
import os
import pty
import re
import threading
import time

import pytest
from tests.eventually import eventually

from kaito_local.machine.progress import QUIET, Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:
        return b""


def test_a_step_tells_how_far_it_is_and_for_how_much_longer():
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    with progress.step("building etcd", total=200, unit="packages") as step:
        assert step.line() == "building etcd · 0 of 200 packages · 0 s"
        clock.now += 30
        step.at(50)
        assert step.line() == "building etcd · 50 of 200 packages · 30 s, about 1 min 30 s more"
        step.at(50, detail="linking")
        assert "linking" in step.line()


def test_no_estimate_is_made_of_parts_that_differ():
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    with progress.step("building kaito-hooks") as step:
        clock.now += 30
        step.at(2, of=4, unit="layers", even=False)
        assert step.line() == "building kaito-hooks · 2 of 4 layers · 30 s"


def test_bytes_are_told_in_gib():
    progress = Progress(io.StringIO(), clock=Clock())
    with progress.step("unpacking", total=3 << 30, unit="GiB") as step:
        step.at(3 << 29)
        assert "1.5 of 3.0 GiB" in step.line()


def test_no_estimate_is_made_from_the_first_moments():
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    with progress.step("building etcd", total=1000, unit="packages") as step:
        clock.now += 30
        step.at(3)
        assert "about" not in step.line()


def test_a_log_hears_of_the_beginning_first_however_late_it_is_written():
    class Slow(io.StringIO):
        """Lets another thread write the first line, if there is one that has something to say."""

        another = threading.Event()

        def write(self, text: str) -> int:
            if threading.current_thread() is not threading.main_thread():
                self.another.set()
            elif not self.getvalue():
                self.another.wait(0.5)
            return super().write(text)

    heard = Slow()
    with Progress(heard, log_every=0.001).step("building etcd", total=200, unit="packages"):
        pass
    assert heard.getvalue().splitlines()[0].endswith("building etcd")


def test_a_log_hears_again_and_again_of_what_still_runs_and_once_of_its_end():
    heard = io.StringIO()
    progress = Progress(heard, clock=Clock(), log_every=0.01)
    with progress.step("building etcd", total=200, unit="packages") as step:
        step.at(7)
        eventually(lambda: heard.getvalue().count("building etcd · 7 of 200 packages") >= 3)
    lines = heard.getvalue().splitlines()
    assert lines[0].endswith("building etcd")
    assert lines[-1].endswith("building etcd: 0 s")
    assert "\x1b" not in heard.getvalue()


def test_a_step_that_fails_is_not_told_as_done_and_not_in_the_summary():
    heard = io.StringIO()
    progress = Progress(heard)
    with pytest.raises(OSError, match="gone"), progress.step("building etcd", part="Go programs", name="etcd"):
        raise OSError("gone")
    assert "building etcd:" not in heard.getvalue()
    assert progress.summary() == []


def test_the_summary_says_what_was_built_and_what_was_there():
    clock = Clock()
    progress = Progress(io.StringIO(), clock=clock)
    with progress.step("building etcd v3", part="Go programs", name="etcd"):
        clock.now += 61
    progress.reused("Go programs", "helm")
    progress.reused("Go programs", "etcd")
    progress.reused("images", "kaito-hooks")
    assert progress.summary() == ["Go programs: built etcd (1 min 01 s); reused helm", "images: reused kaito-hooks"]


def test_a_terminal_has_one_live_line_per_step_and_is_left_clean(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    main, side = pty.openpty()
    seen = b""
    reading = threading.Event()

    def read() -> None:
        nonlocal seen
        while not reading.is_set():
            try:
                seen += os.read(main, 4096)
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(side, "w") as terminal:
        progress = Progress(terminal, clock=Clock())
        with progress.step("building etcd", total=9, unit="packages"), progress.step("building helm"):
            eventually(lambda: b"building etcd" in seen and b"building helm" in seen)
            progress("a line between")
            eventually(lambda: b"a line between" in seen)
        eventually(lambda: b"building etcd: " in seen)
    reading.set()
    os.close(main)
    reader.join()
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen).replace(b"\r", b"")
    assert b"building etcd \xc2\xb7 0 of 9 packages" in plain
    assert seen.rstrip().endswith(b"building etcd: 0 s")
    assert seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h") > 0, "the cursor is shown again"


def test_lines_and_redrawing_never_wait_for_each_other(monkeypatch):
    """Lines are printed by one thread while the terminal redraws steps in another."""
    monkeypatch.setenv("TERM", "xterm")
    main, side = pty.openpty()
    reader = threading.Thread(target=lambda: [None for _ in iter(lambda: _read(main), b"")], daemon=True)
    reader.start()

    class Slow(Clock):
        def __call__(self) -> float:
            time.sleep(0.002)
            return super().__call__()

    with os.fdopen(side, "w") as terminal:
        progress = Progress(terminal, clock=Slow())
        printed = threading.Event()

        def work() -> None:
            with progress.step("building etcd"):
                for number in range(400):
                    progress(f"line {number}")
            printed.set()

        with progress.step("building helm"):
            progress._shown._live.refresh_per_second = 1000
            threading.Thread(target=work, daemon=True).start()
            assert printed.wait(60), "two locks wait for each other"


def test_a_terminal_that_cannot_redraw_is_told_as_a_log_is(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    main, side = pty.openpty()
    with os.fdopen(side, "w") as terminal:
        with Progress(terminal).step("building etcd"):
            pass
        assert b"building etcd\r\n" in os.read(main, 4096)
    os.close(main)


def test_quiet_tells_nobody():
    with QUIET.step("anything"):
        QUIET("a line")


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0 s"), (59.4, "59 s"), (65, "1 min 05 s"), (600, "10 min 00 s")])
def test_durations_are_read_at_a_glance(seconds, told):
    assert duration(seconds) == told
