"""Secrets that the kubelet cannot find: told by it in Events and states of Pods, as the controller reads no Secret.

The kubelet looks again by itself, so creating the Secret is all that is to be done.
"""

from __future__ import annotations

import re
from datetime import timedelta

PULL_REASON = "FailedToRetrieveImagePullSecret"
"""Of the Event that names the Secrets of ``imagePullSecrets`` that are missing; the image may do without them."""
LONGEST_SILENCE = timedelta(minutes=10)
"""How old the newest such Event may be: the kubelet repeats it with every attempt, which are 5 minutes apart at most,
and its recorder lets one in 5 minutes through."""

_MOUNTED = re.compile(r'\bsecrets? "([^"/]+)" not found')
_PULLED = re.compile(r"image pull secrets \(([^()]+)\)")


def of_a_state(message: str) -> list[str]:
    """The Secret without which a volume cannot be mounted, or a container not be made."""
    return _MOUNTED.findall(message)


def of_a_pull(message: str) -> list[str]:
    """The Secrets that an Event with ``PULL_REASON`` names."""
    found = _PULLED.search(message)
    return [name.strip() for name in found[1].split(",")] if found else []


def wanted(names: list[str], namespace: str) -> str:
    """What to do for them, as the end of a sentence; "" if there is none."""
    if not names:
        return ""
    called = "Secrets" if len(names) > 1 else "Secret"
    return f"; create the {called} {', '.join(names)} in the namespace {namespace}, the Pod then goes on by itself"
