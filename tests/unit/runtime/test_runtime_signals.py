"""Signals that come at any moment: between two bytecodes of a thread that waits, and of a handler that runs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

MANAGER = """
import signal, sys
from kaito_hooks.runtime import run_until_signal

class Manager:
    def run(self, stop):
        {moment}
        return 0 if stop.wait(60) else 1

sys.exit(run_until_signal(Manager()))
"""


def ended(moment: str) -> int:
    """The exit code of a process to whose manager this happens."""
    script = MANAGER.format(moment=moment)
    return subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order(number: signal.Signals) -> None:
    assert ended(f"signal.raise_signal({number.value})") == 0


def test_a_signal_that_interrupts_the_wait_for_it_is_heard() -> None:
    """Event.wait and Event.set hold this lock for some bytecodes."""
    assert ended("with stop._cond: signal.raise_signal(signal.SIGTERM)") == 0


def test_a_second_signal_ends_the_process_at_once() -> None:
    assert ended("signal.raise_signal(signal.SIGINT); signal.raise_signal(signal.SIGINT)") == 128 + signal.SIGINT
