"""A model repository of a Hugging Face hub at a pinned revision, over its plain HTTP interface.

https://huggingface.co/docs/hub/api: ``/api/models/<repo>/revision/<rev>`` lists the files,
``/<repo>/resolve/<rev>/<file>`` is one. Only what a model folder needs is fetched; pickles are left where they are if
there are safetensors too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from kaito_hooks.artifacts.content import is_duplicate
from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactNotFound,
    Damaged,
    InvalidReference,
    Unreachable,
)
from kaito_hooks.artifacts.transfer.http import Transfer
from kaito_hooks.artifacts.volume import not_written, require_room

logger = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
_WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
_LISTING_LIMIT = 32 << 20


def fetch(
    repo: str,
    revision: str,
    *,
    token: str | None,
    endpoint: str,
    transfer: Transfer,
    destination: Path,
    check_config: Callable[[Path], None],
    leave_out: Callable[[str], bool],
) -> tuple[str, ...]:
    """Fills ``destination``; the names of the files that were left out. ``revision`` is a commit: the same name never
    means other weights.

    ``check_config`` sees config.json before the weights are fetched, and may raise. ``leave_out`` says by a file's path
    whether it is not wanted, besides what no model folder needs.
    """
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InvalidReference(f"revision {revision!r} of {repo} is no commit (40 hex digits); pin one")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise InvalidReference(f"{repo!r} is no repository of the form owner/name")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    status, _, body = transfer.get(
        f"{endpoint}/api/models/{repo}/revision/{revision}?blobs=true", headers=headers, limit=_LISTING_LIMIT
    )
    if status in (401, 403):
        raise AccessDenied(f"the hub refuses access to {repo} ({status}); does the token secret open it?")
    if status == 404:
        raise ArtifactNotFound(f"the hub has no {repo} at revision {revision}")
    if status != 200:
        raise Unreachable(f"the hub answered {status} for {repo}")
    try:
        listed = {str(entry["rfilename"]): entry for entry in json.loads(body)["siblings"]}
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"the hub answered with something that is no list of files for {repo}") from None
    files = {name: entry for name, entry in listed.items() if _belongs(name) and not leave_out(name)}
    require_room(destination, sum(entry.get("size") or 0 for entry in files.values()), what=repo)
    for name, entry in sorted(files.items(), key=lambda item: item[0].endswith(".safetensors")):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise InvalidReference(f"{repo} names a file {name!r} outside of its folder")
        size = entry.get("size")
        sha256 = (entry.get("lfs") or {}).get("sha256")
        logger.info("%s%s", name, f", {size / 2**20:.1f} MiB" if size else "")
        url = f"{endpoint}/{repo}/resolve/{revision}/{quote(name)}"
        digest, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        target = destination / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for chunk in transfer.stream(url, headers=headers, size=size):
                    digest.update(chunk)
                    blob.update(chunk)
                    file.write(chunk)
            target.chmod(0o644)
        except OSError as error:
            raise not_written(target, error) from error
        # Large files are known by their SHA-256, the others by git's name for their content.
        known = (digest.hexdigest(), sha256) if sha256 else (blob.hexdigest(), entry.get("blobId"))
        if known[1] and known[0] != known[1]:
            raise Damaged(f"{name} of {repo} arrived damaged")
        if name == "config.json":
            check_config(target)
    return tuple(name for name in listed if name not in files)


def _belongs(name: str) -> bool:
    return name.endswith(_WANTED) and not is_duplicate(name)
