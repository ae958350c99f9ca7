"""A YAML document that a user wrote, read so that it can neither exhaust nor stop the controller of everybody.

What it may cost is bounded before anything is built from it: an alias could multiply its content at every level
(https://en.wikipedia.org/wiki/Billion_laughs_attack), and values may be no more than a few kilobytes of text.
"""

from __future__ import annotations

import reprlib
from typing import Any

import yaml
from yaml.constructor import ConstructorError

MAX_SIZE = 32 * 1024
"""Characters of a document."""
MAX_DEPTH = 20
_MAX_SHOWN = 100
_MAX_BITS = 64
_CONVERSION_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What PyYAML's constructors let through of a scalar that is not of its type, such as the timestamp 2024-02-30."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _MAX_SHOWN


class ConfigInvalid(Exception):
    """The document cannot be read. One sentence: where, what, what to do instead."""


def read(text: str) -> Any:
    """The one document of the text, as plain data; ConfigInvalid, in one sentence, if it is none or costs too much."""
    if len(text) > MAX_SIZE:
        raise ConfigInvalid(f"it has more than {MAX_SIZE} characters; shorten it")
    try:
        _bound(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ConfigInvalid(f"it cannot be read: {where}") from error


def shown(value: object) -> str:
    """The value for a message, cut short."""
    return _REPR.repr(value)


def shown_name(name: object) -> str:
    """The name of a section or a field for a message, cut short."""
    text = str(name)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _bound(text: str) -> None:
    """Walk through the document without building it; ConfigInvalid if it is not to be built."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            name = shown_name(event.anchor)
            raise ConfigInvalid(f"aliases are not read; write out what *{name} stands for{_place(event)}")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigInvalid(f"more than {MAX_DEPTH} levels are nested{_place(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _place(event: yaml.Event) -> str:
    return f" in line {event.start_mark.line + 1}" if event.start_mark is not None else ""


class _Loader(yaml.CSafeLoader):
    """libyaml's loader, whose every failure is a YAMLError."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except _CONVERSION_ERRORS as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{shown(node.value)} is no {kind}", node.start_mark) from error
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            problem = f"{shown(node.value)} is a number of more than {_MAX_BITS} bits"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value
