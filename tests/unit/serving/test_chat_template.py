"""The chat template: the asked one, else the one that an adapter was trained with, else the model's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.tiny_model import tiny_model

from kaito_serving.errors import OptionError
from kaito_serving.model.chat_template import choose
from kaito_serving.model.load import load
from kaito_serving.options import Options

QUESTION = [{"role": "user", "content": "Why?"}]
TEMPLATE = "{% for message in messages %}Q: {{ message['content'] }}\nA:{% endfor %}"


def adapter(folder: Path, name: str, template: str | bytes | None) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text("{}")
    if template is not None:
        content = template if isinstance(template, bytes) else template.encode()
        (folder / name / "chat_template.jinja").write_bytes(content)


@pytest.mark.parametrize(
    ("asked", "adapters", "chosen"),
    [
        pytest.param(None, {}, None, id="nothing: the model's own"),
        pytest.param(None, {"tuned": TEMPLATE}, "tuned", id="an adapter's"),
        pytest.param(None, {"other": None, "tuned": TEMPLATE}, "tuned", id="the adapter's that has one"),
        pytest.param(None, {"a": TEMPLATE, "b": "{{ x }}"}, "a", id="of several the first"),
        pytest.param("{{ x }}", {"tuned": TEMPLATE}, "{{ x }}", id="what is asked for"),
    ],
)
def test_which_template_is_used(
    tmp_path: Path, asked: str | None, adapters: dict[str, str | None], chosen: str | None
) -> None:
    for name, template in adapters.items():
        adapter(tmp_path, name, template)
    file = tmp_path / str(chosen) / "chat_template.jinja"
    assert choose(asked, tmp_path) == (str(file) if chosen in adapters else chosen)


def test_a_folder_without_an_adapter_has_no_say_and_none_need_be_there(tmp_path: Path) -> None:
    adapter(tmp_path, "half", TEMPLATE)
    (tmp_path / "half" / "adapter_config.json").unlink()
    assert choose(None, tmp_path) is None
    assert choose(None, tmp_path / "none") is None


def test_a_template_that_is_no_text_is_refused_with_its_file(tmp_path: Path) -> None:
    adapter(tmp_path, "tuned", b"\xff\xfe\x00")
    with pytest.raises(OptionError, match=r"tuned/chat_template.jinja cannot be read"):
        choose(None, tmp_path)


def test_a_base_model_without_a_template_answers_by_that_of_its_adapter(tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model(), tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    assert load(Options(weights=str(model), adapters_dir=tmp_path / "none")).tokenizer.chat_template is None
    adapter(tmp_path / "adapters", "tuned", TEMPLATE)
    tokenizer = load(Options(weights=str(model), adapters_dir=tmp_path / "adapters")).tokenizer
    assert tokenizer.apply_chat_template(QUESTION, tokenize=False) == "Q: Why?\nA:"
