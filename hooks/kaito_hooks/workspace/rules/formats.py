"""Formats of what a user writes into a Workspace and others must be able to use: images, URLs."""

from __future__ import annotations

import re

MAX_REFERENCE = 1024
"""Characters of an image reference: host, repository, tag and digest have limits that add up to less."""
_MAX_SHOWN = 200

# https://github.com/distribution/reference
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"((localhost|[^/]*[.:][^/]*)/)?{_COMPONENT}(/{_COMPONENT})*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_URL = re.compile(r"(?i:https?)://[^/?#@]+/+[^/?#]")


def is_image(text: str) -> bool:
    """Whether it is an image reference, as init containers read it: of docker.io if it names no registry."""
    return len(text) <= MAX_REFERENCE and _REFERENCE.fullmatch(text) is not None


def is_download(url: str) -> bool:
    """Whether init containers would download it: http or https, without user and password, with a path."""
    return _URL.match(url) is not None


def shown(text: str) -> str:
    """The text for a message, cut short."""
    return text[:_MAX_SHOWN]


def shown_url(url: str) -> str:
    """The URL for a message, without a password or a signature that may be in it."""
    return shown(url.split("://")[0] + "://..." if "@" in url else url.split("?")[0])
