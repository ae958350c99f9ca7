"""Rows: every documented form becomes one of three, and what cannot be trained on is refused with row and cause."""

from __future__ import annotations

import csv
import json
import tracemalloc
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from kaito_tuning.config import DatasetConfig
from kaito_tuning.data import content, load, readers
from kaito_tuning.errors import DatasetInvalid

WHOLE = DatasetConfig(train_test_split=1, shuffle_dataset=False)
ASK = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}
TURN = [ASK, ANSWER]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "prompt,completion\na,b,c\n",
            "row 1 has 3 fields, the header has 2; a text with a comma in it needs double quotes",
        ),
        ("prompt;completion\na;b;c\n", "row 1 has 3 fields, the header has 2; a text with a semicolon in it needs"),
        (
            "Prompt, completion\na,b\n",
            "the data set has the columns Prompt,  completion; names are taken as they are written: rename them to "
            "prompt, completion",
        ),
        ("Messages\nb\n", "the data set has the columns Messages; names are taken as they are written: rename it to"),
        (
            "prompt|completion\na|b\n",
            "x.csv has one column, prompt|completion; part columns with a comma, a semicolon or a tab",
        ),
        (
            "prompt,completion\ra,b\rc,d\r",
            "x.csv ends its lines with carriage returns alone; save it with line feeds",
        ),
        (
            "Why is it so?,Because it is.\nWhat?,That.\n",
            "the data set has the columns Why is it so?, Because it is.; is its first line the names of the columns?",
        ),
    ],
    ids=["a comma", "a semicolon", "capitals", "one name", "bars", "carriage returns", "no header"],
)
def test_csv_that_others_write_otherwise_is_told_how(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path, WHOLE)
    assert str(refused.value).startswith(sentence)


PYTHON = "[{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'ho'}]"


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_messages_as_json_in_columns_of_text_are_messages(tmp_path: Path, kind: str) -> None:
    row = {"prompt": json.dumps([ASK]), "completion": json.dumps([ANSWER])}
    if kind == "csv":
        with (tmp_path / "x.csv").open("w", newline="") as file:
            csv.writer(file).writerows([row.keys(), row.values()])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    else:
        write(tmp_path, row)
    assert load(tmp_path, WHOLE).training[0] == {"prompt": [ASK], "completion": [ANSWER]}


def test_messages_as_json_that_have_a_name_twice_are_a_bad_row(tmp_path: Path) -> None:
    written = '[{"role": "user", "content": "hi", "content": "hey"}, {"role": "assistant", "content": "ho"}]'
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [written]])
    with pytest.raises(DatasetInvalid, match="row 1: column messages holds an object that has 'content' twice"):
        load(tmp_path, WHOLE)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": PYTHON, "completion": "ho"},
            "row 1: column prompt holds messages as Python writes them, not as JSON; write them with json.dumps, or "
            "save the rows as JSON lines or Parquet",
        ),
        ({"messages": PYTHON}, "row 1: column messages holds messages as Python writes them, not as JSON; write them"),
        (
            {"text": json.dumps(TURN)},
            "row 1: column text holds messages as JSON; name it with DatasetConfig.messages_column",
        ),
        (
            {"instruction": "hi", "output": json.dumps([ANSWER])},
            "row 1: column output holds messages as JSON; name it with DatasetConfig.messages_column",
        ),
        (
            {"prompt": json.dumps([ASK]), "completion": "ho"},
            "row 1: prompt and completion must both be texts or both be lists of messages",
        ),
    ],
    ids=["Python in a prompt", "Python in messages", "JSON in text", "JSON in an output", "JSON and text"],
)
def test_messages_as_text_are_never_learned_as_text(tmp_path: Path, row: dict[str, str], sentence: str) -> None:
    with pytest.raises(DatasetInvalid) as refused:
        load(write(tmp_path, row), WHOLE)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    "text",
    [
        "[1] is a footnote",
        '{"role": "a part in a play"}',
        '[{"name": "x"}]',
        "['a']",
        "[{'value': 1}, {'value': 2}]",
        '[{"value": n} for n in range(3)]',
        '[{"content": "a"',
    ],
)
def test_a_text_that_begins_like_json_is_a_text(tmp_path: Path, text: str) -> None:
    row = {"prompt": text, "completion": "ho"}
    assert load(write(tmp_path, row), WHOLE).training[0] == row


@pytest.mark.parametrize(
    "header", [",instruction,output", ",instruction,input,output"], ids=["no input", "empty input"]
)
def test_the_unnamed_column_that_pandas_numbers_rows_in_is_never_learned(tmp_path: Path, header: str) -> None:
    row = {"": "7", "instruction": "hi", "input": "", "output": "ho"}
    (tmp_path / "x.csv").write_text(f"{header}\n{','.join(row[name] for name in header.split(','))}\n")
    assert load(tmp_path, WHOLE).training[0] == {"prompt": [ASK], "completion": [ANSWER]}


def test_a_blank_input_hides_no_context(tmp_path: Path) -> None:
    row = {"instruction": "hi", "input": " ", "context": "of it", "output": "ho"}
    asked = {"role": "user", "content": "hi\n\nof it"}
    assert load(write(tmp_path, row), WHOLE).training[0] == {"prompt": [asked], "completion": [ANSWER]}


def asked(name: str) -> dict[str, str]:
    return {"role": "user", "content": f"<{name}>"}


FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [asked("messages"), ANSWER]},
    "messages with a system turn": {"messages": [BRIEF, asked("messages"), ANSWER]},
    "conversations": {"conversations": [{"from": "human", "value": "<conversations>"}, SHAREGPT[1]]},
    "texts": {"prompt": "<prompt>", "completion": "<completion>"},
    "lists": {"prompt": [asked("prompt")], "completion": [{"role": "assistant", "content": "<completion>"}]},
    "instructions": {"instruction": "<instruction>", "output": "<output>"},
    "responses": {"instruction": "<instruction>", "response": "<response>"},
    "text": {"text": "<text>"},
}
COLUMNS: dict[str, Any] = {
    **{name: f"<{name}>" for name in ("instruction", "input", "context", "output", "response", "text", "system")},
    "tools": "[<tools>]",
    "messages": [asked("messages"), ANSWER],
    "conversations": [asked("conversations"), ANSWER],
    "prompt": "<prompt>",
    "completion": "<completion>",
}


@pytest.mark.parametrize("form", FORMS)
def test_no_column_that_rows_are_made_of_is_lost_without_a_word(tmp_path: Path, form: str) -> None:
    """With each pair of the others it is in what is trained on, or the refusal or a warning names it."""
    others = [name for name in COLUMNS if name not in FORMS[form]]
    for pair in [(), *combinations(others, 1), *combinations(others, 2)]:
        row = {**FORMS[form], **{name: COLUMNS[name] for name in pair}}
        folder = tmp_path / "-".join(("x", *pair))
        folder.mkdir()
        try:
            data = load(write(folder, row), WHOLE)
            trained, said = json.dumps(data.training.to_list()), " ".join(data.warnings)
            named = {name for name in row if f"<{name}>" in trained or name in said}
            assert named == set(row), data.training[0]
        except DatasetInvalid as refused:
            named = {name for name in pair if name in str(refused).partition(";")[0]}
        assert named, pair


def test_an_instruction_may_be_about_two_things_and_a_column_may_say_the_same_twice(tmp_path: Path) -> None:
    row = {"instruction": "hi", "input": "this", "context": "that", "output": "ho", "response": "ho"}
    found = load(write(tmp_path, row, row | {"context": "this"}), WHOLE).training.to_list()
    assert [row["prompt"][0]["content"] for row in found] == ["hi\n\nthis\n\nthat", "hi\n\nthis"]
    assert [row["completion"] for row in found] == [[ANSWER], [ANSWER]]
    row = {"messages": [BRIEF, *TURN], "system": BRIEF["content"]}
    assert load(write(tmp_path, row), WHOLE).training.to_list() == [{"messages": [BRIEF, *TURN]}]


def test_the_rendering_beside_its_parts_is_left_out_with_a_warning(tmp_path: Path) -> None:
    """As in tatsu-lab/alpaca."""
    data = load(write(tmp_path, {"instruction": "hi", "input": "", "output": "ho", "text": "hi? ho!"}), WHOLE)
    assert data.training.to_list() == [{"prompt": [ASK], "completion": [ANSWER]}]
    assert data.warnings == ("the column text is left out; the rows are those of instruction and output",)
    named = DatasetConfig(train_test_split=1, response_column="text")
    assert load(tmp_path, named).warnings == ()


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"role": "assistant", "content": "ho", "value": "hu"}, "a message has content and value, which differ"),
        ({"role": "assistant", "from": "human", "content": "ho"}, "a message has role and from, which differ"),
        ({"role": "assistant", "content": "ho", "reasoning_content": "Hm."}, "a message has reasoning_content"),
        ({"role": "assistant", "content": "ho", "thinking": "Hm."}, "a message has thinking"),
    ],
    ids=["two contents", "two roles", "reasoning", "thinking"],
)
def test_no_field_of_a_message_is_lost_without_a_word(tmp_path: Path, message: dict[str, str], sentence: str) -> None:
    with pytest.raises(DatasetInvalid, match=f"row 1: {sentence}"):
        load(write(tmp_path, {"messages": [ASK, message]}), WHOLE)


def write(folder: Path, *rows: object) -> Path:
    (folder / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.parametrize(
    ("row", "form", "trained"),
    [
        pytest.param({"messages": TURN, "id": 1}, "messages", {"messages": TURN}, id="messages"),
        pytest.param({"conversations": TURN}, "messages", {"messages": TURN}, id="conversations with role"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}],
                "system": "Be brief.",
            },
            "messages",
            {"messages": [BRIEF, *TURN]},
            id="ShareGPT with a system column",
        ),
        pytest.param(
            {"messages": [{"role": "system", "content": " "}, *TURN]}, "messages", {"messages": TURN}, id="empty system"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ANSWER]},
            "messages",
            {"messages": TURN},
            id="content in parts",
        ),
        pytest.param(
            {"messages": [ASK, {**ANSWER, "tool_calls": None, "name": None}]},
            "messages",
            {"messages": TURN},
            id="fields that are null",
        ),
        pytest.param(
            {"messages": {"role": ["user", "assistant"], "content": ["hi", "ho"]}},
            "messages",
            {"messages": TURN},
            id="a column of roles and one of contents",
        ),
        pytest.param({"messages": json.dumps(TURN)}, "messages", {"messages": TURN}, id="messages as JSON text"),
        pytest.param(
            {"prompt": "a", "completion": "b"}, "prompt-completion", {"prompt": "a", "completion": "b"}, id="texts"
        ),
        pytest.param(
            {"prompt": [BRIEF, ASK], "completion": [ANSWER]},
            "prompt-completion",
            {"prompt": [BRIEF, ASK], "completion": [ANSWER]},
            id="prompt and completion as messages",
        ),
        pytest.param(
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "prompt-completion",
            {
                "prompt": [{"role": "user", "content": "Add.\n\n1 2"}],
                "completion": [{"role": "assistant", "content": "3"}],
            },
            id="Alpaca",
        ),
        pytest.param(
            {"instruction": "Sing.", "input": "", "output": "La"},
            "prompt-completion",
            {"prompt": [{"role": "user", "content": "Sing."}], "completion": [{"role": "assistant", "content": "La"}]},
            id="Alpaca without input",
        ),
        pytest.param({"text": "a\x00b"}, "text", {"text": "a\x00b"}, id="a text with NUL"),
    ],
)
def test_every_documented_form_is_trained_on(tmp_path: Path, row: Any, form: str, trained: Any) -> None:
    data = load(write(tmp_path, row), WHOLE)
    assert data.form == form
    assert data.training.to_list() == [trained]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        pytest.param({"messages": [ASK]}, "the last message is the user's", id="no answer"),
        pytest.param({"messages": [ANSWER, ASK, ANSWER]}, "the assistant speaks first", id="the assistant first"),
        pytest.param({"messages": [BRIEF, ANSWER]}, "the assistant speaks first", id="no user"),
        pytest.param({"messages": [*TURN, BRIEF, *TURN]}, "a system message comes after", id="a late system message"),
        pytest.param(
            {"messages": [ASK, {"role": "assistant", "content": ""}]}, "the assistant's content is empty", id="e"
        ),
        pytest.param({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator'", id="a role"),
        pytest.param({"messages": ["hi"]}, "a message must have role and content, got 'hi'", id="a text for a message"),
        pytest.param({"messages": [ASK, {"role": "assistant", "content": 3}]}, "is no text, got 3", id="number"),
        pytest.param(
            {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "tool calls cannot be trained here",
            id="a tool call",
        ),
        pytest.param({"messages": [ASK, {"role": "tool", "content": "4"}, ANSWER]}, "calls a tool", id="tool"),
        pytest.param({"messages": TURN, "tools": [{"name": "f"}]}, "the row declares tools", id="declared tools"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
            "only text can be trained",
            id="image",
        ),
        pytest.param({"messages": [{"role": "system", "content": ""}]}, "an empty system text", id="system"),
        pytest.param({"prompt": "a", "completion": TURN}, "must both be texts or both be lists", id="mixed"),
        pytest.param({"prompt": TURN, "completion": [ANSWER]}, "the last message of prompt must be", id="answered"),
        pytest.param({"prompt": [ASK], "completion": TURN}, "completion must hold the assistant's", id="asked"),
        pytest.param({"prompt": "a", "completion": " "}, "column completion is empty", id="an empty completion"),
        pytest.param({"instruction": "a", "input": "", "output": None}, "column output is empty", id="no output"),
        pytest.param({"text": "a\ud800"}, "half of a surrogate pair (U+D800)", id="half a surrogate pair"),
        pytest.param({"text": ["a"]}, "column text is empty or no text", id="a list for a text"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_refused_with_its_number(tmp_path: Path, row: Any, sentence: str) -> None:
    good: Any = {
        "messages": {"messages": TURN},
        "prompt": {"prompt": "a", "completion": "b"},
        "text": {"text": "a"},
        "instruction": {"instruction": "a", "input": "", "output": "b"},
    }[next(iter(row))]
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        good = {"prompt": [ASK], "completion": [ANSWER]}
    with pytest.raises(DatasetInvalid) as refused:
        load(write(tmp_path, good, row), WHOLE)
    assert str(refused.value).startswith("row 2: ")
    assert sentence in str(refused.value)


def test_bytes_that_are_not_utf8_are_told_with_their_row(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DatasetInvalid, match="row 2: a text holds the byte 0xe9, which is not UTF-8"):
        load(tmp_path, WHOLE)


def test_a_csv_row_of_another_width_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("prompt,completion\na,b\nc,d,e\nf\n")
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path, WHOLE)
    assert refused.value.rows == (
        "row 2 has 3 fields, the header has 2; a text with a comma in it needs double quotes",
        "row 3 has 1 field, the header has 2",
    )


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text\n"' + "x" * (1 << 20) + '"\n')
    assert len(load(tmp_path, WHOLE).training[0]["text"]) == 1 << 20


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), min_size=1)] * 2), min_size=1, max_size=8))
def test_csv_says_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("prompt", "completion"), *((f"x{a}", f"x{b}") for a, b in rows)])
    trained = load(folder, WHOLE).training.to_list()
    assert trained == [{"prompt": f"x{a}", "completion": f"x{b}"} for a, b in rows]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param('{"text": "a"}\n{"text": \n{"text": "b"}\n', "line 2 is not JSON", id="a cut line"),
        pytest.param('{"text": \n{"text": "a"}\n', "line 1 is not JSON", id="a cut first line"),
        pytest.param('{"text": "a"}\n[1]\n', "row 2 is list, not an object", id="a list"),
        pytest.param('{"text": "a"}\n' + "[" * 100_000 + "\n", "line 2 is nested too deeply", id="deep"),
        pytest.param("[" * 100_000, "line 1 is nested too deeply", id="deep alone"),
        pytest.param('[{"text": "a"}, {"text": "b"', "ends too early, in line 1; is it cut off?", id="a cut list"),
        pytest.param('[\n{"text": "a"},\n{"text" "b"}]', "line 3 is not JSON: Expecting ':' delimiter", id="a mistake"),
        pytest.param('{"a": [{"text": "1"}], "b": [{"text": "1"}]}', "several lists of rows (a, b)", id="two lists"),
        pytest.param('{"text": "a"} {"text": "b"} x', "'x' is neither an object nor a list", id="rest"),
    ],
)
def test_broken_json_is_told_with_its_line(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(DatasetInvalid) as refused:
        load(tmp_path, WHOLE)
    assert sentence in str(refused.value)


def test_columns_of_a_parquet_file_that_are_not_trained_on_are_not_read(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "answer": "So.", "image": b"\x00" * 100}] * 3
    Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    named = DatasetConfig(train_test_split=1, context_column="question", response_column="answer")
    assert load(tmp_path, named).training.to_list() == [{"prompt": "Why?", "completion": "So."}] * 3
    with pytest.raises(
        DatasetInvalid, match=r"did you mean DatasetConfig.context_column: question and response_column"
    ):
        load(tmp_path, WHOLE)


@pytest.mark.parametrize("name", ["x.arrow", "x.parquet"])
def test_of_long_rows_few_are_held_in_memory(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": [f"{number:05}" + "x" * (1 << 20) for number in range(64)]})
    if name == "x.arrow":
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, tmp_path / name, use_dictionary=False)
    (source,) = content.look(tmp_path / name, name)
    assert isinstance(source, content.Source)
    tracemalloc.start()
    try:
        numbers = [
            row["text"][:5] for row in readers.rows(source, lambda _: ["text"], tmp_path) if isinstance(row, dict)
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert numbers == [f"{number:05}" for number in range(64)]
    assert peak < 40 << 20
