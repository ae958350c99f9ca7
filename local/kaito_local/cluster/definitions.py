"""CRDs on a cluster: applied, and served before anybody writes an object of their kinds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from kaito_local.errors import CommandError, StartError

_SERVED_WITHIN = 180.0
_LOOK_EVERY = 0.1


def apply_definitions(kubectl: Callable[..., str], *folders: Path, force: bool = False) -> None:
    """Applies the CRDs in the folders' files, and waits until the API server answers for their kinds.

    ``kubectl``: runs kubectl with these arguments, raises CommandError where it fails. ``force``: fields that others
    have changed are taken back. Raises StartError if a kind is not served in time.

    `kubectl wait --for=condition=Established` would fail on a CRD whose status nobody has written yet, and Established
    does not say that the storage answers.
    """
    files = [f"--filename={folder}" for folder in folders]
    forced = ["--force-conflicts"] if force else []
    applied = kubectl("apply", "--server-side", *forced, *files, "--output=name")
    # A CRD is named by the plural and the group of its kind.
    kinds = ",".join(line.rpartition("/")[2] for line in applied.splitlines())
    deadline = time.monotonic() + _SERVED_WITHIN
    while True:
        try:
            kubectl("get", kinds, "--all-namespaces", "--output=name")
            return
        except CommandError as error:
            if time.monotonic() > deadline:
                raise StartError(f"{kinds} are not served after {_SERVED_WITHIN:.0f} s: {error}") from error
        time.sleep(_LOOK_EVERY)
