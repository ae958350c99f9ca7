"""Files out of a registry: an image's folder, or an artifact's files by their titles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kaito_hooks.artifacts.errors import RefusedContent
from kaito_hooks.artifacts.layers import unpack
from kaito_hooks.artifacts.registry.reader import Descriptor, RegistryReader
from kaito_hooks.artifacts.volume import not_written, require_room

logger = logging.getLogger(__name__)

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


def nothing(name: str) -> bool:
    """Leaves no file out."""
    return False


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came: the digest of the manifest that was asked for, and the files that were left out."""

    digest: str
    left_out: tuple[str, ...]


def fetch(
    reader: RegistryReader, *, folder: str, destination: Path, leave_out: Callable[[str], bool] = nothing
) -> Fetched:
    """Fills ``destination`` with the image's ``folder``, or the artifact's files.

    ``leave_out`` says by a file's path below the folder whether it is not wanted. Nothing is begun that does not fit.
    """
    manifest = reader.manifest()
    is_image = manifest.config_media_type in _IMAGE_CONFIGS
    left_out: list[str] = []

    def skip(name: str) -> bool:
        skipped = leave_out(name)
        if skipped:
            left_out.append(name)
        return skipped

    # Of an image, only its archives say how much of it is wanted.
    files = {layer: _name(layer.title) for layer in manifest.layers if layer.title and not _is_archive(layer, is_image)}
    wanted = [layer for layer, name in files.items() if not skip(name.as_posix())]
    require_room(destination, sum(layer.size for layer in wanted), what="the artifact")
    for number, layer in enumerate(manifest.layers, start=1):
        logger.info("layer %d of %d, %.1f MiB", number, len(manifest.layers), layer.size / 2**20)
        if _is_archive(layer, is_image):
            prefix = folder if is_image else PurePosixPath(folder).name
            unpack(reader.blob(layer), media_type=layer.media_type, prefix=prefix, destination=destination, skip=skip)
        elif layer in wanted:
            _write(reader.blob(layer), destination / files[layer])
    return Fetched(manifest.digest, tuple(left_out))


def _is_archive(layer: Descriptor, is_image: bool) -> bool:
    return is_image or layer.media_type.startswith(_LAYERS)


def _name(title: str) -> PurePosixPath:
    path = PurePosixPath(title)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise RefusedContent(f"the artifact names a file {title!r} outside of its folder")
    return path.relative_to("data") if path.parts[0] == "data" and len(path.parts) > 1 else path


def _write(chunks: Iterator[bytes], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        target.chmod(0o644)
    except OSError as error:
        raise not_written(target, error) from error
