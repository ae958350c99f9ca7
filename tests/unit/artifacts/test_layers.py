"""A folder out of image layers: links, whiteouts and archives that mean harm."""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from kaito_hooks.artifacts.errors import Damaged, DiskFull, RefusedContent, Unwritable
from kaito_hooks.artifacts.image import nothing
from kaito_hooks.artifacts.layers import unpack

LAYER = "application/vnd.oci.image.layer.v1.tar"


def archive(*entries: tuple[str, str | bytes, bytes | None]) -> bytes:
    """Entries are (name, content, None) for files and (name, target, kind) for links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, kind in entries:
            member = tarfile.TarInfo(name)
            if kind is None:
                assert isinstance(content, bytes)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type = kind
                member.linkname = str(content)
                tar.addfile(member)
    return buffer.getvalue()


def file(name: str, content: bytes = b"x") -> tuple[str, bytes, None]:
    return (name, content, None)


def link(name: str, target: str) -> tuple[str, str, bytes]:
    return (name, target, tarfile.SYMTYPE)


def hard(name: str, target: str) -> tuple[str, str, bytes]:
    return (name, target, tarfile.LNKTYPE)


def chunks(data: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def apply(
    destination: Path, *layers: bytes, prefix: str = "/w", skip: Callable[[str], bool] = nothing
) -> dict[str, bytes]:
    destination.mkdir(exist_ok=True)
    for layer in layers:
        unpack(chunks(layer), media_type=LAYER, prefix=prefix, destination=destination, skip=skip)
    return {str(p.relative_to(destination)): p.read_bytes() for p in destination.rglob("*") if p.is_file()}


def test_a_path_through_a_link_is_refused(tmp_path: Path) -> None:
    """Each link stays within the folder by its name, and out of it by where its own folder really lies."""
    layer = archive(link("w/a", "."), link("w/a/a/a/up", "../../../x"), file("w/up/owned"))
    with pytest.raises(RefusedContent, match="leads through a link"):
        apply(tmp_path / "inner", layer)
    assert not list(tmp_path.rglob("owned"))


def test_a_path_through_a_link_of_an_earlier_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedContent, match="leads through a link"):
        apply(tmp_path / "d", archive(file("w/real/x"), link("w/l", "real")), archive(file("w/l/y")))


def test_a_file_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    first = archive(file("w/a", b"a"), link("w/b", "a"))
    assert apply(tmp_path / "d", first, archive(file("w/b", b"b"))) == {"a": b"a", "b": b"b"}


def test_a_hard_link_is_the_file_of_the_folder_that_it_names(tmp_path: Path) -> None:
    assert apply(tmp_path / "d", archive(file("w/a", b"a"), hard("w/b", "w/a"))) == {"a": b"a", "b": b"a"}


@pytest.mark.parametrize(
    "layer",
    [
        archive(hard("w/b", "w/missing")),
        archive(hard("w/b", "etc/passwd")),
        archive(link("w/b", "../etc/passwd")),
        archive(link("w/b", "/etc/passwd")),
        archive(("w/b", "", tarfile.FIFOTYPE)),
        archive(file("../w/b")),
    ],
    ids=["link to nothing", "hard link outside", "link upwards", "link to the root", "pipe", "path upwards"],
)
def test_what_leads_out_is_refused(tmp_path: Path, layer: bytes) -> None:
    with pytest.raises(RefusedContent):
        apply(tmp_path / "d", layer)


def test_what_is_skipped_never_reaches_the_disk(tmp_path: Path) -> None:
    layer = archive(
        file("w/model.safetensors"), file("w/pytorch_model.bin"), link("w/x.bin", "/etc/passwd"), file("w/sub/y.bin")
    )
    asked: list[str] = []

    def skip(name: str) -> bool:
        asked.append(name)
        return name.endswith(".bin")

    assert set(apply(tmp_path / "d", layer, skip=skip)) == {"model.safetensors"}
    assert asked == ["model.safetensors", "pytorch_model.bin", "x.bin", "sub/y.bin"]
    assert not list((tmp_path / "d").rglob("*.bin"))


def test_a_file_that_does_not_fit_is_not_begun(tmp_path: Path) -> None:
    member = tarfile.TarInfo("w/huge")
    member.size = 1 << 50
    layer = member.tobuf(tarfile.PAX_FORMAT) + bytes(10240)
    with pytest.raises(DiskFull, match="the image's w/huge does not fit"):
        apply(tmp_path / "d", layer)
    assert list((tmp_path / "d").iterdir()) == []


def test_a_folder_in_a_file_s_place_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(Unwritable):
        apply(tmp_path / "d", archive(file("w/a"), file("w/a/b")))


def test_an_opaque_folder_hides_earlier_layers_and_nothing_of_its_own(tmp_path: Path) -> None:
    """The order within a layer says nothing: the mark may come after the files."""
    first = archive(file("w/sub/old"), file("w/kept"))
    second = archive(file("w/sub/new"), file("w/sub/.wh..wh..opq"))
    assert set(apply(tmp_path / "d", first, second)) == {"kept", "sub/new"}


@pytest.mark.parametrize("mark", [".wh..wh..opq", "w/.wh..wh..opq", ".wh.w"])
def test_a_mark_above_the_folder_hides_all_of_it(tmp_path: Path, mark: str) -> None:
    assert set(apply(tmp_path / "d", archive(file("w/old")), archive(file(mark), file("w/new")))) == {"new"}


def test_a_removed_file_is_gone_and_its_namesake_elsewhere_is_not(tmp_path: Path) -> None:
    first = archive(file("w/a"), file("w/b"), file("v/a"))
    assert set(apply(tmp_path / "d", first, archive(file("w/.wh.a"), file("v/.wh.b")))) == {"b"}


@pytest.mark.parametrize("compress", [lambda d: gzip.compress(d), lambda d: zstandard.ZstdCompressor().compress(d)])
def test_a_layer_that_is_cut_is_damaged(tmp_path: Path, compress: object) -> None:
    import os

    assert callable(compress)
    whole = compress(archive(file("w/a", os.urandom(200_000))))
    with pytest.raises(Damaged):
        apply(tmp_path / "d", whole[: len(whole) // 2])


def test_concatenated_gzip_members_are_one_layer(tmp_path: Path) -> None:
    layer = archive(file("w/a", b"a" * 5000))
    packed = b"".join(gzip.compress(layer[i : i + 1000]) for i in range(0, len(layer), 1000))
    assert apply(tmp_path / "d", packed) == {"a": b"a" * 5000}


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_where_the_network_cuts_a_layer_does_not_matter(tmp_path: Path, size: int) -> None:
    """Above all between the two bytes that begin a gzip member."""
    layer = archive(file("w/a", b"a" * 5000), file("w/b", b"b" * 5000))
    halves = layer[:6000], layer[6000:]
    packers = {
        "gzip": b"".join(map(gzip.compress, halves)),
        "padded": gzip.compress(halves[0]) + bytes(700) + gzip.compress(halves[1]) + bytes(3),
        "zstd": b"".join(map(zstandard.ZstdCompressor().compress, halves)),
        "plain": layer,
    }
    for name, packed in packers.items():
        target = tmp_path / name
        target.mkdir()
        unpack(chunks(packed, size), media_type="", prefix="w", destination=target, skip=nothing)
        assert sorted(path.name for path in target.iterdir()) == ["a", "b"], name


@pytest.mark.parametrize("end", [b"\x1f", b"\x1f\x8b", b"garbage", b"\0\0x"])
def test_what_follows_a_compressed_layer_and_is_neither_member_nor_padding_is_damage(
    tmp_path: Path, end: bytes
) -> None:
    with pytest.raises(Damaged):
        apply(tmp_path / "d", gzip.compress(archive(file("w/a"))) + end)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.ZstdCompressor().compress])
def test_an_archive_that_ends_before_its_end_is_damaged(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """Cut between two files, it looks whole."""
    whole = archive(file("w/a", b"a"), file("w/b", b"b"))
    with pytest.raises(Damaged, match="not closed"):
        apply(tmp_path / "cut", compress(whole[:1024]))
    assert set(apply(tmp_path / "one block", compress(whole[: 2048 + 512]))) == {"a", "b"}
    assert set(apply(tmp_path / "two blocks", compress(whole[: 2048 + 1024]))) == {"a", "b"}
    assert apply(tmp_path / "nothing in it", compress(archive())) == {}


@pytest.mark.parametrize("compress", [gzip.compress, lambda d: zstandard.ZstdCompressor().compress(d)])
def test_what_was_packed_a_thousandfold_is_unpacked_piece_by_piece(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    packed = compress(archive(file("w/zeros", bytes(100 << 20))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "d").mkdir()
    unpack(iter([packed]), media_type="", prefix="w", destination=tmp_path / "d", skip=nothing)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (tmp_path / "d" / "zeros").stat().st_size == 100 << 20
    assert grown < 48 << 10, f"{grown} KiB"
