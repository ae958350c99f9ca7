"""One folder out of an image's layers, without a container runtime: decompressed and unpacked as the bytes arrive.

Layers are applied in order with their whiteouts (https://github.com/opencontainers/image-spec/blob/main/layer.md).
Regular files and folders come out, and links that stay within the folder; others are refused, and so is a path that
leads through a link, because where it ends cannot be told from its name.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from kaito_hooks.artifacts.errors import Damaged, RefusedContent, UnsupportedArtifact
from kaito_hooks.artifacts.volume import not_written, require_room

_CHUNK = 1 << 20
_BLOCK = 512
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 1 << 27  # what zstd itself decodes without being asked for more; memory grows with it


def unpack(
    chunks: Iterator[bytes], *, media_type: str, prefix: str, destination: Path, skip: Callable[[str], bool]
) -> None:
    """Applies one layer: what it holds below ``prefix`` lands in ``destination``, but the files that ``skip`` names.

    ``skip`` gets paths below ``prefix``. ``chunks`` is consumed to its end, so that its digest is checked. Raises
    Damaged, DiskFull, Unwritable, RefusedContent.
    """
    prefix = prefix.strip("/")
    source = _Reader(_closed(_decompress(chunks, media_type)))
    target = _Folder(destination, prefix, skip=skip)
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=_CHUNK) as archive:
            for member in archive:
                target.apply(archive, member)
        source.drain()
        for _ in chunks:
            pass
    except (tarfile.TarError, zlib.error, zstandard.ZstdError, EOFError) as error:
        raise Damaged(f"a layer cannot be unpacked: {error}") from error
    except OSError as error:
        raise not_written(destination, error) from error


class _Folder:
    """The folder while one layer is applied to it: whiteouts hide what earlier layers brought, never this one's own."""

    def __init__(self, destination: Path, prefix: str, *, skip: Callable[[str], bool]) -> None:
        self._destination = destination
        self._prefix = prefix
        self._skip = skip
        self._own: set[Path] = set()

    def apply(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """One entry of the layer."""
        name = posixpath.normpath(member.name.lstrip("/"))
        if name.startswith("../") or name == "..":
            raise RefusedContent(f"the image holds a path that leads out of it: {member.name!r}")
        folder, base = posixpath.split(name)
        if base.startswith(_WHITEOUT):
            self._white_out(folder, base)
            return
        relative = _below(name, self._prefix)
        if relative is None or (not member.isdir() and self._skip(relative)):
            return
        target = self._place(relative)
        if member.isdir():
            if target.is_symlink() or target.is_file():
                target.unlink()
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if member.isreg():
            require_room(self._destination, member.size, what=f"the image's {name}")
            self._replace(target)
            content = archive.extractfile(member)
            assert content is not None
            with target.open("xb") as file:
                shutil.copyfileobj(content, file, _CHUNK)
            target.chmod(0o644)
        elif member.islnk() or member.issym():
            self._link(member, name, target)
        else:
            raise RefusedContent(f"the image holds a special file, {member.name!r}, among the files that are needed")

    def _link(self, member: tarfile.TarInfo, name: str, target: Path) -> None:
        linked = member.linkname.lstrip("/") if member.islnk() or member.linkname.startswith("/") else None
        if linked is None:
            linked = posixpath.join(posixpath.dirname(name), member.linkname)
        relative = _below(posixpath.normpath(linked), self._prefix)
        if relative is None:
            raise RefusedContent(
                f"the image's {name!r} is a link to {member.linkname!r}, outside the folder {self._prefix!r}"
            )
        source = self._place(relative)
        if member.issym():
            self._replace(target)
            target.symlink_to(os.path.relpath(source, target.parent))
        elif source.is_file() and not source.is_symlink():
            if source != target:
                self._replace(target)
                os.link(source, target)
        else:
            raise RefusedContent(f"the image's {name!r} is a link to {member.linkname!r}, which is no file of it")

    def _white_out(self, folder: str, base: str) -> None:
        hidden = folder if base == _OPAQUE else posixpath.join(folder, base.removeprefix(_WHITEOUT))
        relative = _below(hidden, self._prefix)
        if relative is not None and (relative != "." or base == _OPAQUE):
            target = self._place(relative)
            if base == _OPAQUE:
                self._empty(target)
            elif target not in self._own:
                self._clear(target)
        elif not hidden or self._prefix == hidden or self._prefix.startswith(f"{hidden}/"):
            self._empty(self._destination)

    def _place(self, relative: str) -> Path:
        target = self._destination / relative
        for parent in target.relative_to(self._destination).parents:
            if (self._destination / parent).is_symlink():
                raise RefusedContent(f"the image holds a path that leads through a link: {relative!r}")
        return target

    def _replace(self, target: Path) -> None:
        """Makes room for an entry of this layer."""
        self._clear(target)
        self._own.update((target, *target.parents))

    def _empty(self, folder: Path) -> None:
        if folder.is_symlink() or not folder.is_dir():
            return
        for path in list(folder.iterdir()):
            if path not in self._own:
                self._clear(path)
            elif not path.is_symlink():
                self._empty(path)

    @staticmethod
    def _clear(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _below(name: str, prefix: str) -> str | None:
    """``name`` relative to ``prefix``; "." for the folder itself, None outside of it."""
    if name == prefix:
        return "."
    if not prefix:
        return name
    return name[len(prefix) + 1 :] if name.startswith(f"{prefix}/") else None


def _decompress(chunks: Iterator[bytes], media_type: str) -> Iterator[bytes]:
    first = b""
    while len(first) < len(_ZSTD) and (chunk := next(chunks, None)) is not None:
        first += chunk
    if first.startswith(_GZIP):
        return _gunzip(first, chunks)
    if first.startswith(_ZSTD):
        return _unzstd(first, chunks)
    if media_type.endswith(("+gzip", "+zstd", ".gzip")) and first:
        raise UnsupportedArtifact(f"a layer says it is {media_type}, but is not compressed so")
    return _chain(first, chunks)


def _gunzip(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Concatenated members, as parallel compressors write them, and zeros after and between them."""
    inflate = zlib.decompressobj(wbits=31)
    carried = b""
    for chunk in _chain(first, chunks):
        data, carried = carried + chunk, b""
        while data:
            if inflate.eof:
                data = data.lstrip(b"\0")
                if len(data) < len(_GZIP):
                    carried = data
                    break
                if not data.startswith(_GZIP):
                    raise zlib.error("what follows the compressed stream is no more of it")
                inflate = zlib.decompressobj(wbits=31)
            # Bounded, because a megabyte of zeros compresses to a kilobyte.
            yield inflate.decompress(data, _CHUNK)
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    if carried or not inflate.eof:
        raise EOFError("the compressed stream ends too early")


def _unzstd(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    source = io.BufferedReader(_Reader(_chain(first, chunks)), _CHUNK)
    with decompressor.stream_reader(source, read_across_frames=True) as reader:
        while data := reader.read(_CHUNK):
            yield data


def _closed(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """An archive's bytes. Raises EOFError after the last one if they do not end with the zeros that close it.

    https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html: two blocks of zeros; some writers leave one.
    """
    end = b""
    for chunk in chunks:
        end = (end + chunk[-_BLOCK:])[-_BLOCK:]
        yield chunk
    if end != bytes(_BLOCK):
        raise EOFError("the archive is not closed: its last files are missing")


def _chain(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from chunks


class _Reader(io.RawIOBase):
    """An iterator of byte strings as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def drain(self) -> None:
        """Reads to the end: padding after the archive belongs to the blob, too."""
        for _ in self._chunks:
            pass
