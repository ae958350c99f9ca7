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
_URL = re.compile(r"(?i:https?)://[^/?#@\s]+/+[^/?#\s]\S*", re.ASCII)
_LOCAL_URL = re.compile(r"(?i:https?://(localhost|127[.][0-9.]+|\[::1\])(:[0-9]*)?/)")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def is_image(text: str) -> bool:
    """Whether it is an image reference, as init containers read it: of docker.io if it names no registry."""
    return len(text) <= MAX_REFERENCE and _REFERENCE.fullmatch(text) is not None


def is_download(url: str) -> bool:
    """Whether init containers would download it: http or https, without blanks, user and password, with a path."""
    return _URL.fullmatch(url) is not None


def is_local(url: str) -> bool:
    """Whether its host is the machine, or the Pod, that asks."""
    return _LOCAL_URL.match(url) is not None


def is_object_name(text: str) -> bool:
    """Whether a Secret or a ConfigMap may be called so: a DNS subdomain of RFC 1123, its labels not looked at."""
    return _OBJECT_NAME.fullmatch(text) is not None


def shown(text: str) -> str:
    """The text for a message, cut short."""
    return text[:_MAX_SHOWN]


def shown_url(url: str) -> str:
    """The URL for a message, without a password or a signature that may be in it."""
    return shown(url.split("://")[0] + "://..." if "@" in url else url.split("?")[0])
