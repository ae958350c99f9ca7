"""How many tokens the rows have as training sees them: the template applied, the end token there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaito_tuning.chat import templates
from kaito_tuning.chat.templates import ChatTemplate
from kaito_tuning.data import forms
from kaito_tuning.data.turns import shown
from kaito_tuning.errors import DatasetInvalid

if TYPE_CHECKING:
    from datasets import Dataset

MEASURED_ROWS = 50_000
"""Of a larger data set so many rows are measured, evenly spaced."""

LARGEST_CUT = 0.05
"""The share of rows that may be longer than max_length where the user has not set it."""

FEWEST_TOKENS = 1024
"""A row of tokens is no shorter by default: what TRL takes, and what packing needs to fill a GPU."""

FEWEST_PACKED_STEPS = 50
"""Fewer optimizer steps than these teach little: rows are packed only where more are left."""

_MULTIPLE = 8
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of ``measured`` rows, ascending; ``rows`` are all rows of the data set."""

    counts: np.ndarray[Any, np.dtype[np.int64]]
    rows: int

    @property
    def measured(self) -> int:
        """How many rows were measured."""
        return len(self.counts)

    @property
    def p50(self) -> int:
        """Half of the rows are no longer."""
        return self._percentile(50)

    @property
    def p95(self) -> int:
        """95 % of the rows are no longer."""
        return self._percentile(95)

    @property
    def p99(self) -> int:
        """99 % of the rows are no longer."""
        return self._percentile(99)

    @property
    def max(self) -> int:
        """The longest row."""
        return int(self.counts[-1])

    def share_cut(self, max_length: int) -> float:
        """The share of rows that are longer than ``max_length`` and lose their end, 0 to 1."""
        return float(np.count_nonzero(self.counts > max_length)) / len(self.counts)

    def default_max_length(self, context_length: int) -> int:
        """What covers 99 % of the rows, a multiple of 8, at least 1,024 and at most the model's context."""
        covering = -(-self.p99 // _MULTIPLE) * _MULTIPLE
        return min(context_length, max(FEWEST_TOKENS, covering))

    def tokens_per_epoch(self, max_length: int) -> int:
        """Tokens of all rows that one epoch sees."""
        return round(float(np.minimum(self.counts, max_length).sum()) * self.rows / len(self.counts))

    def _percentile(self, percent: int) -> int:
        return int(np.percentile(self.counts, percent, method="higher"))


def measure(rows: Dataset, tokenizer: Any, template: ChatTemplate | None) -> Lengths:
    """The lengths of a table's rows. ``template`` is needed for conversations alone."""
    counts: list[int] = []
    for batch in _batches(rows):
        counts += _counts(batch, tokenizer, template)
    return Lengths(np.sort(np.asarray(counts, dtype=np.int64)), rows=len(rows))


def max_length(lengths: Lengths, *, context_length: int, asked: int | None) -> int:
    """What max_length the training uses. Raises DatasetInvalid when more than 5 % of the rows would lose their end and
    the user has not asked for it (TrainingArguments.max_length).
    """
    if asked is not None:
        return asked
    chosen = lengths.default_max_length(context_length)
    cut = lengths.share_cut(chosen)
    if cut > LARGEST_CUT:
        raise DatasetInvalid(
            f"{cut:.1%} of the rows are longer than the {context_length:,} tokens of the model's context (the longest "
            f"has {lengths.max:,}) and would lose their end; shorten or split them, or set "
            "TrainingArguments.max_length to train on what fits"
        )
    return chosen


def beyond_context(asked: int | None, context_length: int | None) -> tuple[str, ...]:
    """A sentence, if TrainingArguments.max_length asks for more tokens than the model takes."""
    if asked is None or context_length is None or asked <= context_length:
        return ()
    return (f"TrainingArguments.max_length {asked:,} is more than the model's context of {context_length:,} tokens",)


def share_without_answer(rows: Dataset, tokenizer: Any, template: ChatTemplate | None, *, limit: int) -> float:
    """The share of rows, 0 to 1, whose first ``limit`` tokens hold nothing to learn: the question fills them."""
    measured = without = 0
    for batch in _batches(rows):
        measured += len(batch)
        counts = _counts(batch, tokenizer, template)
        long = [row for row, count in zip(batch, counts, strict=True) if count > limit]
        without += sum(_asked(row, tokenizer, template) >= limit for row in long)
    return without / measured


def steps(
    lengths: Lengths, training: Mapping[str, Any], *, max_length: int, packing: bool | None = None, processes: int = 1
) -> int:
    """About how many optimizer steps a training with these TrainingArguments takes."""
    if int(training.get("max_steps") or -1) > 0:
        return int(training["max_steps"])
    tokens = lengths.tokens_per_epoch(max_length)
    per_step = _rows_a_step(training, processes)
    epochs = float(training.get("num_train_epochs") or 3)
    packed = tokens / max_length
    packs = training.get("packing") if packing is None else packing
    if packs is None:
        packs = packing_pays(tokens, training, max_length=max_length, processes=processes)
    return max(1, math.ceil((packed if packs else lengths.rows) / per_step * epochs))


def packing_pays(tokens: int, training: Mapping[str, Any], *, max_length: int, processes: int = 1) -> bool:
    """Packing fills rows up to max_length; it is off where it would leave too few optimizer steps to learn from."""
    epochs = float(training.get("num_train_epochs") or 3)
    return tokens / max_length * epochs / _rows_a_step(training, processes) >= FEWEST_PACKED_STEPS


def _rows_a_step(training: Mapping[str, Any], processes: int) -> int:
    rows = int(training.get("per_device_train_batch_size") or 8)
    return rows * int(training.get("gradient_accumulation_steps") or 1) * processes


def _batches(rows: Dataset) -> Iterator[list[dict[str, Any]]]:
    """The measured rows, some hundred at a time."""
    step = max(1, -(-len(rows) // MEASURED_ROWS))
    for start in range(0, len(rows), _AT_ONCE * step):
        batch = rows[start : start + _AT_ONCE * step : step]
        yield [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _counts(rows: Sequence[Mapping[str, Any]], tokenizer: Any, template: ChatTemplate | None) -> list[int]:
    conversations = [forms.conversation(row) for row in rows]
    if conversations and conversations[0] is not None:
        assert template is not None
        texts = [_rendered(tokenizer, template, messages or ()) for messages in conversations]
        encoded = tokenizer(texts, add_special_tokens=False)
    else:
        encoded = tokenizer([_ended("".join(row.values()), tokenizer) for row in rows])
    return [len(ids) for ids in encoded["input_ids"]]


def _asked(row: Mapping[str, Any], tokenizer: Any, template: ChatTemplate | None) -> int:
    """Tokens before the first one that is learned."""
    messages = forms.conversation(row)
    if messages is None:
        return len(tokenizer(row["prompt"])["input_ids"]) if "prompt" in row else 0
    assert template is not None
    learned = (i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight") != 0)
    first = next(learned)
    text = _rendered(tokenizer, template, messages[:first], ask=True)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(
    tokenizer: Any, template: ChatTemplate, messages: Sequence[Mapping[str, str]], *, ask: bool = False
) -> str:
    try:
        return templates.rendered(tokenizer, template.text, messages, ask=ask)
    except Exception as error:  # a template may refuse what a conversation says, with any error that it likes
        why = " ".join(str(error).split())[:200] or type(error).__name__
        begins = shown(messages[0]["content"]) if messages else "nothing"
        raise DatasetInvalid(
            f"the model's chat template refuses the conversation that begins with {begins}: {why}; "
            "leave it out, or give another ModelConfig.chat_template"
        ) from error


def _ended(text: str, tokenizer: Any) -> str:
    """TRL ends texts so."""
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end
