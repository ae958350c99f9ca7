"""Model images: nothing but a folder of weights, where the public model images have theirs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from kaito_local.errors import BuildError
from kaito_local.images.oci import Layout

# A file of at least this size is a layer of its own, so that an interrupted download repeats only that file.
_OWN_LAYER_BYTES = 64 << 20


def ensure_model_image(layout: Layout, weights: Path, *, path: str) -> str:
    """The manifest digest of an image that holds the files of ``weights`` under ``path``; made if there is none.

    The image is known by names, sizes and times of the files, so gigabytes are not read again. Raises BuildError when
    the folder holds no file.
    """
    files = dict(_files(weights))
    if not files:
        raise BuildError(f"{weights} holds no file")
    name = f"model-{_identity(files, path=path)}"
    with layout.locked():
        known = layout.find(name)
        if known is not None:
            return known.digest
        target = path.strip("/")
        small = {f"{target}/{key}": file for key, file in files.items() if file.stat().st_size < _OWN_LAYER_BYTES}
        large = {f"{target}/{key}": file for key, file in files.items() if file.stat().st_size >= _OWN_LAYER_BYTES}
        layers = [layout.add_layer(small)] if small else []
        layers += [layout.add_layer({key: file}) for key, file in sorted(large.items())]
        return layout.add_image(name, layers, config={"WorkingDir": "/"}).digest


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(parent) / name
            if not name.startswith(".") and file.is_file():
                yield str(file.relative_to(folder)), file


def _identity(files: Mapping[str, Path], *, path: str) -> str:
    facts = [path, *(f"{key} {(s := file.stat()).st_size} {s.st_mtime_ns} {s.st_ino}" for key, file in files.items())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
