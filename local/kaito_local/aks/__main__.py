"""``python -m kaito_local.aks --config FILE``: the emulator as a process; SIGTERM or SIGINT ends it, its machines stay.

Prints one line with its addresses once it answers, also kept in ``<directory>/endpoints.json``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path
from queue import SimpleQueue

from kaito_local.aks.emulator import Emulator
from kaito_local.aks.settings import load
from kaito_local.errors import LocalError


def main() -> int:
    """The command line; the exit status is 0 after a signal, 1 if the emulator cannot start."""
    parser = argparse.ArgumentParser(prog="kaito_local.aks", description="emulate AKS for one cluster")
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="YAML; see kaito_local/aks/settings.py"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: signals.put(received))
    try:
        emulator = Emulator(load(arguments.config))
    except LocalError as error:
        print(f"kaito_local.aks: {error}", file=sys.stderr)
        return 1
    with emulator:
        endpoints = emulator.endpoints
        print(f"ARM {endpoints.arm}, control {endpoints.control}, CA {endpoints.authority}", flush=True)
        signals.get()
    return 0


if __name__ == "__main__":
    sys.exit(main())
