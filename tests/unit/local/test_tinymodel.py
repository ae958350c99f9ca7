"""The tiny model that machines without real weights serve: its files, its template, its words."""

from importlib import resources
from pathlib import Path

import pytest
from tests.tiny_model import tiny_model

from kaito_local.errors import BuildError
from kaito_local.images.tinymodel import CHAT_TEMPLATE, read_corpus

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_model()


def test_the_corpus_reads_as_questions_with_one_answer_and_paragraphs():
    examples = read_corpus("# skipped\nQ: one?\nQ: uno?\nA: yes\n\nplain\ntext\n")
    assert [(e.question, e.answer) for e in examples] == [("one?", "yes"), ("uno?", "yes"), (None, "plain text")]


def test_a_question_without_an_answer_is_refused():
    with pytest.raises(BuildError, match="one A: line"):
        read_corpus("Q: one?\nA: yes\n\nQ: two?\n")


def test_the_chat_template_is_the_text_that_trl_recognises_as_phi3():
    pytest.importorskip("trl")
    assert resources.files("trl").joinpath("chat_templates/phi3.jinja").read_text() == CHAT_TEMPLATE


def test_the_folder_holds_safetensors_and_everybody_may_read_it(folder):
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("prompt", "word"),
    [("What is Kubernetes?", "containers"), ("What is a GPU?", "cores"), ("What is KAITO?", "Workspace")],
)
def test_it_answers_in_words_and_stops(folder, prompt, word):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**ids, max_length=200, do_sample=False, eos_token_id=tokenizer.eos_token_id)[0]
    assert word in tokenizer.decode(output)
    assert output[-1] == tokenizer.eos_token_id
