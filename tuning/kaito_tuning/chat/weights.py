"""Messages of the assistant that are not to be learned: those of weight 0 get no mark from the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kaito_tuning.chat import templates
from kaito_tuning.chat.templates import ChatTemplate
from kaito_tuning.errors import ConfigInvalid

_BLOCK = re.compile(r"(\{%-?)\s*generation\s*(-?%\})(.*?)(\{%-?)\s*endgeneration\s*(-?%\})", re.DOTALL)
_LOOP = re.compile(r"\{%-?\s*for\s+(\w+)\s+in\b")
_ASKED = {"role": "user", "content": "Why?"}
_ANSWERED = {"role": "assistant", "content": "So."}

Span = tuple[int, int]


def weighted(tokenizer: Any, template: ChatTemplate) -> ChatTemplate:
    """The template with marks around messages that have no ``weight`` 0. Raises ConfigInvalid where none can be made.

    A mark becomes one under a condition on the variable of the loop that it is in; whether that works is tried.
    """
    marked = _BLOCK.sub(_conditional, template.marked or "")
    if template.marked is None or not _leaves_out(tokenizer, template.marked, marked):
        raise ConfigInvalid(
            "weight: 0 of a message needs a chat template that marks each of the assistant's messages alone; give one "
            "with ModelConfig.chat_template ({% generation %}), or take such messages out of the data"
        )
    return replace(template, marked=marked)


def respected(training: Mapping[str, Any]) -> None:
    """Raises ConfigInvalid for TrainingArguments that learn every token whatever its weight."""
    if training.get("assistant_only_loss") is False:
        raise ConfigInvalid(
            "TrainingArguments.assistant_only_loss: false trains on whole conversations, but the data have messages of "
            "weight 0; leave it out, or take such messages out of the data"
        )


def _conditional(block: re.Match[str]) -> str:
    begin, end, body, last_begin, last_end = block.groups()
    loops = _LOOP.findall(block.string, 0, block.start())
    if not loops:
        return block[0]
    without = f"{begin} if {loops[-1]}['weight'] == 0 {end}{body}{last_begin} else {end}"
    return f"{without}{begin} generation {end}{body}{last_begin} endgeneration {last_end}{begin} endif {last_end}"


def _leaves_out(tokenizer: Any, marked: str, conditional: str) -> bool:
    """Whether of two answers the one of weight 0 has no mark, and everything else is as it was."""
    messages = [_ASKED, _ANSWERED, _ASKED, _ANSWERED]
    try:
        tokens, spans = _learned(tokenizer, marked, messages)
        if len(spans) != 2:
            return False
        for answer, kept in ((1, spans[1]), (3, spans[0])):
            light = [{**message, "weight": 0} if i == answer else message for i, message in enumerate(messages)]
            if _learned(tokenizer, conditional, light) != (tokens, [kept]):
                return False
    except Exception:  # see templates.refusal; a template of one question alone has no answer to leave out
        return False
    return True


def _learned(tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[Span]]:
    """A conversation's tokens, and where those that have a mark begin and end."""
    found = templates.tokenised(tokenizer, template, messages)
    mask = "".join("1" if bit else "0" for bit in found["assistant_masks"])
    return list(found["input_ids"]), [span.span() for span in re.finditer("1+", mask)]
