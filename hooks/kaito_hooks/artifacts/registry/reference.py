"""Image references as container tools read them.

https://github.com/distribution/reference - a first path part with a dot or a colon, or "localhost", names the
registry; without one it is docker.io, whose one-part repositories live under library/.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from kaito_hooks.artifacts.errors import InvalidReference

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of a registry, and a tag or a digest in it."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def version(self) -> str:
        """What the manifest is asked for by: the digest if there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.version}")


def parse(text: str) -> Reference:
    """Raises InvalidReference with a sentence that shows the text."""
    rest, _, digest = text.partition("@")
    if digest and not _DIGEST.fullmatch(digest):
        raise InvalidReference(f"image {text!r}: {digest!r} is no sha256 digest")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, remainder
    else:
        registry, path = "docker.io", rest
    path, _, tag = path.partition(":")
    if registry in ("docker.io", "index.docker.io"):
        registry = "docker.io"
        path = path if "/" in path else f"library/{path}"
    if not _REPOSITORY.fullmatch(path):
        raise InvalidReference(
            f"image {text!r}: {path!r} is no repository name (lower-case letters, digits, . _ - and /)"
        )
    if tag and not _TAG.fullmatch(tag):
        raise InvalidReference(f"image {text!r}: {tag!r} is no tag")
    return Reference(
        registry=registry, repository=path, tag=tag or (None if digest else "latest"), digest=digest or None
    )
