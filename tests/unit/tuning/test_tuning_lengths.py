"""Lengths: counted as training sees the rows, and what they say about max_length, steps and rows that are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tests.unit.tuning.family_tokenizers import family_tokenizer

from kaito_tuning.chat.templates import chosen
from kaito_tuning.data import lengths
from kaito_tuning.data.lengths import Lengths, measure
from kaito_tuning.errors import DatasetInvalid

QUESTION = [{"role": "user", "content": "q" * 100}]
ANSWER = [{"role": "assistant", "content": "a" * 20}]


def of(*counts: int) -> Lengths:
    return Lengths(np.sort(np.asarray(counts)), rows=len(counts))


# The tokenizer of Phi-2's family makes one token of every byte here, and one of <|endoftext|>; Phi-2's turns are
# "Instruct: ...\nOutput:\n...<|endoftext|>\n".
@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        pytest.param({"text": "x" * 50}, 50 + 1, id="text"),
        pytest.param({"text": "x" * 50 + "<|endoftext|>"}, 50 + 1, id="text that ends"),
        pytest.param({"prompt": "x" * 50, "completion": "y" * 7}, 50 + 7 + 1, id="pair"),
        pytest.param({"messages": [*QUESTION, *ANSWER]}, 10 + 100 + 9 + 20 + 1 + 1, id="messages"),
        pytest.param({"prompt": QUESTION, "completion": ANSWER}, 10 + 100 + 9 + 20 + 1 + 1, id="pair of messages"),
    ],
)
def test_a_row_has_as_many_tokens_as_training_sees(row: dict[str, Any], tokens: int) -> None:
    tokenizer = family_tokenizer("phi")
    template = chosen(tokenizer, model_type="phi")
    assert measure(Dataset.from_list([row] * 3), tokenizer, template).counts.tolist() == [tokens] * 3


def test_percentiles_are_lengths_that_rows_have() -> None:
    found = of(*range(1, 101))
    assert (found.p50, found.p95, found.p99, found.max) == (51, 96, 100, 100)
    assert found.share_cut(95) == 0.05
    assert found.tokens_per_epoch(10) == sum(range(1, 10)) + 10 * 91


@pytest.mark.parametrize(
    ("counts", "context", "expected"),
    [
        pytest.param([10, 20], 4096, 1024, id="no shorter than what TRL takes"),
        pytest.param([10, 20], 512, 512, id="no longer than the context"),
        pytest.param([1500] * 99 + [3000], 4096, 3000, id="what covers 99 %"),
        pytest.param([1500] * 199 + [3000], 4096, 1504, id="a multiple of 8"),
        pytest.param([5000] * 2 + [100] * 98, 4096, 4096, id="a few rows beyond the context"),
    ],
)
def test_max_length_covers_99_percent_of_the_rows(counts: list[int], context: int, expected: int) -> None:
    assert lengths.max_length(of(*counts), context_length=context, asked=None) == expected


def test_more_than_five_percent_cut_is_refused_unless_the_user_set_it() -> None:
    found = of(*[5000] * 6, *[100] * 94)
    with pytest.raises(DatasetInvalid, match=r"6.0% of the rows are longer than the 4,096 tokens .* longest has 5,000"):
        lengths.max_length(found, context_length=4096, asked=None)
    assert lengths.max_length(found, context_length=4096, asked=2048) == 2048
    assert lengths.max_length(of(*[5000] * 5, *[100] * 95), context_length=4096, asked=None) == 4096


def test_rows_whose_question_fills_the_limit_have_nothing_to_learn() -> None:
    tokenizer = family_tokenizer("phi")
    template = chosen(tokenizer, model_type="phi")
    short = {"messages": [{"role": "user", "content": "q"}, *ANSWER]}
    rows = Dataset.from_list([{"messages": [*QUESTION, *ANSWER]}, short])
    without = [lengths.share_without_answer(rows, tokenizer, template, limit=limit) for limit in (119, 120, 20, 21)]
    assert without == [0.5, 0.0, 1.0, 0.5]
    texts = Dataset.from_list([{"text": "x" * 100}])
    assert lengths.share_without_answer(texts, tokenizer, None, limit=5) == 0.0


def test_of_many_rows_some_are_measured_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "MEASURED_ROWS", 100)
    rows = Dataset.from_list([{"text": "x" * 9}] * 1001)
    found = measure(rows, family_tokenizer("phi"), None)
    assert 90 <= found.measured <= 100
    assert found.tokens_per_epoch(1024) == 1001 * 10


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        pytest.param({"max_steps": 7}, 7, id="told"),
        pytest.param({"per_device_train_batch_size": 2, "num_train_epochs": 2, "packing": False}, 1000, id="rows"),
        pytest.param({"per_device_train_batch_size": 1, "num_train_epochs": 1, "packing": True}, 98, id="packed"),
        pytest.param({"per_device_train_batch_size": 1, "num_train_epochs": 1}, 98, id="packed, because it pays"),
        pytest.param(
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "num_train_epochs": 1},
            250,
            id="not packed, because few steps would be left",
        ),
    ],
)
def test_steps_are_estimated(training: dict[str, Any], steps: int) -> None:
    assert lengths.steps(of(*[100] * 1000), training, max_length=1024) == steps
