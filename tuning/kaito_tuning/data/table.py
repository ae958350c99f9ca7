"""From files to tables: rows are read, checked and written to disk a few at a time, then mapped as datasets.Dataset.

Memory holds one batch of rows (some MiB), whatever the size of the data set.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import files
from kaito_tuning.data.content import printable
from kaito_tuning.data.forms import Form
from kaito_tuning.data.rows import Refusal, Rows, Weighted
from kaito_tuning.errors import DatasetInvalid

if TYPE_CHECKING:
    from datasets import Dataset

_NAMED = 5


@dataclass(frozen=True)
class Data:
    """Checked rows as Arrow tables mapped from disk; ``evaluation`` is None when nothing is held back.

    Columns: ``messages`` [{role, content}], or ``prompt`` and ``completion`` (both texts or both lists of messages), or
    ``text``. ``files`` are what the rows came from, in order; ``skipped`` counts rows that were left out as unusable;
    ``warnings`` are sentences for the user; ``cut`` says that ``max_bytes`` ended the reading. ``weighted``: messages
    have a ``weight``, 0 for those of the assistant that are not learned, else null.
    """

    training: Dataset
    evaluation: Dataset | None
    form: Form
    files: tuple[Path, ...]
    skipped: int = 0
    warnings: tuple[str, ...] = ()
    cut: bool = False
    weighted: bool = False
    known_digest: str = field(default="", repr=False, compare=False)
    # Holds the tables' files for as long as somebody holds the data.
    scratch: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over the bytes of all files, in order."""
        if self.known_digest:
            return self.known_digest
        sha256 = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    sha256.update(block)
        return sha256.hexdigest()

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files' names as they can be printed."""
        return tuple(printable(path.name) for path in self.files)

    @property
    def names(self) -> str:
        """The files' names, for a sentence; of many the first."""
        more = len(self.files) - _NAMED
        return ", ".join(self.file_names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Written:
    """Tables on disk, neither shuffled nor split; the other fields are those of Data."""

    training: Path
    evaluation: Path | None
    form: Form
    files: tuple[Path, ...]
    skipped: int
    warnings: tuple[str, ...]
    cut: bool
    weighted: bool


def load(
    folder: Path,
    config: DatasetConfig,
    *,
    refusal: Refusal = lambda _: "",
    cache: Path | None = None,
    max_bytes: int | None = None,
) -> Data:
    """Finds, reads, checks, shuffles and splits the data set. Raises DatasetInvalid with one sentence.

    ``refusal`` is asked about every conversation; what it refuses is a bad row. ``cache``: where the tables are
    written, about as large as the texts; the machine's temporary folder by default. ``max_bytes``: no more text than
    that is read. Errors of the disk are raised as OSError.
    """
    return read(files.select(folder, config), config, refusal=refusal, cache=cache, max_bytes=max_bytes)


def read(
    selection: files.Selection,
    config: DatasetConfig,
    *,
    refusal: Refusal = lambda _: "",
    cache: Path | None = None,
    max_bytes: int | None = None,
) -> Data:
    """The rows of the selected files, as `load` gives them."""
    written, scratch = write(selection, config, refusal=refusal, cache=cache, max_bytes=max_bytes)
    return opened(written, config, scratch=scratch)


def write(
    selection: files.Selection,
    config: DatasetConfig,
    *,
    refusal: Refusal = lambda _: "",
    cache: Path | None = None,
    max_bytes: int | None = None,
) -> tuple[Written, tempfile.TemporaryDirectory[str]]:
    """The tables of the selected files, and the folder that holds them."""
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix="kaito-data-", dir=cache, ignore_cleanup_errors=True)
    sources = (*selection.training, *selection.evaluation)

    def tables(*, weighted: bool) -> tuple[Rows, tuple[Path, int], tuple[Path, int]]:
        rows = Rows(
            config, Path(scratch.name), refusal, several=len(sources) > 1, max_bytes=max_bytes, weighted=weighted
        )
        return rows, rows.write("training", selection.training), rows.write("evaluation", selection.evaluation)

    try:
        rows, (training, training_rows), (evaluation, evaluation_rows) = tables(weighted=False)
    except Weighted:
        rows, (training, training_rows), (evaluation, evaluation_rows) = tables(weighted=True)
    warnings = [*selection.warnings, *rows.judge()]
    if training_rows == 0:
        raise DatasetInvalid(f"{', '.join(source.name for source in selection.training[:5])} has no rows")
    if rows.cut:
        warnings.append(f"only the first {_mebibytes(max_bytes or 0)} of the data were read")
    written = Written(
        training=training,
        evaluation=evaluation if evaluation_rows else None,
        form=rows.form,
        files=tuple(dict.fromkeys(source.path for source in sources)),
        skipped=rows.bad,
        warnings=tuple(warnings),
        cut=rows.cut,
        weighted=rows.weighted,
    )
    return written, scratch


def opened(
    written: Written,
    config: DatasetConfig,
    *,
    scratch: tempfile.TemporaryDirectory[str] | None = None,
    digest: str = "",
) -> Data:
    """The tables shuffled and split, which comes out the same in every process. ``digest``: if it is known."""
    from datasets import Dataset

    warnings = list(written.warnings)
    training = Dataset.from_file(str(written.training))
    if config.shuffle_dataset:
        training = training.shuffle(seed=config.shuffle_seed, keep_in_memory=True)
    evaluation = Dataset.from_file(str(written.evaluation)) if written.evaluation else None
    if evaluation is None:
        share = config.train_test_split
        training, evaluation = _split(training, share)
        if evaluation is None and share != 1:
            warnings.append(
                f"DatasetConfig.train_test_split {share} of {len(training):,} rows holds none back: nothing is "
                "evaluated; lower it, or set 1"
            )
    return Data(
        training=training,
        evaluation=evaluation,
        form=written.form,
        files=written.files,
        skipped=written.skipped,
        warnings=tuple(warnings),
        cut=written.cut,
        weighted=written.weighted,
        known_digest=digest,
        scratch=scratch,
    )


def _split(rows: Dataset, share: float) -> tuple[Dataset, Dataset | None]:
    keep = len(rows) if share == 1 else round(len(rows) * share)
    if keep == 0:
        raise DatasetInvalid(f"train_test_split {share} of {len(rows)} rows leaves none to train on")
    if keep == len(rows):
        return rows, None
    return rows.select(range(keep)), rows.select(range(keep, len(rows)))


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
