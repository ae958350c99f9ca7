"""Training data from URLs: bounded tries, resumed transfers, nothing secret in any text.

A user's URL is fetched from inside the cluster, so its transfer is guarded (addresses.py): the address that was checked
is the one that is connected to, also on every redirect.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kaito_hooks.artifacts import volume
from kaito_hooks.artifacts.errors import ArtifactError, Damaged, DiskFull, RefusedSource, Unreachable
from kaito_hooks.artifacts.transfer.http import Patience, Transfer

logger = logging.getLogger(__name__)

PATIENCE = Patience(tries=3, first_pause=2.0, longest_pause=2.0)
_LONGEST_NAME = 200
_LONGEST_HARMLESS = 8
"""Characters of a parameter's value that may stay in a name; tokens and signatures have more."""
_SECRET_NAME = re.compile(
    r"token|key|secret|sign|pass|pwd|auth|cred|jwt|session|(?<![a-z])(sig|code|se|sp|st|sas)(?![a-z])"
)
"""In the names of parameters whose values may be secret however short they are."""
_FILE = re.compile(r"[\w ./-]{1,100}\.(csv|tsv|jsonl?|ndjson|parquet|arrow|feather|zip|gz|bz2|xz|zst)")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that arrived: its name in the folder, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


def fetch(urls: Sequence[str], *, transfer: Transfer, destination: Path) -> list[Downloaded]:
    """Fills ``destination`` with one file per URL, which appears whole or not at all.

    Raises RefusedSource before anything is fetched if a URL or name cannot be used; else other ArtifactErrors.
    """
    names: dict[str, str] = {}
    for url in urls:
        name = file_name(url)
        if name in names:
            raise RefusedSource(f"{shown(url)} and {shown(names[name])} would both be saved as {name!r}")
        names[name] = url
    return [_fetch(url, name, transfer=transfer, destination=destination) for name, url in names.items()]


def file_name(url: str) -> str:
    """The last part of the path and the query, with ``?``, ``=``, ``&`` and the query's ``/`` as ``_``.

    Names are logged and published, so a hash of the query stands for each parameter that may be secret.
    Raises RefusedSource.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RefusedSource(f"{shown(url)} is no http or https URL")
    if parts.username or parts.password:
        raise RefusedSource(f"{shown(url)} carries a user and a password; use a URL without them")
    path, mark, query = url.partition("#")[0].partition("?")
    name = re.sub(r"[?=&/]", "_", path.rpartition("/")[2] + mark + _without_secrets(query))
    if not parts.path.strip("/") or name in ("", ".", ".."):
        raise RefusedSource(f"{shown(url)} names no file")
    if len(name.encode()) > _LONGEST_NAME:
        # Signed URLs are long, and the beginning is what says of which kind the file is.
        name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _without_secrets(query: str) -> str:
    """The query with one short hash of all of it in the place of the parameters that may be secret."""
    parameters = query.split("&")
    harmless = [parameter for parameter in parameters if not _may_be_secret(parameter)]
    if len(harmless) == len(parameters):
        return query
    return "&".join([*harmless, hashlib.sha256(query.encode(errors="replace")).hexdigest()[:16]])


def _may_be_secret(parameter: str) -> bool:
    name, equals, value = unquote(parameter).partition("=")
    if _SECRET_NAME.search(name.lower()):
        return True
    return len(value if equals else name) > _LONGEST_HARMLESS and not _FILE.fullmatch(value)


def shown(url: str) -> str:
    """The URL without what may be secret: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


def _fetch(url: str, name: str, *, transfer: Transfer, destination: Path) -> Downloaded:
    partial, target = destination / f".{name[:100]}.partial", destination / name
    digest, size = hashlib.sha256(), 0
    room = volume.room(destination)
    logger.info("downloading %s", shown(url))
    try:
        with partial.open("wb") as file:

            def restart() -> None:
                nonlocal digest, size
                logger.info("%s may have changed meanwhile: beginning anew", shown(url))
                file.seek(0)
                file.truncate()
                digest, size = hashlib.sha256(), 0

            for chunk in transfer.stream(url, headers={}, size=None, restart=restart):
                size += len(chunk)
                if size > room:
                    raise DiskFull(f"{shown(url)} does not fit: the volume has {room / 2**30:.1f} GiB of room")
                digest.update(chunk)
                file.write(chunk)
        if not size:
            raise Damaged(f"{shown(url)} is empty")
        partial.replace(target)
    except Unreachable as error:
        tries = transfer.patience.tries
        raise Unreachable(f"Failed to download {shown(url)} after {tries} attempts: {error}") from error
    except ArtifactError as error:
        raise type(error)(f"Failed to download {shown(url)}: {error}") from error
    except OSError as error:
        raise volume.not_written(target, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    logger.info("%s: %d bytes, sha256 %s", name, size, digest.hexdigest())
    return Downloaded(name=name, bytes=size, sha256=digest.hexdigest())
