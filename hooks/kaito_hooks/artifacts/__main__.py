"""``python -m kaito_hooks.artifacts weights|tokenizer|pull|data|check|push-right|push ...``: what runs around a model.

Exit codes: 0 done (now or before), 1 may succeed when tried again, 2 never will. A failure's sentence goes to stderr
and into the container's termination message; there `push` also leaves the digest of what it pushed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kaito_hooks.artifacts import commands
from kaito_hooks.artifacts.errors import ArtifactError
from kaito_hooks.runtime import parse_duration

logger = logging.getLogger("kaito_hooks.artifacts")

TERMINATION_LOG = Path("/dev/termination-log")
WEIGHTS_FOLDER = "/workspace/tfs/weights"
TRAINING_DATA = "/mnt/data"
MARKS = "/tmp/kaito-complete"


def main(argv: Sequence[str] | None = None, *, termination_log: Path = TERMINATION_LOG) -> int:
    """Runs one command and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = parser().parse_args(argv)
    try:
        run: Callable[[argparse.Namespace], str | None] = options.run
        result = run(options)
    except Exception as error:
        expected = isinstance(error, ArtifactError | OSError)
        # What an unexpected error says may hold what it stumbled over, a token for instance.
        text = str(error) if expected else f"an unexpected {type(error).__name__} ended this step; its log says where"
        message = " ".join(text.split())
        logger.error("%s", message, exc_info=not expected)
        if termination_log.exists():
            termination_log.write_text(message)
        return 2 if isinstance(error, ArtifactError) and error.final else 1
    if result and termination_log.exists():
        termination_log.write_text(result)
    return 0


def parser() -> argparse.ArgumentParser:
    """Of the command lines of all steps."""
    found = argparse.ArgumentParser(prog="python -m kaito_hooks.artifacts", description=__doc__)
    added = found.add_subparsers(required=True, metavar="weights|tokenizer|pull|data|check|push-right|push")

    for name, run in (("weights", commands.weights), ("tokenizer", commands.tokenizer)):
        command = added.add_parser(name, help=run.__doc__)
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--image", help="the preset's model image")
        source.add_argument("--hugging-face", metavar="OWNER/NAME", help="a repository of a hub ($HF_ENDPOINT)")
        source.add_argument("--volume", type=Path, metavar="PATH", help="a folder that is there already: only checked")
        command.add_argument("--image-path", default=WEIGHTS_FOLDER, help="the folder in the image")
        command.add_argument("--revision", help="a commit of the hub's repository")
        command.add_argument("--token-file", type=Path, help="a file with the hub's token")
        command.add_argument("--architecture", help="the class that config.json must name")
        _common(command, run)

    command = added.add_parser("pull", help=commands.pull.__doc__)
    command.add_argument("--image", required=True, help="the adapter's image or artifact, by tag or digest")
    _common(command, commands.pull)

    command = added.add_parser("data", help=commands.data.__doc__)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", action="append", help="a file to download; may be given several times")
    source.add_argument("--image", help="an image with data under /data")
    command.add_argument(
        "--allow-private", action="append", default=[], metavar="CIDR", help="a private network to download from"
    )
    _common(command, commands.data, destination=TRAINING_DATA)

    command = added.add_parser("check", help=commands.check.__doc__)
    command.add_argument("--image", required=True, help="the image that will be pushed, with its tag")
    command.add_argument("--results", type=Path, help="the trainer's folder, for the mark that this was checked")
    _common(command, commands.check, destination=None)

    command = added.add_parser("push-right", help=commands.push_right.__doc__)
    command.add_argument("--image", required=True, help="the image that will be pushed, with its tag")
    _common(command, commands.push_right, destination=None)

    command = added.add_parser("push", help=commands.push_adapter.__doc__)
    command.add_argument("--image", required=True, help="the image to push, with its tag")
    command.add_argument("--folder", type=Path, required=True, help="the adapter's folder")
    command.add_argument("--results", type=Path, help="the trainer's folder, with its completion file and progress")
    command.add_argument("--deadline", type=parse_duration, default=86400.0, help="how long to try, as in 24h")
    command.add_argument("--host", default=os.environ.get("POD_IP", "127.0.0.1"))
    command.add_argument("--port", type=int, default=5000)
    _common(command, commands.push_adapter, destination=None)
    return found


def _common(
    command: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], str | None],
    *,
    destination: str | None = WEIGHTS_FOLDER,
) -> None:
    if destination:
        command.add_argument("--destination", type=Path, default=Path(destination), help="the folder to fill")
        command.add_argument("--marks", type=Path, default=Path(MARKS), help="a folder for marks of what is complete")
    command.add_argument(
        "--docker-config", type=Path, action="append", default=[], metavar="FILE", help="a mounted .dockerconfigjson"
    )
    command.set_defaults(run=run)


if __name__ == "__main__":
    sys.exit(main())
