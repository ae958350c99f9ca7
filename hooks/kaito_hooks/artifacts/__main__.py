"""``python -m kaito_hooks.artifacts weights|pull|data|check|push ...``: what the containers around a model run.

Exit codes: 0 done (now or before), 1 may succeed when tried again, 2 never will. A failure's sentence goes to stderr
and into the container's termination message; there `push` also leaves the digest of what it pushed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kaito_hooks.artifacts import completion, content, hub, image, package, push
from kaito_hooks.artifacts.errors import AccessDenied, ArtifactError, Unfinished, UnsupportedArtifact
from kaito_hooks.artifacts.registry import credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.registry.writer import RegistryWriter
from kaito_hooks.artifacts.transfer import addresses, download
from kaito_hooks.artifacts.transfer.http import Transfer
from kaito_hooks.artifacts.transfer.proxies import Proxies
from kaito_hooks.runtime import parse_duration

logger = logging.getLogger("kaito_hooks.artifacts")

TERMINATION_LOG = Path("/dev/termination-log")
WEIGHTS_FOLDER = "/workspace/tfs/weights"
ADAPTER_FOLDER = DATA_FOLDER = "/data"
TRAINING_DATA = "/mnt/data"
MARKS = "/tmp/kaito-complete"
COMPLETED = "fine_tuning_completed.txt"
PUSH_RIGHT = ".kaito-push-right.json"


def main(argv: Sequence[str] | None = None, *, termination_log: Path = TERMINATION_LOG) -> int:
    """Runs one command and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    options = _parser().parse_args(argv)
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


def weights(options: argparse.Namespace) -> None:
    """Brings a model's weights from an image, a hub or a volume, and checks them."""
    destination: Path = options.destination
    if options.volume:
        content.check_weights(options.volume, architecture=options.architecture, source=f"volume {options.volume}")
        return
    if options.image:
        source = f"image {options.image}"
    elif options.revision:
        source = f"{options.hugging_face} at revision {options.revision}"
    else:
        raise ArtifactError(f"--hugging-face {options.hugging_face} needs --revision, a commit of 40 hex digits")
    mark = completion.mark_of(destination, source, marks=options.marks)
    if mark.is_set():
        logger.info("%s is there already", source)
        return
    completion.empty(destination)
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    transfer = _transfer(registries)
    left_out: Sequence[str] = ()
    if options.image:
        reader = _reader(options, registries, transfer)
        fetched = image.fetch(reader, folder=options.image_path, destination=destination, leave_out=content.is_left_out)
        left_out = fetched.left_out
    else:
        token = _token(options.token_file) if options.token_file else None
        endpoint = os.environ.get("HF_ENDPOINT", hub.DEFAULT_ENDPOINT).rstrip("/")
        hub.fetch(
            options.hugging_face,
            options.revision,
            token=token,
            endpoint=endpoint,
            transfer=transfer,
            destination=destination,
            check_config=partial(content.check_config, architecture=options.architecture, source=source),
        )
    content.check_weights(destination, architecture=options.architecture, source=source, left_out=left_out)
    mark.set()
    logger.info("%s is complete", source)


def pull(options: argparse.Namespace) -> None:
    """Brings one adapter from an image (files under /data) or an artifact, and checks it."""
    destination: Path = options.destination
    source = f"adapter {options.image}"
    mark = completion.mark_of(destination, source, marks=options.marks)
    if mark.is_set():
        logger.info("%s is there already", source)
        return
    completion.empty(destination)
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    reader = _reader(options, registries, _transfer(registries))
    fetched = image.fetch(reader, folder=ADAPTER_FOLDER, destination=destination, leave_out=content.is_left_out)
    content.check_adapter(destination, source=source, left_out=fetched.left_out)
    mark.set()
    logger.info("%s is complete, %s", source, fetched.digest)


def data(options: argparse.Namespace) -> None:
    """Brings training data from URLs, or from an image (files under /data)."""
    destination: Path = options.destination
    source = f"image {options.image}" if options.image else "URLs " + " ".join(map(download.shown, options.url))
    # Queries may be secret, and still tell one source from another.
    identity = source if options.image else package.sha256("\n".join(options.url).encode())
    mark = completion.mark_of(destination, identity, marks=options.marks)
    if mark.is_set():
        logger.info("%s is there already", source)
        return
    completion.empty(destination)
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    if options.image:
        reader = _reader(options, registries, _transfer(registries))
        image.fetch(reader, folder=DATA_FOLDER, destination=destination)
        if not any(destination.iterdir()):
            raise UnsupportedArtifact(f"{source} holds no data: there is nothing under {DATA_FOLDER}")
    else:
        guard = addresses.guard(options.allow_private)
        transfer = replace(_transfer(registries), patience=download.PATIENCE, guard=guard)
        download.fetch(options.url, transfer=transfer, destination=destination)
    mark.set()
    logger.info("%s is complete", source)


def check(options: argparse.Namespace) -> None:
    """Opens an upload to the output image and cancels it, so that a wrong secret is told before any training.

    Once it may be pushed to, a mark in the trainer's folder says so: a registry that is down after the training is the
    push's to wait for, and no reason to fail a new sandbox.
    """
    source = f"a check that {parse(options.image)} may be pushed to"
    mark = completion.Mark(options.results / PUSH_RIGHT, source) if options.results else None
    if mark and mark.is_set():
        logger.info("%s was made already", source)
        return
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    _writer(options, registries, _transfer(registries)).probe()
    if mark:
        mark.set()
    logger.info("%s may be pushed to", parse(options.image))


def push_adapter(options: argparse.Namespace) -> str:
    """Packs an adapter's folder and pushes it until the registry takes it.

    The termination message is JSON: the image, the digest that it got, the training's last metrics.
    """
    if options.results and not (options.results / COMPLETED).exists():
        raise Unfinished(f"there is nothing to push yet: {options.results / COMPLETED} does not exist")
    content.check_adapter(options.folder, source=f"the folder {options.folder}")
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    parse(options.image)
    state = push.State()
    with push.progress_served(state, options.host, options.port), tempfile.TemporaryDirectory() as work:
        packed = package.pack(options.folder, work=Path(work))
        digest = push.push(
            packed,
            writer=lambda: _writer(options, registries, _transfer(registries)),
            deadline=options.deadline,
            state=state,
            monotonic=time.monotonic,
            sleep=time.sleep,
        )
    logger.info("Upload complete: %s@%s", options.image, digest)
    return json.dumps({"image": options.image, "digest": digest, "metrics": _metrics(options.results)})


def _token(path: Path) -> str:
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", text):
        raise AccessDenied(f"the Secret mounted at {path.parent} holds no token of one line in its key {path.name}")
    return text.decode()


def _metrics(results: Path | None) -> dict[str, float]:
    """The numbers of the trainer's last progress; none if it left nothing that can be read."""
    try:
        found = json.loads((results / "progress.json").read_text())["metrics"] if results else {}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _transfer(registries: Registries) -> Transfer:
    return Transfer(tls=registries.tls(), proxies=Proxies.from_environment(os.environ))


def _writer(options: argparse.Namespace, registries: Registries, transfer: Transfer) -> RegistryWriter:
    reference = parse(options.image)
    return RegistryWriter(
        reference,
        registries=registries,
        transfer=transfer,
        credentials=credentials.find(reference, options.docker_config),
    )


def _reader(options: argparse.Namespace, registries: Registries, transfer: Transfer) -> RegistryReader:
    reference = parse(options.image)
    return RegistryReader(
        reference,
        registries=registries,
        transfer=transfer,
        credentials=credentials.find(reference, options.docker_config),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kaito_hooks.artifacts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="weights|pull|data|check|push")

    command = commands.add_parser("weights", help=weights.__doc__)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", help="the preset's model image")
    source.add_argument("--hugging-face", metavar="OWNER/NAME", help="a repository of a hub ($HF_ENDPOINT)")
    source.add_argument("--volume", type=Path, metavar="PATH", help="a folder that is there already: only checked")
    command.add_argument("--image-path", default=WEIGHTS_FOLDER, help="the folder in the image")
    command.add_argument("--revision", help="a commit of the hub's repository")
    command.add_argument("--token-file", type=Path, help="a file with the hub's token")
    command.add_argument("--architecture", help="the class that config.json must name")
    _common(command, weights)

    command = commands.add_parser("pull", help=pull.__doc__)
    command.add_argument("--image", required=True, help="the adapter's image or artifact, by tag or digest")
    _common(command, pull)

    command = commands.add_parser("data", help=data.__doc__)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--url", action="append", help="a file to download; may be given several times")
    source.add_argument("--image", help="an image with data under /data")
    command.add_argument(
        "--allow-private", action="append", default=[], metavar="CIDR", help="a private network to download from"
    )
    _common(command, data, destination=TRAINING_DATA)

    command = commands.add_parser("check", help=check.__doc__)
    command.add_argument("--image", required=True, help="the image that will be pushed, with its tag")
    command.add_argument("--results", type=Path, help="the trainer's folder, for the mark that this was checked")
    _common(command, check, destination=None)

    command = commands.add_parser("push", help=push_adapter.__doc__)
    command.add_argument("--image", required=True, help="the image to push, with its tag")
    command.add_argument("--folder", type=Path, required=True, help="the adapter's folder")
    command.add_argument("--results", type=Path, help="the trainer's folder, with its completion file and progress")
    command.add_argument("--deadline", type=parse_duration, default=86400.0, help="how long to try, as in 24h")
    command.add_argument("--host", default=os.environ.get("POD_IP", "127.0.0.1"))
    command.add_argument("--port", type=int, default=5000)
    _common(command, push_adapter, destination=None)
    return parser


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
