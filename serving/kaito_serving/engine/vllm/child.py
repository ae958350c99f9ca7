"""The process of vLLM: started, watched while it loads, heard until its end, and stopped with all that it started."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import httpx
import psutil

from kaito_serving.errors import EngineUnavailable

_LOG = logging.getLogger(__name__)

_KEPT_LINES = 200
_LOOK_EVERY = 0.25  # seconds
_ASK_WITHIN = 10.0  # seconds
_STOP_WITHIN = 10.0  # seconds
_LAST_WORDS_WITHIN = 1.0  # seconds; whoever asks may be an event loop
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ORIGIN = re.compile(r"^\([\w.-]+ pid=\d+\)\s*")  # "(EngineCore pid=12)" before what a process of vLLM says
_STAMP = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s*")
_LEVELS = {"WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.ERROR}  # the rest is for debugging
_REASON = re.compile(r"^([\w.]*(?:Error|Exception|Exit)): (.+)")
_SHARDS = re.compile(r"Loading safetensors checkpoint shards:\s+(\d+)%")


class Child:
    """One run of `command`. `progress` hears which part of the weights is loaded, 0 to 1."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        progress: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._progress = progress
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._failure: str | None = None
        # A session of its own: a signal to this process group is not for it, and it can be ended as a whole.
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",  # and lines end at carriage returns too, as those of progress bars do
        )
        self._reader = threading.Thread(target=self._read, name="vllm-log", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def failure(self) -> str | None:
        """Why it has ended, in its own last words, and what it left behind has, too; None while it runs."""
        code = self._process.poll()
        if code is None or self._failure is not None:
            return self._failure
        self._signal(signal.SIGKILL)  # what is left holds the GPUs, and the log open
        self._reader.join(_LAST_WORDS_WITHIN)
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._failure = f"vLLM {ended}: {_reason(list(self._lines))}"
        return self._failure

    def wait_until_ready(self, url: str, model: str) -> None:
        """Return when it has computed a token: its health is green earlier. EngineUnavailable when it ends instead."""
        with httpx.Client(base_url=url, timeout=_ASK_WITHIN, trust_env=False) as client:
            while True:
                if (failure := self.failure()) is not None:
                    raise EngineUnavailable(failure)
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass  # not listening yet
                time.sleep(_LOOK_EVERY)
            body = {"model": model, "prompt": "x", "max_tokens": 1}
            try:
                answer = client.post("/v1/completions", json=body, timeout=None)
            except httpx.HTTPError as error:
                raise EngineUnavailable(self.failure() or f"vLLM does not answer: {error}") from error
            if answer.status_code != 200:
                raise EngineUnavailable(f"vLLM computes no token: {answer.text[:500]}")

    def stop(self) -> None:
        """End it and all that it started."""
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself
            started = psutil.Process(self.pid).children(recursive=True)
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            _LOG.warning("vLLM does not end within %g seconds and is killed.", _STOP_WITHIN)
        self._signal(signal.SIGKILL)
        for each in started:  # one may have left the group
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()
        psutil.wait_procs(started, timeout=_STOP_WITHIN)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def _read(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = _ORIGIN.sub("", _COLOURS.sub("", raw.rstrip()))
            if not line:
                continue
            self._lines.append(line)
            shards = _SHARDS.search(line)
            if shards is not None:
                self._progress(int(shards[1]) / 100)
            stamp = _STAMP.match(line)
            level = _LEVELS.get(stamp[1], logging.DEBUG) if stamp is not None else logging.DEBUG
            _LOG.log(level, "vLLM: %s", _STAMP.sub("", line))


def _reason(lines: Sequence[str]) -> str:
    """The last line that names an error, and not only that another process has told one; else the last line."""
    said = [_STAMP.sub("", line).strip() for line in lines]
    errors = [line for line in said if _REASON.match(line)]
    causes = [line for line in errors if "root cause" not in line]
    return next((found[-1] for found in (causes, errors, said) if found), "it said nothing")
