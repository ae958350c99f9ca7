"""Conversations: roles known and in order, nothing empty, in the one shape that training takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kaito_tuning.json_names import Decoder

Row = dict[str, Any]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOLS = {"tool", "tools", "function", "function_call", "function_response", "observation", "ipython"}
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_JSON = re.compile(r"""\s*\[\s*\{\s*\"""")
_SPEAKER = re.compile(r"""["'](?:role|from)["']\s*:""")
_SAID = re.compile(r"""["'](?:content|value)["']\s*:""")
_REASONING = ("reasoning_content", "reasoning", "thinking")
NO_TOOLS = "tool calls cannot be trained here; leave such rows out, or write the calls into the contents"


class Unusable(Exception):
    """A row that cannot be trained on; the text says why."""


def looks_like_a_turn(value: Mapping[str, Any]) -> bool:
    """Whether an object is one message of a conversation rather than a row."""
    return ("role" in value and "content" in value) or ("from" in value and "value" in value)


def listed(value: object, column: str) -> object:
    """What a column of text holds, where that is messages as JSON; all else as it is. Raises Unusable."""
    if not isinstance(value, str) or not _MESSAGES.match(value):
        return value
    decoder = Decoder()
    try:
        found = decoder.decode(value)
    except (ValueError, RecursionError):
        if not (_SPEAKER.search(value) and _SAID.search(value)):
            return value  # a list in some program's words, say
        if _JSON.match(value):
            raise Unusable(f"column {column} holds messages that are no JSON; is the text cut off?") from None
        raise Unusable(
            f"column {column} holds messages as Python writes them, not as JSON; write them with json.dumps, or save "
            "the rows as JSON lines or Parquet"
        ) from None
    if not isinstance(found, list) or not all(map(_is_turn, found)):
        return value
    if decoder.twice:
        raise Unusable(f"column {column} holds an object that has {decoder.twice} twice")
    return found


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and looks_like_a_turn(value)


def turns(value: object, column: str = "messages") -> list[Row]:
    """A conversation as [{role, content}]: roles known and in order, nothing empty. Raises Unusable."""
    value = listed(value, column)
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        # How datasets' Sequence of named fields is stored.
        value = [dict(zip(value, fields, strict=False)) for fields in zip(*value.values(), strict=False)]
    if not isinstance(value, list) or not value:
        raise Unusable(f"messages must be a list of role and content, got {shown(value)}")
    found = [message for message in map(turn, value) if message is not None]
    if not found:
        raise Unusable("messages hold an empty system text alone")
    for before, message in zip([None, *found], found, strict=False):
        if message["role"] == "system" and before is not None:
            raise Unusable("a system message comes after other messages; it must be the first")
        if message["role"] == "assistant" and (before is None or before["role"] == "system"):
            raise Unusable("the assistant speaks first; a user's message must come before")
    return found


def turn(message: object) -> Row | None:
    """One message as {role, content}; None for an empty system text. Raises Unusable.

    The assistant's has a weight, 0, where it is not to be learned (OpenAI's fine-tuning format).
    """
    if not isinstance(message, Mapping):
        raise Unusable(f"a message must have role and content, got {shown(message)}")
    named, content = _one(message, "role", "from"), _one(message, "content", "value")
    if (isinstance(named, str) and named in _TOOLS) or message.get("tool_calls") or message.get("function_call"):
        raise Unusable(f"the {named} calls a tool or answers a call; {NO_TOOLS}")
    for name in _REASONING:
        if message.get(name):
            raise Unusable(f"a message has {name}, which is not trained on; write it into the content, or leave it out")
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise Unusable(f"unknown role {shown(named)}; known are system, user and assistant")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content)
    if content is not None and not isinstance(content, str):
        raise Unusable(f"the {role}'s content is no text, got {shown(content)}")
    if not content or not content.strip():
        if role == "system":
            return None
        raise Unusable(f"the {role}'s content is empty")
    found = {"role": role, "content": encodable(content)}
    weight = message.get("weight") if role == "assistant" else None
    if weight not in (None, 0, 1):
        raise Unusable(f"the assistant's weight must be 0 or 1, got {shown(weight)}")
    return found if weight is None or weight else {**found, "weight": 0}


def _one(message: Mapping[str, Any], *names: str) -> Any:
    """The value of the field that has one, of those that mean the same."""
    found = {name: message[name] for name in names if message.get(name) is not None}
    if len(found) == len(names) and not _same(*found.values()):
        raise Unusable(f"a message has {' and '.join(names)}, which differ; leave one of them out")
    return next(iter(found.values()), None)


def _same(first: object, second: object) -> bool:
    """Whether two values are equal, or two names those of one role."""
    if isinstance(first, str) and isinstance(second, str):
        return first == second or (_ROLES.get(first) is not None and _ROLES.get(first) == _ROLES.get(second))
    return first == second


def _part(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else part
        raise Unusable(f"a message holds {shown(kind)}; only text can be trained on")
    return text


def encodable(text: str) -> str:
    """The text itself. Raises Unusable for what no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8; save the file as UTF-8"
        raise Unusable(
            f"a text holds {what if 0xDC80 <= code <= 0xDCFF else f'half of a surrogate pair (U+{code:04X})'}"
        ) from None
    return text


def shown(value: object) -> str:
    """A value for a sentence, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
