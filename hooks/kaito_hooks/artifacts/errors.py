"""Errors of fetching. The text is one sentence for the Workspace's conditions.

ArtifactError
├── Unreachable          no answer, or the server is in trouble; may succeed later
├── Damaged              what arrived is not what was announced; may succeed later
├── DiskFull             the volume has no room left; may succeed later on another node
├── Unwritable           the volume does not take a file for another reason; may succeed later on another node
├── AccessDenied         401 or 403 with the credentials that we have; a Secret can be put right
├── ArtifactNotFound     the registry or hub has no such thing; somebody may push it
├── Unfinished           there is no result to push yet
├── InvalidReference     the reference is no image reference; final
├── UnsupportedArtifact  it exists, but is not what was asked for: no adapter, no weights, no image; final
├── RefusedSource        a URL that is not downloaded from: its scheme, its address, its name; final
├── NotPushed            the registry did not take the result until the deadline, or never would; final
├── PushRefused          nothing may be pushed there as things are, and nothing was done yet; final
└── RefusedContent       it holds what is never loaded: pickles, links out of its folder; final

Final errors end a command with exit code 2, the others with 1, and the kubelet tries again with its back-off.
"""

from __future__ import annotations


class ArtifactError(Exception):
    """Anything that keeps an artifact from being usable."""

    final = True


class Unreachable(ArtifactError):
    """The other side did not answer, or answered that it is in trouble."""

    final = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Damaged(ArtifactError):
    """Content that does not match its digest or size."""

    final = False


class DiskFull(ArtifactError):
    """There is no room for a file."""

    final = False


class Unwritable(ArtifactError):
    """A file could not be written although there may be room."""

    final = False


class AccessDenied(ArtifactError):
    """The credentials do not open this repository."""

    final = False


class ArtifactNotFound(ArtifactError):
    """There is nothing of that name."""

    final = False


class Unfinished(ArtifactError):
    """The step before has not left its completion file."""

    final = False


class InvalidReference(ArtifactError):
    """Not an image reference."""


class UnsupportedArtifact(ArtifactError):
    """Not what was asked for."""


class RefusedContent(ArtifactError):
    """Content that is never loaded."""


class RefusedSource(ArtifactError):
    """A URL that nothing is downloaded from."""


class NotPushed(ArtifactError):
    """The time for pushing is over, or it would never succeed."""


class PushRefused(ArtifactError):
    """An image that nobody with these credentials can push."""
