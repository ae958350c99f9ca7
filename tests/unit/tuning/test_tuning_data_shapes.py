"""Shapes of public data sets, made by hand: each is trained on, or refused with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.unit.tuning.checked import check, model_folder
from tests.unit.tuning.test_tuning_config import changed
from tests.unit.tuning.test_tuning_templates import PHI3

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import load
from kaito_tuning.errors import DatasetInvalid

CHAT = [
    {"role": "user", "content": "Name a primary colour."},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": "Another one?"},
    {"role": "assistant", "content": "Blue."},
]
ALPACA = {"instruction": "Give three tips.", "input": "", "output": "1. Sleep. 2. Eat. 3. Walk."}
DOLLY = {"instruction": "Who was he?", "context": "He ruled.", "response": "A king.", "category": "closed_qa"}
SHAREGPT = {
    "id": "identity_0",
    "conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "A model."}],
}
ULTRACHAT = {"prompt": "Name a primary colour.", "prompt_id": "a1", "messages": CHAT}
GSM8K = {"question": "How many are 2 and 2?", "answer": "2 and 2 are <<2+2=4>>4.\n#### 4"}
SQUAD = {
    "id": "1",
    "title": "Normans",
    "context": "The Normans lived in Normandy.",
    "question": "Where?",
    "answers": {"text": ["Normandy"], "answer_start": [21]},
}
DPO = {"prompt": "Is it blue?", "chosen": "Yes, it is.", "rejected": "No."}
DPO_CHATS = {"chosen": CHAT[:2], "rejected": [CHAT[0], {"role": "assistant", "content": "Sofa."}]}
TOOLS = {
    "messages": [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "weather"}}]},
        {"role": "tool", "content": "-3"},
        {"role": "assistant", "content": "Cold."},
    ]
}
OASST_TREE = {"message_id": "6ab2", "parent_id": None, "text": "What is a cat?", "role": "prompter", "lang": "en"}
WIKI = {"text": "Anarchism is a political philosophy."}
CLASSES = {"sentence": "A fine film.", "label": 1}

TRAINED = [
    pytest.param(ALPACA, {}, "prompt-completion", id="Alpaca"),
    pytest.param(DOLLY, {}, "prompt-completion", id="Dolly"),
    pytest.param({"messages": CHAT}, {}, "messages", id="OASST as messages"),
    pytest.param(OASST_TREE, {}, "text", id="OASST's single messages"),
    pytest.param(SHAREGPT, {}, "messages", id="ShareGPT"),
    pytest.param(ULTRACHAT, {}, "messages", id="UltraChat"),
    pytest.param(
        {"messages": [*CHAT[:3], CHAT[3] | {"weight": 1}], "tools": None}, {}, "messages", id="OpenAI with a weight"
    ),
    pytest.param(WIKI, {}, "text", id="plain text"),
    pytest.param(
        GSM8K, {"context_column": "question", "response_column": "answer"}, "prompt-completion", id="GSM8K, named"
    ),
    pytest.param(DPO, {"context_column": "prompt", "response_column": "chosen"}, "prompt-completion", id="DPO, chosen"),
    pytest.param(DPO_CHATS, {"messages_column": "chosen"}, "messages", id="DPO chats, chosen"),
    pytest.param(CLASSES, {"response_column": "sentence"}, "text", id="classes, named"),
]
REFUSED = [
    pytest.param(GSM8K, "did you mean DatasetConfig.context_column: question and response_column: answer?", id="GSM8K"),
    pytest.param(SQUAD, "has the columns id, title, context, question, answers; needed is messages", id="SQuAD"),
    pytest.param(DPO, "to train on the chosen answers name them with DatasetConfig.messages_column", id="DPO"),
    pytest.param(DPO_CHATS, "rows to prefer one answer by (chosen, rejected)", id="DPO chats"),
    pytest.param(TOOLS, "row 1: the assistant calls a tool or answers a call; tool calls cannot be", id="tool calls"),
    pytest.param(CLASSES, "has the columns sentence, label; needed is messages", id="classes"),
    pytest.param(
        {"messages": [CHAT[0], CHAT[1] | {"weight": 0}]},
        "row 1: the assistant's messages all have weight 0: there is nothing to learn",
        id="no weight at all",
    ),
    pytest.param(
        {"messages": [CHAT[0], CHAT[1] | {"weight": 0.5}]},
        "row 1: the assistant's weight must be 0 or 1, got 0.5",
        id="half a weight",
    ),
    pytest.param(
        {"prompt": CHAT[:1], "completion": [CHAT[1], CHAT[3] | {"weight": 0}]},
        "row 1: completion holds a message of weight 0; put such conversations into a column messages",
        id="a weight in a completion",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the model's small files beside the data."""
    folder = tmp_path_factory.mktemp("shapes")
    model_folder(folder / "model", "phi3", chat_template=PHI3)
    (folder / "data").mkdir()
    return folder


def put(folder: Path, row: dict[str, Any], *, parquet: bool) -> None:
    for old in (folder / "data").iterdir():
        old.unlink()
    if parquet:
        pq.write_table(pa.Table.from_pylist([row] * 5), folder / "data" / "train-00000-of-00001.parquet")
    else:
        (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(5)))


@pytest.mark.parametrize("parquet", [False, True], ids=["json lines", "parquet"])
@pytest.mark.parametrize(("row", "named", "form"), TRAINED)
def test_it_is_trained_on(folder: Path, row: dict[str, Any], named: dict[str, str], form: str, parquet: bool) -> None:
    put(folder, row, parquet=parquet)
    found = check(folder, document=changed("DatasetConfig", **named))
    assert found.report["problems"] == []
    assert (found.code, found.report["form"], found.report["rows"]["training"]) == (0, form, 5)
    assert found.report["tokens"]["p50"] > 3


WEIGHTED = {"messages": [CHAT[0], CHAT[1] | {"weight": 0}, CHAT[2], CHAT[3] | {"weight": 1}]}


@pytest.mark.parametrize("before", [0, 1500], ids=["first", "late"])
def test_weights_of_messages_are_kept_wherever_they_begin(tmp_path: Path, before: int) -> None:
    rows = [{"messages": CHAT}] * before + [WEIGHTED]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(tmp_path, DatasetConfig(train_test_split=1, shuffle_dataset=False))
    assert found.weighted
    assert len(found.training) == before + 1
    weights = [[message["weight"] for message in row["messages"]] for row in found.training]
    assert weights == [[None] * 4] * before + [[None, 0, None, None]]


def test_without_weights_there_is_no_such_column(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [CHAT[0], CHAT[1] | {"weight": 1}]}))
    found = load(tmp_path, DatasetConfig(train_test_split=1))
    assert not found.weighted
    assert found.training[0]["messages"] == CHAT[:2]


@pytest.mark.parametrize("parquet", [False, True], ids=["json lines", "parquet"])
@pytest.mark.parametrize(("row", "sentence"), REFUSED)
def test_it_is_refused_with_the_way_out(folder: Path, row: dict[str, Any], sentence: str, parquet: bool) -> None:
    put(folder, row, parquet=parquet)
    found = check(folder)
    assert (found.code, found.report["reason"]) == (2, "DatasetInvalid")
    assert sentence in found.report["problems"][0]


def test_a_time_that_no_calendar_has_is_the_datas_fault(tmp_path: Path) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("at", pa.timestamp("us"))])
    rows = pa.array([[{**message, "at": 1 << 62} for message in CHAT[:2]]], pa.list_(turn))
    pq.write_table(pa.table({"messages": rows}), tmp_path / "rows.parquet")
    with pytest.raises(DatasetInvalid, match=r"rows\.parquet cannot be read as parquet: .*out of range"):
        load(tmp_path, DatasetConfig())


def test_memory_that_a_file_needs_is_not_the_datas_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "rows.parquet")

    def exhausted(*_: Any, **__: Any) -> None:
        raise pa.ArrowMemoryError("malloc of size 1073741824 failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", exhausted)
    with pytest.raises(MemoryError, match="malloc of size"):
        load(tmp_path, DatasetConfig())
