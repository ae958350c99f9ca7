"""Which files are the data set: all of one kind together, a test file beside others as the evaluation split."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from kaito_tuning.config import MOUNT, DatasetConfig
from kaito_tuning.data import places
from kaito_tuning.data.content import Kind, NotData, Source, look
from kaito_tuning.errors import DatasetInvalid

_SHOWN = 5
_SPLITS = {"validation": {"validation", "valid", "val", "eval", "evaluation", "dev"}, "test": {"test", "testing"}}


@dataclass(frozen=True, slots=True)
class Selection:
    """Files with rows to train on and to evaluate on; ``warnings`` name what is left out and why."""

    training: tuple[Source, ...]
    evaluation: tuple[Source, ...]
    warnings: tuple[str, ...]


def select(folder: Path, config: DatasetConfig) -> Selection:
    """``dataset_path`` (a file or a folder below /mnt), else what lies below ``folder``. Raises DatasetInvalid."""
    if config.dataset_path:
        named = Path(posixpath.normpath(posixpath.join(MOUNT, config.dataset_path.removeprefix("/mnt/").lstrip("/"))))
        if not named.is_relative_to(MOUNT) or "\0" in config.dataset_path:
            raise DatasetInvalid(
                f"DatasetConfig.dataset_path must be a file or a folder below {MOUNT}, got {config.dataset_path!r}"
            )
        if not places.exists(named):
            raise DatasetInvalid(f"DatasetConfig.dataset_path: there is no file {named}")
        places.check(named)
        if named.is_file():
            return choose(list(look(named, named.name)), config, where=str(named))
        folder = named
    return choose(_below(folder, within=folder), config, str(folder))


def among(paths: Sequence[Path], config: DatasetConfig) -> Selection:
    """The same of files and folders that are named one by one."""
    found: list[Source | NotData] = []
    for path in paths:
        places.check(path)
        found += _below(path) if path.is_dir() else look(path, path.name)
    return choose(found, config, ", ".join(map(str, paths[:_SHOWN])))


def choose(found: Sequence[Source | NotData], config: DatasetConfig, where: str) -> Selection:
    """What of ``found`` is used. ``where`` names the place in sentences."""
    if not found:
        raise DatasetInvalid(f"there is no file in {where}; tuning.input brought no data")
    sources = _as_asked(found, config)
    others = [item for item in found if isinstance(item, NotData)]
    if not sources:
        what = "; ".join(f"{other.name} is {other.what}" for other in others[:_SHOWN])
        raise DatasetInvalid(f"no file in {where} holds rows as CSV, JSON, Parquet or Arrow: {what}")
    describing = [source for source in sources if source.doubtful]
    if len(describing) < len(sources):
        sources = [source for source in sources if not source.doubtful]
    else:
        describing = []
    kind = sources[0].kind
    same = [source for source in sources if source.kind == kind]
    warnings = [
        *(f"{other.name} is {other.what}: left out" for other in others if not other.document),
        *(f"{source.name} describes the data: left out" for source in describing),
    ]
    if len(same) < len(sources):
        left = [source for source in sources if source.kind != kind]
        kinds = " and ".join(sorted({source.kind for source in left}))
        warnings.append(
            f"only files of one kind are read together: {kind} is used, {kinds} is left out ({_names(left)}); "
            "DatasetConfig.dataset_extension chooses"
        )
    training, evaluation, said = _splits(same)
    return Selection(tuple(training), tuple(evaluation), (*warnings, *said))


def _as_asked(found: Sequence[Source | NotData], config: DatasetConfig) -> list[Source]:
    """All sources; with dataset_extension those of that kind, else any text read as it."""
    sources = [item for item in found if isinstance(item, Source)]
    if not config.dataset_extension:
        return sources
    asked = config.dataset_extension.lower().lstrip(".")
    kind = {"jsonl": "json", "ndjson": "json", "tsv": "csv", "feather": "arrow"}.get(asked, asked)
    if kind not in get_args(Kind):
        raise DatasetInvalid(
            f"DatasetConfig.dataset_extension {config.dataset_extension!r} is none of csv, json, jsonl, parquet, arrow"
        )
    of_kind = [source for source in sources if source.kind == kind]
    # What is text can be read as another kind of text; what is binary cannot.
    as_text = [replace(source, kind=cast(Kind, kind)) for source in sources if source.kind in ("csv", "json")]
    as_text += [item.as_csv for item in found if isinstance(item, NotData) and item.as_csv and kind == "csv"]
    if of_kind or (as_text and kind in ("csv", "json")):
        return of_kind or as_text
    raise DatasetInvalid(
        f"DatasetConfig.dataset_extension is {config.dataset_extension}, but no file is {kind} by its content"
        + (f": {_names(sources, with_kind=True)}" if sources else "")
    )


def _splits(sources: Sequence[Source]) -> tuple[list[Source], list[Source], list[str]]:
    by_split: dict[str, list[Source]] = {"training": [], "validation": [], "test": []}
    for source in sources:
        by_split[_split(source.name)].append(source)
    training, validation, test = by_split.values()
    if not training:
        return list(sources), [], []
    evaluation = validation or test
    if not evaluation:
        return training, [], []
    said = [f"held back for evaluation, by its name: {_names(evaluation)}"]
    if validation and test:
        said.append(f"left out, because a validation split is there: {_names(test)}")
    return training, evaluation, said


def _split(name: str) -> str:
    words = set(re.split(r"[^a-z]+", name.lower()))
    if words & {"train", "training"}:
        return "training"
    return next((split for split, known in _SPLITS.items() if words & known), "training")


def _below(folder: Path, *, within: Path | None = None) -> list[Source | NotData]:
    found: list[Source | NotData] = []
    for path, what in places.below(folder, within=within):
        name = str(path.relative_to(folder))
        found += [NotData(name, what)] if what else look(path, name)
    return found


def _names(sources: Sequence[Source], *, with_kind: bool = False) -> str:
    shown = [f"{source.name} is {source.kind}" if with_kind else source.name for source in sources[:_SHOWN]]
    more = len(sources) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
