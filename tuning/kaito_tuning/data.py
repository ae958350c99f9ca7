"""The data set: found, read, checked row by row and brought into one of two forms before the model is loaded.

Rows come out either as ``{"messages": [{"role", "content"}, ...]}`` (trained on the assistant's turns), as
``{"prompt", "completion"}`` (trained on the completion) or as ``{"text"}`` (trained on everything). What a file holds
is decided by its first bytes, then by its name: names that come from URLs are often mangled
(``x.parquet_download_true``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaito_tuning.config import DatasetConfig
from kaito_tuning.errors import DatasetInvalid

if TYPE_CHECKING:
    from datasets import Dataset

Form = Literal["messages", "prompt-completion", "text"]
Row = dict[str, Any]

_KINDS = ("csv", "json", "parquet", "arrow")
_ROLES = {"system", "user", "assistant"}
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Data:
    """Checked rows; ``evaluation`` is empty when nothing is held back."""

    path: Path
    form: Form
    training: list[Row]
    evaluation: list[Row]


def find(folder: Path, config: DatasetConfig) -> Path:
    """The file to train on: ``dataset_path`` below /mnt, else the first in ``folder`` whose name tells a known kind."""
    if config.dataset_path:
        path = Path("/mnt", config.dataset_path.removeprefix("/mnt/").lstrip("/"))
        if not path.is_file():
            raise DatasetInvalid(f"DatasetConfig.dataset_path: there is no file {path}")
        return path
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    for path in files:
        if any(kind in path.name.lower() for kind in _KINDS):
            return path
    if not files:
        raise DatasetInvalid(f"there is no file in {folder}; tuning.input brought no data")
    names = ", ".join(p.name for p in files[:5])
    raise DatasetInvalid(
        f"no file in {folder} has csv, json, parquet or arrow in its name (found {names}); "
        "name one with DatasetConfig.dataset_path and dataset_extension"
    )


def load(folder: Path, config: DatasetConfig) -> Data:
    """Finds, reads, checks, shuffles and splits the data set. Raises DatasetInvalid with one sentence."""
    path = find(folder, config)
    rows = _read(path, config.dataset_extension)
    if not rows:
        raise DatasetInvalid(f"{path.name} has no rows")
    form, checked = normalise(rows, config)
    if config.shuffle_dataset:
        random.Random(config.shuffle_seed).shuffle(checked)
    keep = len(checked) if config.train_test_split == 1 else round(len(checked) * config.train_test_split)
    if keep == 0:
        raise DatasetInvalid(
            f"train_test_split {config.train_test_split} of {len(checked)} rows leaves none to train on"
        )
    return Data(path=path, form=form, training=checked[:keep], evaluation=checked[keep:])


def normalise(rows: Sequence[Mapping[str, Any]], config: DatasetConfig) -> tuple[Form, list[Row]]:
    """Every row in one form. Raises DatasetInvalid naming the row and what is wrong with it."""
    columns = list(rows[0])
    if config.messages_column:
        _require(config.messages_column, columns, "messages_column")
        return "messages", [{"messages": _messages(r[config.messages_column], i)} for i, r in enumerate(rows)]
    if config.response_column and config.context_column:
        _require(config.context_column, columns, "context_column")
        _require(config.response_column, columns, "response_column")
        return "prompt-completion", _pairs(rows, config.context_column, config.response_column)
    if config.response_column:
        _require(config.response_column, columns, "response_column")
        return "text", _texts(rows, config.response_column)
    if "messages" in columns:
        return "messages", [{"messages": _messages(r.get("messages"), i)} for i, r in enumerate(rows)]
    if "conversations" in columns:
        return "messages", [{"messages": _sharegpt(r.get("conversations"), i)} for i, r in enumerate(rows)]
    if {"prompt", "completion"} <= set(columns):
        return "prompt-completion", _pairs(rows, "prompt", "completion")
    if "text" in columns:
        return "text", _texts(rows, "text")
    raise DatasetInvalid(
        f"the data set has the columns {', '.join(columns)}; needed is messages, conversations, prompt and completion, "
        "or text (or name yours with DatasetConfig.messages_column, context_column, response_column)"
    )


def as_dataset(rows: Sequence[Row]) -> Dataset:
    """The rows as a datasets.Dataset."""
    from datasets import Dataset

    return Dataset.from_list(list(rows))


def _read(path: Path, extension: str | None) -> list[Row]:
    kind = extension.lower().lstrip(".") if extension else _kind(path)
    try:
        if kind in ("json", "jsonl"):
            return _read_json(path)
        if kind == "csv":
            import csv

            with path.open(newline="", encoding="utf-8-sig") as lines:
                return [dict(row) for row in csv.DictReader(lines, strict=True)]
        if kind in ("parquet", "arrow"):
            from datasets import Dataset

            read = Dataset.from_parquet if kind == "parquet" else Dataset.from_file
            table: Iterable[Row] = read(str(path))
            return [*table]
    except DatasetInvalid:
        raise
    except Exception as error:  # pyarrow and csv raise many types for a broken file; all mean the same to the user
        raise DatasetInvalid(f"{path.name} cannot be read as {kind}: {' '.join(str(error).split())[:300]}") from error
    raise DatasetInvalid(f"DatasetConfig.dataset_extension {extension!r} is none of csv, json, jsonl, parquet, arrow")


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"<":
        raise DatasetInvalid(
            f"{path.name} holds a web page, not data; does tuning.input.urls lead to a login or error page?"
        )
    if start in (b"{", b"["):
        return "json"
    name = path.name.lower()
    return next((kind for kind in _KINDS if kind in name), "csv")


def _read_json(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows: list[Row] = json.loads(text)
        except ValueError as error:
            raise DatasetInvalid(f"{path.name} is not JSON: {error}") from None
    else:
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DatasetInvalid(f"{path.name}, line {number} is not JSON: {error}") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DatasetInvalid(f"{path.name}, row {number} is {type(row).__name__}, not an object with named columns")
    return rows


def _require(column: str, columns: Sequence[str], key: str) -> None:
    if column not in columns:
        raise DatasetInvalid(f"DatasetConfig.{key}: there is no column {column}; the data set has {', '.join(columns)}")


def _messages(value: object, index: int) -> list[Row]:
    if not isinstance(value, list) or not value:
        raise DatasetInvalid(f"row {index + 1}: messages must be a list of role and content, got {_shown(value)}")
    messages: list[Row] = []
    for message in value:
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise DatasetInvalid(f"row {index + 1}: unknown role {role!r}; known are system, user and assistant")
        if not isinstance(content, str) or not content.strip():
            raise DatasetInvalid(f"row {index + 1}: the {role}'s content is empty")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise DatasetInvalid(
            f"row {index + 1}: the last message is the {messages[-1]['role']}'s; it must be the assistant's"
        )
    return messages


def _sharegpt(value: object, index: int) -> list[Row]:
    turns = value if isinstance(value, list) else []
    renamed: list[object] = [
        {"role": _SHAREGPT_ROLES.get(t.get("from", ""), t.get("from")), "content": t.get("value")}
        for t in turns
        if isinstance(t, Mapping)
    ]
    return _messages(renamed or value, index)


def _pairs(rows: Sequence[Mapping[str, Any]], prompt: str, completion: str) -> list[Row]:
    return [{"prompt": _text(row, prompt, i), "completion": _text(row, completion, i)} for i, row in enumerate(rows)]


def _texts(rows: Sequence[Mapping[str, Any]], column: str) -> list[Row]:
    return [{"text": _text(row, column, i)} for i, row in enumerate(rows)]


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DatasetInvalid(f"row {index + 1}: column {column} is empty or no text, got {_shown(value)}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
