"""From a data set's columns to what training takes.

Three forms come out: ``messages`` (trained on the assistant's turns but those of weight 0), ``prompt`` and
``completion`` (trained on the completion; both texts or both lists of messages) and ``text`` (trained on everything).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data.turns import NO_TOOLS, Row, Unusable, encodable, listed, shown, turn, turns
from kaito_tuning.errors import DatasetInvalid

Form = Literal["messages", "prompt-completion", "text"]

KNOWN_COLUMNS = {"messages", "conversations", "prompt", "completion", "instruction", "text", "question", "answer"}
"""What columns of training data are called; an object that has one is a row."""

_CONTEXTS = ("input", "context")
"""Columns of what an instruction is about."""

_ANSWERS = ("output", "response")
"""Columns of what answers an instruction."""

_BESIDE = ("system", "tools")
_READ = frozenset(
    {"messages", "conversations", "prompt", "completion", "instruction", "text", *_CONTEXTS, *_ANSWERS, *_BESIDE}
)
"""All columns that rows of some form are made of without being named in the configuration."""

_WANTED = (
    "needed is messages, conversations, prompt and completion, instruction and output, or text (or name yours with "
    "DatasetConfig.messages_column, context_column, response_column)"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become training rows of one form: ``columns`` are all that is read, ``row`` raises Unusable.

    ``left_out``: a sentence about columns that rows of other forms are made of; "" when there are none.
    """

    form: Form
    columns: tuple[str, ...]
    row: Callable[[Mapping[str, Any]], Row]
    left_out: str = ""


def reading(columns: Sequence[str], config: DatasetConfig) -> Reading:
    """The reading that the configuration names, else the one that the columns tell. Raises DatasetInvalid."""
    beside = tuple(name for name in _BESIDE if name in columns)
    if config.messages_column:
        _require(config.messages_column, columns, "messages_column")
        return _turns(config.messages_column, beside)
    if config.response_column and config.context_column:
        _require(config.context_column, columns, "context_column")
        _require(config.response_column, columns, "response_column")
        return _pairs(config.context_column, config.response_column, beside)
    if config.response_column:
        _require(config.response_column, columns, "response_column")
        return _texts(config.response_column)
    if config.context_column:
        raise DatasetInvalid("DatasetConfig.context_column needs response_column beside it: what is to be answered")
    found = _told(columns, beside)
    if others := [name for name in columns if name in _READ and name not in found.columns]:
        needed = [name for name in found.columns if name not in (*_CONTEXTS, *_BESIDE)]
        are = "column {} is" if len(others) == 1 else "columns {} are"
        sentence = f"the {are.format(_listed(others))} left out; the rows are those of {' and '.join(needed)}"
        return replace(found, left_out=sentence)
    return found


def _told(columns: Sequence[str], beside: tuple[str, ...]) -> Reading:
    """The reading that the names of the columns tell."""
    present = set(columns)
    for name in ("messages", "conversations"):
        if name in present:
            return _turns(name, beside)
    if {"prompt", "completion"} <= present:
        return _pairs("prompt", "completion", beside)
    answers = tuple(name for name in _ANSWERS if name in present)
    if "instruction" in present and answers:
        return _instructions(answers, tuple(name for name in _CONTEXTS if name in present), beside)
    if "text" in present:
        return _texts("text")
    raise DatasetInvalid(f"the data set has the columns {_listed(columns)}; {_hint(columns) or _WANTED}")


def conversation(row: Mapping[str, Any]) -> list[Row] | None:
    """All messages of a training row; None for a row of texts."""
    if "messages" in row:
        return [{key: value for key, value in message.items() if value is not None} for message in row["messages"]]
    if isinstance(row.get("prompt"), list):
        return [*row["prompt"], *row["completion"]]
    return None


def _answered(messages: list[Row]) -> list[Row]:
    if messages[-1]["role"] != "assistant":
        raise Unusable(f"the last message is the {messages[-1]['role']}'s; it must be the assistant's")
    return messages


def _learned(messages: list[Row]) -> list[Row]:
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise Unusable("the assistant's messages all have weight 0: there is nothing to learn")
    return messages


def _turns(column: str, beside: tuple[str, ...]) -> Reading:
    def row(given: Mapping[str, Any]) -> Row:
        _without_tools(given)
        return {"messages": _learned(_answered(_with_system(turns(given.get(column), column), given)))}

    return Reading("messages", (column, *beside), row)


def _pairs(prompt: str, completion: str, beside: tuple[str, ...]) -> Reading:
    def row(given: Mapping[str, Any]) -> Row:
        asked, answered = listed(given.get(prompt), prompt), listed(given.get(completion), completion)
        if not isinstance(asked, list) and not isinstance(answered, list):
            _without_tools(given)
            if _system(given):
                raise Unusable(
                    f"column system cannot be put before column {prompt}, which holds a text; write it into that text, "
                    f"or make {prompt} and {completion} lists of messages"
                )
            return {"prompt": _text(given, prompt), "completion": _text(given, completion)}
        _without_tools(given)
        if not isinstance(asked, list) or not isinstance(answered, list):
            raise Unusable(f"{prompt} and {completion} must both be texts or both be lists of messages")
        before = [_unweighted(message) for message in _with_system(turns(asked), given)]
        after = [message for message in map(turn, answered) if message is not None]
        if not after or {message["role"] for message in after} != {"assistant"}:
            raise Unusable(f"{completion} must hold the assistant's messages alone")
        if any(message.get("weight") == 0 for message in after):
            raise Unusable(f"{completion} holds a message of weight 0; put such conversations into a column messages")
        if before[-1]["role"] != "user":
            raise Unusable(f"the last message of {prompt} must be the user's")
        return {"prompt": before, "completion": after}

    return Reading("prompt-completion", (prompt, completion, *beside), row)


def _unweighted(message: Row) -> Row:
    """Nothing of a prompt is learned."""
    return {"role": message["role"], "content": message["content"]}


def _instructions(answers: tuple[str, ...], contexts: tuple[str, ...], beside: tuple[str, ...]) -> Reading:
    """Rows as those of Alpaca and Dolly: the user gives the instruction and what it is about, the model answers.

    Both are looked up in each row: rows of JSON need not have the names that the first ones have.
    """

    def row(given: Mapping[str, Any]) -> Row:
        _without_tools(given)
        answered = [name for name in _ANSWERS if not _is_blank(given.get(name))]
        if len({str(given[name]) for name in answered}) > 1:
            raise Unusable(f"columns {' and '.join(answered)} hold different answers; leave one of them out")
        asked = [_text(given, "instruction"), *dict.fromkeys(_about(given))]
        return {
            "prompt": _with_system([{"role": "user", "content": "\n\n".join(asked)}], given),
            "completion": [{"role": "assistant", "content": _text(given, next(iter(answered), answers[0]))}],
        }

    return Reading("prompt-completion", ("instruction", *answers, *contexts, *beside), row)


def _about(given: Mapping[str, Any]) -> Iterator[str]:
    for name in _CONTEXTS:
        value = given.get(name)
        if _is_blank(value):
            continue
        if not isinstance(value, str):
            raise Unusable(f"column {name} is no text, got {shown(value)}")
        yield encodable(value).strip()


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _texts(column: str) -> Reading:
    return Reading("text", (column,), lambda given: {"text": _text(given, column)})


def _with_system(messages: list[Row], given: Mapping[str, Any]) -> list[Row]:
    system = _system(given)
    if system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if system and messages[0]["content"].strip() != system.strip():
        raise Unusable("column system and the system message of the conversation differ; leave one of them out")
    return messages


def _system(given: Mapping[str, Any]) -> str:
    system = given.get("system")
    if _is_blank(system):
        return ""
    if not isinstance(system, str):
        raise Unusable(f"column system is no text, got {shown(system)}")
    return encodable(system)


def _without_tools(given: Mapping[str, Any]) -> None:
    if given.get("tools") not in (None, "", "[]", []):
        raise Unusable(f"the row declares tools; {NO_TOOLS}")


def _text(given: Mapping[str, Any], column: str) -> str:
    value = given.get(column)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"column {column} is empty or no text, got {shown(value)}")
    if listed(value, column) is not value:
        raise Unusable(f"column {column} holds messages as JSON; name it with DatasetConfig.messages_column")
    return encodable(value)


def _require(column: str, columns: Sequence[str], key: str) -> None:
    if column not in columns:
        raise DatasetInvalid(f"DatasetConfig.{key}: there is no column {column}; the data set has {_listed(columns)}")


def _hint(columns: Sequence[str]) -> str:
    present = set(columns)
    plain = [name.strip().lower() for name in columns]
    known = [name for name in plain if name in KNOWN_COLUMNS]
    if known and not KNOWN_COLUMNS & present:
        them = "it" if len(columns) == 1 else "them"
        return f"names are taken as they are written: rename {them} to {', '.join(plain)}"
    if {"chosen", "rejected"} <= present:
        return (
            "rows to prefer one answer by (chosen, rejected) cannot be trained on here; to train on the chosen answers "
            "name them with DatasetConfig.messages_column (conversations) or context_column and response_column (texts)"
        )
    for asked, answered in (("question", "answer"), ("query", "response"), ("input", "output"), ("source", "target")):
        if {asked, answered} <= present:
            return f"did you mean DatasetConfig.context_column: {asked} and response_column: {answered}?"
    if columns and all(len(name.split()) > 1 or name.endswith(("?", ".", "!")) for name in columns):
        return "is its first line the names of the columns?"
    return ""


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns[:20]) + (f" and {len(columns) - 20} more" if len(columns) > 20 else "") or "no columns"
