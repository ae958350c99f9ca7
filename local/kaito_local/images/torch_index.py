"""Where pip takes torch from: a folder of wheels, PyTorch's own index of a variant, or its usual index.

    python -m kaito_local.images.torch_index        # prints the address of the index of CPU wheels, or nothing

Wheels for CPUs and for a given CUDA lie in indexes of PyTorch's own (https://pytorch.org/get-started/locally/). The
default wheel, which the usual index has, runs on a CPU, too, but brings CUDA's libraries.
"""

from __future__ import annotations

import http.client
import os
import queue
import ssl
import sys
import threading
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from kaito_local.errors import BuildError, MissingPrerequisite
from kaito_local.machine.folders import ROOT

_INDEX = "https://download.pytorch.org/whl"
_ANSWERS_WITHIN = 3.0
# The Python of the base image, as wheels name it.
IMAGES_PYTHON = "cp311"

Report = Callable[[str], None]


def wheels_folder(environment: Mapping[str, str] = os.environ, *, root: Path = ROOT) -> Path | None:
    """``KAITO_WHEELS``, else ``../shared/wheels`` beside the project where it exists."""
    named = environment.get("KAITO_WHEELS")
    if named:
        if not Path(named).is_dir():
            raise MissingPrerequisite(f"KAITO_WHEELS names {named}, which is not a folder")
        return Path(named)
    beside = root.parent / "shared" / "wheels"
    return beside if beside.is_dir() else None


def torch_index(
    variant: str,
    *,
    wheels: Path | None,
    python: str = IMAGES_PYTHON,
    environment: Mapping[str, str] = os.environ,
    answers: Callable[[str], bool] | None = None,
) -> str | None:
    """The address of the index that has torch for ``variant`` (cpu, cu126).

    Empty where ``wheels`` holds the pinned version of it for ``python``, such as cp311.
    ``TORCH_INDEX`` overrides PyTorch's own. None: it does not answer, so that pip's usual index is left.
    """
    if wheels is not None and any(wheels.glob(f"torch-{_pinned()}+{variant}-{python}-*.whl")):
        return ""
    address = f"{_INDEX}/{variant}"
    return environment.get("TORCH_INDEX") or (address if (answers or _answers)(address) else None)


def takes_default_wheel(variant: str, *, wheels: Path | None) -> bool:
    """Whether images get the default wheel, as nothing else is to be had."""
    return torch_index(variant, wheels=wheels) is None


def chosen_index(variant: str, *, wheels: Path | None, report: Report, python: str = IMAGES_PYTHON) -> str:
    """`torch_index`, or the empty string where the default wheel will do.

    Its cost is reported in one line. It is the wrong one for any variant but cpu: raises BuildError.
    """
    address = torch_index(variant, wheels=wheels, python=python)
    if address is not None:
        return address
    if variant != "cpu":
        raise BuildError(
            f"the variant {variant} needs torch's wheel of that name, and {_INDEX}/{variant} does not answer; "
            "name an index with TORCH_INDEX, or a folder that holds the wheel with KAITO_WHEELS"
        )
    report(
        f"{_INDEX}/{variant} does not answer: torch's default wheel is taken, with CUDA's libraries (about 3 GB more "
        "to download; on disk 5 GB more for a .venv, 8 for images); TORCH_INDEX or KAITO_WHEELS name a smaller one"
    )
    return ""


def _answers(address: str) -> bool:
    """Whether a server answers there within three seconds, the look-up of its name included."""
    said: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            trusted = ssl.create_default_context(cafile=certificates())
            with urllib.request.urlopen(f"{address}/torch/", timeout=_ANSWERS_WITHIN, context=trusted) as response:
                said.put(response.status == 200)
        except (OSError, ValueError, http.client.HTTPException):
            said.put(False)

    # Nothing bounds how long a name is looked up; a thread that is left behind ends with the process.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return said.get(timeout=_ANSWERS_WITHIN)
    except queue.Empty:
        return False


def certificates(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The file of authorities that this machine's user wants trusted, such as that of a proxy."""
    for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        file = environment.get(variable)
        if file and Path(file).is_file():
            return Path(file)
    return None


def _pinned() -> str:
    """torch's version in constraints.txt."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    return pins["torch"]


def main() -> int:
    """The command line; 1 with a sentence on stderr where KAITO_WHEELS names no folder."""

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        print(chosen_index("cpu", wheels=wheels_folder(), report=report, python=python))
    except MissingPrerequisite as error:
        report(f"kaito: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
