"""`python -m kaito_serving`: exit code 0 after SIGTERM, 2 when the server can never start like this, 1 otherwise."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from kaito_serving.errors import ServingError, StartupError
from kaito_serving.options import Options, parse
from kaito_serving.run import log
from kaito_serving.run.server import run


def main(arguments: list[str]) -> int:
    """Serve; a failure is one sentence on stderr and in the termination log, where Kubernetes shows it."""
    log.configure()
    termination_log = Options().termination_log

    def die(sentence: str) -> None:
        _explain(sentence, termination_log)
        _leave(1)

    try:
        options = parse(arguments)
        termination_log = options.termination_log
        log.show_details(options.debug)
        if options.node_rank > 0:
            from kaito_serving.run import worker  # torch: not where a replica has it

            worker.run(options)
        else:
            run(options, die=die)
    except ServingError as error:
        _explain(str(error), termination_log)
        return 2 if isinstance(error, StartupError) else 1
    return 0


def _explain(sentence: str, termination_log: Path) -> None:
    sys.stderr.write(sentence + "\n")
    sys.stderr.flush()
    if termination_log.parent.is_dir():
        try:
            termination_log.write_text(sentence + "\n", encoding="utf-8")
        except OSError as error:
            logging.getLogger(__name__).warning("%s cannot be written: %s", termination_log, error.strerror)


def _leave(code: int) -> None:
    """End without exit handlers: what there was to end has ended, and Ray's would wait for processes that are dead."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
