"""What a person is told while something takes long: one live line per running step on a terminal, dated lines in a log.

    progress = Progress.to(sys.stderr)
    progress("starting the control plane")                     # one line
    with progress.step("building etcd", part="Go programs", name="etcd") as step:
        step.at(12, of=340, unit="packages")                   # how far
    progress.reused("Go programs", "helm")
    progress("\\n".join(progress.summary()))                    # what was built and what was there already

Steps may run side by side, in several threads. A log (not a terminal) hears of the beginning and the end
of each, and every 15 s how far it is.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

_LOG_EVERY = 15.0
# An estimate from less than this says more about the beginning than about the rest.
_ESTIMATE_FROM = 0.05
_GIB = 1 << 30


@dataclass(slots=True, eq=False)
class Step:
    """Something that runs: ``done`` of ``total`` (0: unknown) ``unit``; ``detail`` is what it is at right now.

    ``even``: units take about the same time each, so that the rest can be estimated.
    """

    what: str
    begin: float
    clock: Callable[[], float]
    done: int = 0
    total: int = 0
    unit: str = ""
    detail: str = ""
    even: bool = True

    def at(self, done: int, *, of: int = 0, unit: str = "", detail: str = "", even: bool | None = None) -> None:
        """How far it is; ``unit`` is a plural such as packages, layers, bytes."""
        self.done, self.total, self.unit, self.detail = done, of or self.total, unit or self.unit, detail
        self.even = self.even if even is None else even

    @property
    def elapsed(self) -> float:
        """Seconds since its beginning."""
        return self.clock() - self.begin

    def line(self) -> str:
        """As people read it: what, how far, since when, and for how much longer once that can be told."""
        parts = [self.what]
        if self.total:
            parts.append(f"{_amount(self.done, self.unit)} of {_amount(self.total, self.unit)} {self.unit}".strip())
        if self.detail:
            parts.append(self.detail)
        elapsed = self.elapsed
        times = duration(elapsed)
        if self.even and self.total and self.done >= max(1, self.total * _ESTIMATE_FROM) and elapsed >= 2:
            times += f", about {duration(elapsed * max(self.total - self.done, 0) / self.done)} more"
        return " · ".join([*parts, times])


@dataclass(slots=True, eq=False)
class Progress:
    """Steps and lines, told to ``stream`` (None: to nobody). Called with a line, it tells that line."""

    stream: TextIO | None = None
    clock: Callable[[], float] = time.monotonic
    log_every: float = _LOG_EVERY
    _begin: float = 0.0
    _running: list[Step] = field(default_factory=list)
    _outcomes: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _shown: _Shown | None = None

    @classmethod
    def to(cls, stream: TextIO) -> Progress:
        """Progress that counts its seconds from here on."""
        progress = cls(stream)
        progress._begin = progress.clock()
        return progress

    def __call__(self, line: str) -> None:
        """Tells one line."""
        if self.stream is None:
            return
        text = f"[{self.clock() - self._begin:5.1f} s] {line}"
        # Not under the lock: the terminal has one of its own, which its refreshing holds while it asks for `_lines`.
        shown = self._shown
        if shown is None or not shown.print(text):
            self.stream.write(f"{text}\n")
            self.stream.flush()

    @contextmanager
    def step(self, what: str, *, part: str = "", name: str = "", total: int = 0, unit: str = "") -> Iterator[Step]:
        """Tells about ``what`` while the block runs. With ``part`` and ``name`` its success is in the summary."""
        step = Step(what, self.clock(), self.clock, total=total, unit=unit)
        finished = False
        try:
            self._enter(step)
            yield step
            finished = True
        finally:
            self._leave(step)
            if finished:
                took = duration(step.elapsed)
                self(f"{what}: {took}")
                if part:
                    self._note(part, name or what, took)

    def reused(self, part: str, name: str) -> None:
        """Notes for the summary that ``name`` was there already, unless it was built under this progress."""
        with self._lock:
            known = self._outcomes.get(part, {})
        if name not in known:
            self._note(part, name, "")

    def summary(self) -> list[str]:
        """One line per part: what was built, with its time, and what was there already."""
        with self._lock:
            outcomes = {part: dict(names) for part, names in self._outcomes.items()}
        lines = []
        for part, names in outcomes.items():
            built = [f"{name} ({took})" for name, took in names.items() if took]
            reused = [name for name, took in names.items() if not took]
            said = [f"built {', '.join(built)}"] if built else []
            said += [f"reused {', '.join(reused)}"] if reused else []
            lines.append(f"{part}: {'; '.join(said)}")
        return lines

    def _note(self, part: str, name: str, took: str) -> None:
        if self.stream is None:
            return
        with self._lock:
            self._outcomes.setdefault(part, {})[name] = took

    def _enter(self, step: Step) -> None:
        terminal = self.stream is not None and _can_redraw(self.stream)
        if not terminal:
            self(step.what)  # before the log's thread can tell how far it is
        with self._lock:
            self._running.append(step)
            if self.stream is not None and self._shown is None:
                self._shown = _Terminal(self.stream, self._lines) if terminal else _Log(self, self.log_every)

    def _leave(self, step: Step) -> None:
        with self._lock:
            if step in self._running:
                self._running.remove(step)
            if not self._running and self._shown is not None:
                self._shown.close()
                self._shown = None

    def _lines(self) -> list[str]:
        return [step.line() for step in tuple(self._running)]


QUIET = Progress()
"""Tells nobody."""


class _Shown:
    """How running steps are shown until `close`."""

    def print(self, text: str) -> bool:
        """Tells a line beside the steps; False if the caller is to print it."""
        return False

    def close(self) -> None:
        """Shows them no longer."""


class _Terminal(_Shown):
    def __init__(self, stream: TextIO, lines: Callable[[], list[str]]) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def render() -> Text:
            shown = [Text(line) for line in lines()]
            for line in shown:
                # Some terminals wrap a line that fills the last column.
                line.truncate(self._console.width - 1, overflow="ellipsis")
            return Text("\n").join(shown)

        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=False)
        self._live = Live(
            get_renderable=render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def print(self, text: str) -> bool:
        self._console.print(text, soft_wrap=True)
        return True

    def close(self) -> None:
        self._live.stop()


class _Log(_Shown):
    def __init__(self, progress: Progress, every: float) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._repeat, args=(progress, every), name="progress", daemon=True)
        self._thread.start()

    def _repeat(self, progress: Progress, every: float) -> None:
        while not self._stop.wait(every):
            for line in progress._lines():
                progress(line)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


def _can_redraw(stream: TextIO) -> bool:
    """Whether lines can be redrawn there. Who only builds programs, before anything is installed, may lack rich."""
    able = stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return able and importlib.util.find_spec("rich") is not None


def duration(seconds: float) -> str:
    """``7 s``, ``1 min 05 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _amount(number: int, unit: str) -> str:
    return f"{number / _GIB:.1f}" if unit == "GiB" else str(number)
