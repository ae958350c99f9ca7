"""Files out of a registry: an image's folder, or an artifact's files by their titles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from kaito_hooks.artifacts.errors import DiskFull, RefusedContent
from kaito_hooks.artifacts.layers import unpack
from kaito_hooks.artifacts.registry import Descriptor, RegistryReader

logger = logging.getLogger(__name__)

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


def fetch(reader: RegistryReader, *, folder: str, destination: Path) -> str:
    """Fills ``destination`` with the image's ``folder`` (or the artifact's files) and returns the manifest's digest."""
    manifest = reader.manifest()
    is_image = manifest.config_media_type in _IMAGE_CONFIGS
    for number, layer in enumerate(manifest.layers, start=1):
        logger.info("layer %d of %d, %.1f MiB", number, len(manifest.layers), layer.size / 2**20)
        if is_image or layer.media_type.startswith(_LAYERS):
            prefix = folder if is_image else PurePosixPath(folder).name
            unpack(reader.blob(layer), media_type=layer.media_type, prefix=prefix, destination=destination)
        elif layer.title:
            _write(reader.blob(layer), layer, destination)
    return manifest.digest


def _write(chunks: Iterator[bytes], layer: Descriptor, destination: Path) -> None:
    path = PurePosixPath(layer.title or "")
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RefusedContent(f"the artifact names a file {layer.title!r} outside of its folder")
    parts = path.parts[1:] if path.parts[0] == "data" and len(path.parts) > 1 else path.parts
    target = destination.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        target.chmod(0o644)
    except OSError as error:
        raise DiskFull(f"{target} cannot be written: {error.strerror or error}") from error
