"""Chat templates: which one a model's conversations are rendered by, with and without marks of what is generated.

Training learns the assistant's tokens alone, which a template tells by ``{% generation %}`` marks. Models bring
templates without them, so a marked one is looked up that renders the same; base models bring none and get one that is
trained with and must go wherever the adapter goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kaito_tuning.chat.bounded import bounded
from kaito_tuning.chat.day import on_one_day
from kaito_tuning.config import MOUNT
from kaito_tuning.errors import ConfigInvalid, ModelInvalid
from kaito_tuning.reading import raise_passing

FILE = "chat_template.jinja"
"""How the file beside an adapter is called, as transformers call it beside a model."""

_FOLDER = Path(__file__).parent / "chat_templates"
_BASE: Mapping[str, str] = {
    "phi3": "phi3",
    "phi": "phi",
    "falcon": "falcon",
    "mistral": "mistral",
    "llama": "llama2",
    "qwen2": "qwen2_base",
    "qwen3": "qwen2_base",
    "gemma3_text": "gemma3",
}
"""By the model's type, the template of models that have none."""
_MARKED: Mapping[str, tuple[str, ...]] = {
    "phi3": ("phi3", "phi3_user_opens"),
    "phi": ("phi", "chatml"),
    "falcon": ("falcon", "chatml"),
    "mistral": ("mistral", "mistral_instruct", "chatml"),
    "llama": ("llama2", "llama3", "llama3_1", "llama3_2", "chatml"),
    "qwen2": ("qwen2", "qwen2_5", "qwen2_base", "chatml"),
    "qwen3": ("qwen3", "qwen2_base", "chatml"),
    "gemma3_text": ("gemma3",),
}
"""By the model's type, marked templates that may render what the model's own does."""
_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_OPENS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_LARGEST = 1 << 20
LONGEST_RENDERING = 5.0
"""Seconds of this process's time for one conversation; a template that takes more is taken for one without an end."""

_S = {"role": "system", "content": " Be brief.\n"}
_U = {"role": "user", "content": " Why?\n"}
_A = {"role": "assistant", "content": " So.\n"}
_T = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."}
_CONVERSATIONS: tuple[tuple[Sequence[Mapping[str, str]], bool], ...] = (
    ((_U,), True),
    ((_U, _A), False),
    ((_U, _A, _U), True),
    ((_U, _A, _U, _A), False),
    ((_S, _U), True),
    ((_S, _U, _A, _U, _A), False),
    ((_U, _U, _A), False),
    ((_U, _T, _U, _T), False),
)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How conversations are rendered.

    ``text`` has no marks; ``marked`` renders the same with marks around what the assistant generates, its end token
    included; None: nobody knows where to put them. ``own``: not the model's, so that it goes beside the adapter.
    """

    text: str
    marked: str | None
    own: bool


def chosen(tokenizer: Any, *, model_type: str, configured: object = None) -> ChatTemplate:
    """What ModelConfig.chat_template says, else the model's own, else that of its family. Raises ConfigInvalid."""
    if configured:
        text = configured_text(configured)
        problem = refusal(tokenizer, text, [_U, _A])
        if problem:
            raise ConfigInvalid(f"ModelConfig.chat_template cannot render a question and its answer: {problem}")
        if _OPENS.search(text) and not _marks_an_answer(tokenizer, text):
            raise ConfigInvalid(
                "ModelConfig.chat_template marks nothing of what the assistant says; put {% generation %} and "
                "{% endgeneration %} around its content and end token"
            )
        return ChatTemplate(_unmarked(text), _marked(tokenizer, text, model_type), own=True)
    given = tokenizer.chat_template
    if isinstance(given, Mapping):
        given = given.get("default") or next(iter(given.values()), None)
    if given:
        return ChatTemplate(given, _marked(tokenizer, given, model_type), own=False)
    if model_type not in _BASE:
        raise ConfigInvalid(
            f"this model of type {model_type} brings no chat template; give one with ModelConfig.chat_template"
        )
    marked = _read(_BASE[model_type])
    return ChatTemplate(_unmarked(marked), marked, own=True)


def rendered(tokenizer: Any, template: str, messages: Sequence[Mapping[str, str]], *, ask: bool = False) -> str:
    """A conversation as text; ``ask``: up to where the assistant begins to answer. Raises what Jinja raises."""
    with bounded(LONGEST_RENDERING):
        text: str = tokenizer.apply_chat_template(
            list(messages), chat_template=on_one_day(template), add_generation_prompt=ask, tokenize=False
        )
    return text


def tokenised(tokenizer: Any, template: str, messages: Sequence[Mapping[str, Any]]) -> Mapping[str, list[int]]:
    """A conversation's ``input_ids``, and ``assistant_masks``: 1 where a mark is. Raises what Jinja raises."""
    with bounded(LONGEST_RENDERING):
        found: Mapping[str, list[int]] = tokenizer.apply_chat_template(
            list(messages),
            chat_template=on_one_day(template),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
    return found


def refusal(tokenizer: Any, template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Why a template does not render a conversation; "" when it does."""
    try:
        rendered(tokenizer, template, messages)
    except Exception as error:  # a template raises what it likes, besides what Jinja, its filters and its sandbox raise
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def refused_by_roles(tokenizer: Any, template: str) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """A check of many conversations: what a template refuses depends on the roles, so each order is tried once."""
    found: dict[tuple[str, ...], str] = {}

    def check(messages: Sequence[Mapping[str, str]]) -> str:
        roles = tuple(message["role"] for message in messages)
        if roles not in found:
            found[roles] = refusal(tokenizer, template, messages)
        return found[roles] and f"the model's chat template refuses {', '.join(roles[:6])}: {found[roles]}"

    return check


def refusal_of_model(
    folder: Path, *, model_type: str, configured: object
) -> Callable[[Sequence[Mapping[str, str]]], str]:
    """The same check for the model in a folder. Raises ModelInvalid or ConfigInvalid."""
    tokenizer = load_tokenizer(folder)
    return refused_by_roles(tokenizer, chosen(tokenizer, model_type=model_type, configured=configured).text)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder. Raises ModelInvalid, or OSError where that is not about its files."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers and transformers raise many types for files that they cannot use
        raise_passing(error)
        what = " ".join(str(error).split())[:300]
        raise ModelInvalid(f"the tokenizer in {folder} cannot be loaded: {what}") from error
    if tokenizer.eos_token is None:
        raise ModelInvalid(
            f"the tokenizer in {folder} has no eos_token, so that no answer would end; name it in tokenizer_config.json"
        )
    return tokenizer


def leaves_out_system(tokenizer: Any, template: str) -> bool:
    """Whether a template drops what the system says without a word."""
    asked = [{"role": "system", "content": "aardvark"}, {"role": "user", "content": "Why?"}]
    return not refusal(tokenizer, template, asked) and "aardvark" not in rendered(tokenizer, template, asked)


def configured_text(value: object) -> str:
    """The template that ModelConfig.chat_template gives or leads to. Raises ConfigInvalid."""
    if not isinstance(value, str):
        raise ConfigInvalid(f"ModelConfig.chat_template must be a text or a path below {MOUNT}, got {value!r}")
    if "{" in value or "\n" in value:
        return value
    if "\0" in value:
        raise ConfigInvalid("ModelConfig.chat_template holds a NUL character; give Jinja text or a path")
    path = Path(MOUNT, value).resolve()
    if not path.is_relative_to(MOUNT):
        raise ConfigInvalid(f"ModelConfig.chat_template: {value} is neither Jinja text nor a path below {MOUNT}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigInvalid(f"ModelConfig.chat_template: {path} is longer than 1 MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise_passing(error)
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigInvalid(f"ModelConfig.chat_template: {path} cannot be read: {reason}") from None


def _marked(tokenizer: Any, text: str, model_type: str) -> str | None:
    if _OPENS.search(text) and _marks_an_answer(tokenizer, text):
        return text
    wanted = _renderings(tokenizer, text)
    for name in _MARKED.get(model_type, ()):
        for candidate in (_read(name), "{{- bos_token -}}" + _read(name)):
            if _renderings(tokenizer, candidate) == wanted:
                return candidate
    return None


def _marks_an_answer(tokenizer: Any, text: str) -> bool:
    try:
        found = tokenised(tokenizer, text, [_U, _A])
    except Exception:  # besides what refusal says, marks around nothing are an error of the tokenizer's
        return False
    return any(found["assistant_masks"])


def _renderings(tokenizer: Any, template: str) -> list[str | None]:
    """What comes of conversations of every order of roles; None where the template refuses."""
    found: list[str | None] = []
    for messages, ask in _CONVERSATIONS:
        try:
            found.append(rendered(tokenizer, template, messages, ask=ask))
        except Exception:  # see refusal
            found.append(None)
    return found


def _unmarked(text: str) -> str:
    """The template for servers that know no marks: a comment keeps what a mark does to the white space around it."""
    return _MARK.sub(lambda mark: mark[0].replace("%", "#"), text)


@cache
def _read(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
