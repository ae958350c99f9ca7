"""Commands of pages that are too long to run are compared with the help of their programs."""

from __future__ import annotations

import pytest
from tests.documents import shim


def test_an_option_that_the_help_does_not_tell_of_is_named() -> None:
    told = "usage: burst [-h] [--cases CASES [CASES ...]]\n  --rest SECONDS  between --cases"
    shim.check_options("burst", ["--cases", "50/0.5", "-h", "--rest=60"], told)
    with pytest.raises(SystemExit, match="burst does not take --case, --pause"):
        shim.check_options("burst", ["--case", "50/0.5", "--pause=60"], told)


def test_the_command_of_a_benchmark_is_held_to_its_own_help() -> None:
    assert shim.python3(["-m", "tests.benchmarks.claims", "--cases", "1/10"]) == "its help knows its options"
    with pytest.raises(SystemExit, match=r"python -m tests\.benchmarks\.claims does not take --claims"):
        shim.python3(["-m", "tests.benchmarks.claims", "--claims", "200"])
