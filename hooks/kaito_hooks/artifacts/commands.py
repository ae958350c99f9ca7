"""What each command of ``python -m kaito_hooks.artifacts`` does.

A command takes its parsed options, and returns what belongs into the container's termination message, if anything does.
Raises ArtifactError or OSError.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from kaito_hooks.artifacts import completion, content, hub, image, package, push, results
from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactError,
    ArtifactNotFound,
    PushRefused,
    Unfinished,
    UnsupportedArtifact,
)
from kaito_hooks.artifacts.registry import credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.registry.writer import RegistryWriter
from kaito_hooks.artifacts.transfer import addresses, download
from kaito_hooks.artifacts.transfer.http import Transfer
from kaito_hooks.artifacts.transfer.proxies import Proxies

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = DATA_FOLDER = "/data"
COMPLETED = "fine_tuning_completed.txt"
PUSH_RIGHT = ".kaito-push-right.json"


def weights(options: argparse.Namespace) -> None:
    """Brings a model's weights from an image, a hub or a volume, and checks them."""
    _bring_model(options, leave_out=content.is_left_out, check=content.check_weights)


def tokenizer(options: argparse.Namespace) -> None:
    """Brings a model's small files without its weights, as `weights`: what its tokenizer and its shape are read from.

    Of an image all layers are read, because only their end tells that nothing more belongs to the folder.
    """
    _bring_model(options, only="the small files of ", leave_out=content.is_no_small_file, check=content.check_tokenizer)


def _bring_model(
    options: argparse.Namespace, *, leave_out: Callable[[str], bool], check: Callable[..., None], only: str = ""
) -> None:
    destination: Path = options.destination
    architecture = options.architecture
    if options.volume:
        check(options.volume, architecture=architecture, source=f"volume {options.volume}")
        return
    if options.image:
        source = f"image {options.image}"
    elif options.revision:
        source = f"{options.hugging_face} at revision {options.revision}"
    else:
        raise ArtifactError(f"--hugging-face {options.hugging_face} needs --revision, a commit of 40 hex digits")
    mark = completion.mark_of(destination, f"{only}{source}", marks=options.marks)
    if mark.is_set():
        logger.info("%s%s is there already", only, source)
        return
    completion.empty(destination)
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    transfer = _transfer(registries)
    left_out: Sequence[str]
    if options.image:
        reader = _reader(options, registries, transfer)
        fetched = image.fetch(reader, folder=options.image_path, destination=destination, leave_out=leave_out)
        left_out = fetched.left_out
    else:
        token = _token(options.token_file) if options.token_file else None
        endpoint = os.environ.get("HF_ENDPOINT", hub.DEFAULT_ENDPOINT).rstrip("/")
        left_out = hub.fetch(
            options.hugging_face,
            options.revision,
            token=token,
            endpoint=endpoint,
            transfer=transfer,
            destination=destination,
            check_config=partial(content.check_config, architecture=architecture, source=source),
            leave_out=leave_out,
        )
    check(destination, architecture=architecture, source=source, left_out=left_out)
    mark.set()
    logger.info("%s%s is complete", only, source)


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


def push_right(options: argparse.Namespace) -> None:
    """Opens an upload to the output image and cancels it, before anything was paid for: a refusal is final.

    Exits with 1 only where the registry does not answer or is in trouble.
    """
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    try:
        _writer(options, registries, _transfer(registries)).probe()
    except (AccessDenied, ArtifactNotFound) as error:
        raise PushRefused(str(error)) from error
    logger.info("%s may be pushed to", parse(options.image))


def push_adapter(options: argparse.Namespace) -> str:
    """Packs an adapter's folder and pushes it until the registry takes it.

    What the adapter was made from becomes annotations of the image. The termination message is JSON: the image, the
    digest that it got, the training's last metrics, and what the adapter was made from.
    """
    if options.results and not (options.results / COMPLETED).exists():
        raise Unfinished(f"there is nothing to push yet: {options.results / COMPLETED} does not exist")
    content.check_adapter(options.folder, source=f"the folder {options.folder}")
    registries = Registries.parse(os.environ.get("KAITO_REGISTRIES", ""))
    parse(options.image)
    left = results.Results.read(options.results)
    lineage = results.lineage(options.folder)
    state = push.State(left)
    with push.progress_served(state, options.host, options.port), tempfile.TemporaryDirectory() as work:
        packed = package.pack(options.folder, work=Path(work), annotations=results.manifest_annotations(lineage))
        digest = push.push(
            packed,
            writer=lambda: _writer(options, registries, _transfer(registries)),
            deadline=options.deadline,
            state=state,
            monotonic=time.monotonic,
            sleep=time.sleep,
        )
    logger.info("Upload complete: %s@%s", options.image, digest)
    return results.message(image=options.image, digest=digest, metrics=left.metrics, lineage=lineage)


def _token(path: Path) -> str:
    text = path.read_bytes().strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", text):
        raise AccessDenied(f"the Secret mounted at {path.parent} holds no token of one line in its key {path.name}")
    return text.decode()


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
