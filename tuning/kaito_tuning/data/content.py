"""What a file holds, told by its first bytes: names from URLs are mangled (``x.parquet_download_true``) or cut off.

A compressed file counts as what is inside it; an archive (zip) as its members.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from kaito_tuning.data.forms import KNOWN_COLUMNS
from kaito_tuning.data.turns import looks_like_a_turn
from kaito_tuning.errors import DatasetInvalid

Kind = Literal["csv", "json", "parquet", "arrow"]
Compression = Literal["gzip", "bzip2", "xz", "zstd"]

DAMAGED = (EOFError, OSError, NotImplementedError, lzma.LZMAError, zipfile.BadZipFile, zlib.error)
"""What decompression raises for bytes that it cannot read; an OSError with an errno is another thing."""

_HEAD = 64 << 10
_SMALL = 4 << 20
_COMPRESSIONS: Mapping[bytes, Compression] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_ENCODINGS: Mapping[bytes, str] = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_QUOTED = re.compile(r'"[^"]*"')
_NO_ROWS = "neither JSON nor a table with a header"
_SAVE_AS = "save it as JSON lines, CSV or Parquet"
_FOREIGN: Mapping[bytes, str] = {
    b"%PDF": f"a PDF; {_SAVE_AS}",
    b"SQLite format 3\x00": f"an SQLite database; {_SAVE_AS}",
    b"\x89HDF": f"an HDF5 file; {_SAVE_AS}",
    b"Obj\x01": f"an Avro file; {_SAVE_AS}",
    b"ORC": f"an ORC file; {_SAVE_AS}",
    b"FEA1": f"a Feather file of the first version; {_SAVE_AS}",
    b"PARE": "an encrypted Parquet file; store it without encryption",
    b"\xd0\xcf\x11\xe0": f"an old Excel or Word file; {_SAVE_AS}",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for; fetch that (git lfs pull)",
}
_DOCUMENT_NAMES = {"readme", "license", "licence", "notice", "changelog", "citation", "contributing", "_success"}
_DOCUMENT_ENDINGS = {".md", ".rst", ".html", ".htm", ".yaml", ".yml", ".toml", ".py", ".ipynb", ".cff", ".lock", ".sh"}
_BESIDE_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
_ERROR_KEYS = {"error", "errors", "message", "detail", "details"}
_ANSWER_KEYS = _ERROR_KEYS | {"code", "status", "statuscode", "timestamp", "path", "requestid", "request_id", "type"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file with rows: ``name`` is what users know it by, ``member`` its place in the zip archive ``path``.

    ``doubtful``: a JSON object that may describe a data set (dataset_infos.json) rather than be one.
    """

    path: Path
    name: str
    kind: Kind
    compression: Compression | None = None
    member: zipfile.ZipInfo | None = None
    doubtful: bool = False

    def open(self) -> IO[bytes]:
        """The file's bytes, decompressed as they are read."""
        return _open(self.path, self.member, self.compression)

    def text(self) -> io.TextIOWrapper:
        """The file as text whose lines end at line feeds alone; bytes that are not UTF-8 become lone surrogates."""
        with self.open() as file:
            head = file.read(4)
        encoding = _encoding(head)
        errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
        return io.TextIOWrapper(self.open(), encoding=encoding, errors=errors, newline="\n")


@dataclass(frozen=True, slots=True)
class NotData:
    """A file without rows, and what it is instead; ``document`` when nobody would expect rows in it.

    ``as_csv``: how text of no known format is read when the configuration says that it is CSV.
    """

    name: str
    what: str
    document: bool = False
    as_csv: Source | None = None


def look(path: Path, name: str) -> Iterator[Source | NotData]:
    """What ``path`` holds: one thing, or one per member of a zip archive. Raises DatasetInvalid for error pages."""
    name = printable(name)
    with path.open("rb") as file:
        head = file.read(4)
    if head not in (b"PK\x03\x04", b"PK\x05\x06"):
        yield _look(path, name, None)
        return
    try:
        members = [member for member in _archive(path).infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DatasetInvalid(f"{name} is a damaged zip archive: {error}") from None
    if any(member.filename == "[Content_Types].xml" for member in members):
        yield NotData(name, f"an Excel or Word file; {_SAVE_AS}")
        return
    if not members:
        yield NotData(name, "an empty zip archive")
    elif all(map(_is_hidden, members)):
        yield NotData(name, "a zip archive whose files are hidden or outside of it")
    for member in members:
        inside = PurePosixPath(member.filename)
        if _is_hidden(member):
            continue
        if member.flag_bits & 1:
            raise DatasetInvalid(f"{name} is a zip archive with a password; store it without one")
        yield _look(path, f"{name}/{inside}", member)


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(member.filename).parts)


def printable(text: str) -> str:
    """Text with what UTF-8 cannot hold escaped, such as the bytes of a file's name that are none."""
    return text.encode(errors="backslashreplace").decode()


def delimiter(header: str) -> str:
    """What parts the fields of a CSV file: the most frequent of comma, tab and semicolon in its first line, but for
    what is in quotes.
    """
    return max(",\t;", key=_QUOTED.sub("", header).count)


def _look(path: Path, name: str, member: zipfile.ZipInfo | None) -> Source | NotData:
    try:
        with _open(path, member, None) as file:
            start = file.read(8)
        compression = next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), None)
        with _open(path, member, compression) as file:
            head = file.read(_SMALL)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DatasetInvalid(f"{name} is damaged: {' '.join(str(error).split())[:200]}; download it again") from None
    plain = PurePosixPath(name.lower())
    if plain.stem in _DOCUMENT_NAMES or plain.suffix in _DOCUMENT_ENDINGS:
        return NotData(name, "a document", document=True)
    if not head:
        return NotData(name, "empty")
    found = _binary(head, name) or _text(head, name)
    if found is None:
        what = "plain text; put each text to train on into a column text" if plain.suffix == ".txt" else _NO_ROWS
        return NotData(name, what, as_csv=Source(path, name, "csv", compression, member))
    if isinstance(found, NotData):
        return found
    doubtful = found == "json" and len(head) < _SMALL and _describes(head, name)
    return Source(path, name, found, compression, member, doubtful)


def _binary(head: bytes, name: str) -> Kind | NotData | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            return NotData(name, what)
    if head[257:262] == b"ustar":
        return NotData(name, "a tar archive; unpack it first")
    if any(head.startswith(magic) for magic in _COMPRESSIONS) or head.startswith(b"PK\x03\x04"):
        return NotData(name, "compressed twice; unpack it once")
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return NotData(name, f"a pickle, which can run code; {_SAVE_AS}")
    return None


def _text(head: bytes, name: str) -> Kind | NotData | None:
    if _encoding(head) == "utf-8-sig" and head[:_HEAD].count(0) > len(head[:_HEAD]) // 10:
        return NotData(name, "neither UTF-8 text nor a format that can be read; save it as UTF-8")
    text = _decoded(head[:_HEAD])
    start, low = text.lstrip()[:1], name.lower()
    if not start:
        return NotData(name, "empty")
    if start == "<":
        raise DatasetInvalid(
            f"{name} holds a web page or XML, not data; does tuning.input.urls lead to a login or error page?"
        )
    if start in "{[":
        return "json"
    if "csv" in low or "tsv" in low or _is_table(text):
        return "csv"
    return None


def _describes(head: bytes, name: str) -> bool:
    """Whether a whole file is one JSON object without rows. Raises DatasetInvalid for a server's error."""
    try:
        value = json.loads(_decoded(head))
    except (ValueError, RecursionError):
        return False  # many objects, or a mistake that reading will name
    if not isinstance(value, dict) or KNOWN_COLUMNS & value.keys():
        return False
    keys = {key.lower() for key in value}
    if keys <= _ANSWER_KEYS and keys & _ERROR_KEYS:
        raise DatasetInvalid(f"{name} holds a server's answer, not data: {json.dumps(value)[:160]}")
    if PurePosixPath(name).name in _BESIDE_DATA:
        return True
    lists = (v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict))
    return not any(not looks_like_a_turn(found[0]) for found in lists)


def _encoding(head: bytes) -> str:
    return next((known for mark, known in _ENCODINGS.items() if head.startswith(mark)), "utf-8-sig")


def _decoded(head: bytes) -> str:
    return codecs.getincrementaldecoder(_encoding(head))("replace").decode(head)


def _is_table(text: str) -> bool:
    """Whether text begins with a header and a record that fits it."""
    text = text.lstrip("\r\n")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter(text.partition("\n")[0]))
    try:
        header, record = next(lines), next(lines)
    except (StopIteration, csv.Error):
        return False
    named = len(header) > 1 and all(re.fullmatch(r"[\w .\-]{0,60}", field) for field in header)
    return (named or header == ["text"]) and len(set(header)) == len(header) == len(record)


def _archive(path: Path) -> zipfile.ZipFile:
    """The archive as it lies there, whose directory is read once for all members."""
    state = path.stat()
    return _read_archive(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _read_archive(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)  # an open member keeps the file open when another archive takes its place


def _open(path: Path, member: zipfile.ZipInfo | None, compression: Compression | None) -> IO[bytes]:
    file: IO[bytes]
    file = path.open("rb") if member is None else _archive(path).open(member)
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(file))
    if compression == "bzip2":
        return cast(IO[bytes], bz2.open(file))
    if compression == "xz":
        return cast(IO[bytes], lzma.open(file))
    if compression == "zstd":
        import pyarrow

        return cast(IO[bytes], io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd")))
    return file
