"""The `kaito` command. Its parts are imported inside, so that an interruption meets them with its one line, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `kaito`; the exit code: 0, 1 with one sentence on stderr, 2 for a bad command line, 130 when interrupted."""
    try:
        from kaito_local.commands.line import run

        return run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("kaito: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
