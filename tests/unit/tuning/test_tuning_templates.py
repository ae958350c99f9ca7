"""Chat templates: of every tunable family one whose marks cover what the assistant generates, end token included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import trl
from tests.unit.tuning.family_tokenizers import SPECIAL, family_tokenizer
from transformers.utils import chat_template_utils
from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained

from kaito_local.images.tinymodel import CHAT_TEMPLATE as PHI3
from kaito_tuning.chat import templates
from kaito_tuning.chat.templates import chosen, leaves_out_system, refused_by_roles, rendered
from kaito_tuning.chat.weights import weighted
from kaito_tuning.errors import ConfigInvalid

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
PHI3_MEDIUM = (
    "{% for message in messages %}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + "
    "'<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}"
)
MISTRAL_INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ASK = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
AGAIN = {"role": "assistant", "content": "So so."}
SYSTEM = {"role": "system", "content": "Be brief."}


def published(name: str) -> str:
    return (PUBLISHED / f"{name}.jinja").read_text()


def learned(tokenizer: Any, template: str, messages: list[dict[str, str]]) -> list[str]:
    """The texts of the runs of tokens that the marks cover."""
    found = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )

    def runs() -> Iterator[list[int]]:
        run: list[int] = []
        for token, masked in zip(found["input_ids"], found["assistant_masks"], strict=True):
            if masked:
                run.append(token)
            elif run:
                yield run
                run = []
        if run:
            yield run

    return [tokenizer.decode(run) for run in runs()]


QWEN3 = published("qwen3")
CASES = [
    # family, the model's own template, how the assistant's turn ends
    pytest.param("phi3", PHI3, "<|end|>", id="Phi-3-mini"),
    pytest.param("phi3", published("phi3_5"), "<|end|>", id="Phi-3.5"),
    pytest.param("phi3", PHI3_MEDIUM, "<|end|>", id="Phi-3-medium"),
    pytest.param("phi3", "{{ bos_token }}" + PHI3_MEDIUM, "<|end|>", id="Phi-3 as first published"),
    pytest.param("phi", None, "<|endoftext|>", id="Phi-2"),
    pytest.param("falcon", None, "<|endoftext|>", id="Falcon"),
    pytest.param("mistral", None, "</s>", id="Mistral"),
    pytest.param("mistral", MISTRAL_INSTRUCT, "</s>", id="Mistral-Instruct"),
    pytest.param("llama", None, "</s>", id="a Llama without one"),
    pytest.param("llama", LLAMA2, "</s>", id="Llama 2 chat"),
    pytest.param("llama", published("llama3"), "<|eot_id|>", id="Llama 3"),
    pytest.param("qwen2", None, "<|endoftext|>", id="a Qwen without one"),
    pytest.param("llama", published("llama3_1"), "<|eot_id|>", id="Llama 3.1"),
    pytest.param("llama", published("llama3_2"), "<|eot_id|>", id="Llama 3.2"),
    pytest.param("qwen2", published("qwen2_5"), "<|im_end|>", id="Qwen2.5"),
    pytest.param("qwen3", None, "<|endoftext|>", id="a Qwen3 without one"),
    pytest.param("qwen3", QWEN3, "<|im_end|>", id="Qwen3"),
    pytest.param("qwen3", published("qwen3_instruct_2507"), "<|im_end|>", id="Qwen3 instruct"),
    pytest.param("gemma3_text", None, "<end_of_turn>", id="a Gemma 3 without one"),
    pytest.param("gemma3_text", published("gemma3"), "<end_of_turn>", id="Gemma 3"),
]


@pytest.mark.parametrize(("family", "own", "end"), CASES)
def test_marks_cover_the_assistants_tokens_and_its_end_token_alone(family: str, own: str | None, end: str) -> None:
    tokenizer = family_tokenizer(family, chat_template=own)
    template = chosen(tokenizer, model_type=family)
    assert template.marked is not None
    assert template.own == (own is None)
    spoken = ["".join(text.split()) for text in learned(tokenizer, template.marked, [ASK, ANSWER, ASK, AGAIN])]
    # Qwen3 begins its last answer with thoughts, if only with none.
    thoughts = "<think></think>" if own == QWEN3 else ""
    assert spoken == [f"So.{end}", f"{thoughts}Soso.{end}"]


@pytest.mark.parametrize(("family", "own", "end"), CASES)
def test_trl_finds_nothing_to_patch_and_the_end_token_learned(family: str, own: str | None, end: str) -> None:
    tokenizer = family_tokenizer(family, chat_template=own)
    tokenizer.chat_template = chosen(tokenizer, model_type=family).marked
    assert get_training_chat_template(tokenizer) is None
    assert is_chat_template_stop_token_trained(tokenizer)


@pytest.mark.parametrize(("family", "own", "end"), CASES)
@pytest.mark.parametrize(
    ("messages", "ask"),
    [([ASK], True), ([ASK, ANSWER], False), ([SYSTEM, ASK, ANSWER, ASK, AGAIN], False), ([SYSTEM, ASK], True)],
    ids=["question", "answer", "system", "system question"],
)
def test_training_and_serving_see_the_same_text(
    family: str, own: str | None, end: str, messages: list[dict[str, str]], ask: bool
) -> None:
    tokenizer = family_tokenizer(family, chat_template=own)
    template = chosen(tokenizer, model_type=family)
    assert template.marked is not None
    if messages[0] is SYSTEM and own == MISTRAL_INSTRUCT:
        assert templates.refusal(tokenizer, template.marked, messages)
        return
    served = rendered(tokenizer, own or template.text, messages, ask=ask)
    assert rendered(tokenizer, template.marked, messages, ask=ask) == served
    assert rendered(tokenizer, template.text, messages, ask=ask) == served
    assert own is not None or not re.search(r"\{%-? *(end)?generation", template.text)


TELLING_THE_DAY = [
    pytest.param(published("llama3_2"), "Today Date: 26 Jul 2024", id="Llama 3.2"),
    pytest.param('{%- set day = strftime_now( "%A, %d %B" ) %}{{ day }}', "Friday, 26 July", id="a day of the week"),
    pytest.param("{{ strftime_now('%Y-%m-%d') }}", "2024-07-26", id="without a fallback"),
    pytest.param("{%- set f = '%Y' %}{{ strftime_now(f) }}", "26 Jul 2024", id="a format that is computed"),
]


@pytest.mark.parametrize(("own", "told"), TELLING_THE_DAY)
@pytest.mark.parametrize("day", [1, 2])
def test_what_is_trained_does_not_depend_on_the_day(
    monkeypatch: pytest.MonkeyPatch, own: str, told: str, day: int
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2031, 3, day, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = family_tokenizer("llama", chat_template=own)
    assert re.search("2031|March", tokenizer.apply_chat_template([ASK, ANSWER], tokenize=False))
    template = chosen(tokenizer, model_type="llama")
    assert told in rendered(tokenizer, template.text, [ASK, ANSWER])
    assert template.text == own  # what a server renders by


THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."}


@pytest.mark.parametrize(
    "messages",
    [
        [ASK, THOUGHT],
        [ASK, THOUGHT, ASK, THOUGHT],
        [ASK, THOUGHT, AGAIN],
        [SYSTEM, ASK, THOUGHT, THOUGHT, ASK],
        [ASK, {"role": "assistant", "content": "\n<think>a</think><think>\n\nb\n</think>\n\n\nSo.\n"}],
        [ASK, {"role": "assistant", "content": "</think>"}],
        [{"role": "user", "content": "<tool_response>3</tool_response>"}, THOUGHT, THOUGHT],
        [ASK, THOUGHT, {"role": "user", "content": "<tool_response>3</tool_response>"}, THOUGHT],
    ],
)
def test_thoughts_are_where_qwen3_has_them(messages: list[dict[str, str]]) -> None:
    tokenizer = family_tokenizer("qwen3", chat_template=QWEN3)
    template = chosen(tokenizer, model_type="qwen3")
    assert template.marked is not None
    assert rendered(tokenizer, template.marked, messages) == rendered(tokenizer, QWEN3, messages)


@pytest.mark.parametrize("family", SPECIAL)
def test_what_a_question_opens_is_what_the_answer_continues(family: str) -> None:
    tokenizer = family_tokenizer(family)
    template = chosen(tokenizer, model_type=family)
    question = rendered(tokenizer, template.text, [SYSTEM, ASK], ask=True)
    assert rendered(tokenizer, template.text, [SYSTEM, ASK, ANSWER]).startswith(question)
    assert "Be brief." in question


@pytest.mark.parametrize(("family", "own", "end"), CASES)
def test_a_message_of_weight_0_is_rendered_and_not_learned(family: str, own: str | None, end: str) -> None:
    tokenizer = family_tokenizer(family, chat_template=own)
    template = chosen(tokenizer, model_type=family)
    leaving_out = weighted(tokenizer, template)
    assert leaving_out.text == template.text
    assert leaving_out.marked is not None
    messages = [ASK, ANSWER | {"weight": 0}, ASK, AGAIN | {"weight": None}]
    assert rendered(tokenizer, leaving_out.marked, messages) == rendered(tokenizer, template.text, messages)
    spoken = ["".join(text.split()) for text in learned(tokenizer, leaving_out.marked, messages)]
    assert spoken == [f"<think></think>Soso.{end}" if own == QWEN3 else f"Soso.{end}"]


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% set now = m %}{% generation %}{{ now.content }}{% endgeneration %}{% endfor %}",
        "{% if messages | length > 3 %}{{ raise_exception('one question') }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    ],
    ids=["no marks", "marks around all messages", "one question alone"],
)
def test_weights_without_marks_that_can_be_told_apart_are_refused(text: str) -> None:
    tokenizer = family_tokenizer("phi", chat_template=text)
    template = chosen(tokenizer, model_type="phi")
    with pytest.raises(ConfigInvalid, match=r"^weight: 0 .* ModelConfig.chat_template"):
        weighted(tokenizer, template)


def test_a_template_that_nobody_knows_is_applied_without_marks() -> None:
    tokenizer = family_tokenizer(
        "phi", chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    )
    template = chosen(tokenizer, model_type="phi")
    assert (template.marked, template.own) == (None, False)


def test_a_configured_template_is_honoured_as_text_and_as_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}"
    tokenizer = family_tokenizer("phi", chat_template=PHI3)
    template = chosen(tokenizer, model_type="phi", configured=text)
    assert (template.marked, template.own) == (text, True)
    assert "{% generation" not in template.text
    monkeypatch.setattr(templates, "MOUNT", str(tmp_path))
    (tmp_path / "mine.jinja").write_text(text)
    assert chosen(tokenizer, model_type="phi", configured="mine.jinja") == template
    assert chosen(tokenizer, model_type="phi", configured=str(tmp_path / "mine.jinja")) == template


@pytest.mark.parametrize(
    ("configured", "sentence"),
    [
        ("/etc/passwd", "/etc/passwd is neither Jinja text nor a path below"),
        ("../etc/passwd", "neither Jinja text nor a path below"),
        ("none.jinja", "none.jinja cannot be read: No such file"),
        ("{% for m in messages %}", "cannot render a question and its answer"),
        ("{{ raise_exception('never') }}", "cannot render a question and its answer: never"),
        (3, "must be a text or a path below /mnt, got 3"),
    ],
)
def test_a_configured_template_that_cannot_be_used_is_refused(configured: object, sentence: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        chosen(family_tokenizer("phi"), model_type="phi", configured=configured)
    assert sentence in str(refused.value)


def test_a_template_that_refuses_or_drops_system_turns_is_found_out() -> None:
    strict = family_tokenizer("mistral", chat_template=MISTRAL_INSTRUCT)
    check = refused_by_roles(strict, MISTRAL_INSTRUCT)
    assert check([ASK, ANSWER]) == ""
    assert "refuses system, user, assistant: " in check([SYSTEM, ASK, ANSWER])
    assert not leaves_out_system(strict, MISTRAL_INSTRUCT)
    assert leaves_out_system(family_tokenizer("phi3"), PHI3_MEDIUM)
    assert not leaves_out_system(family_tokenizer("phi3"), PHI3)
