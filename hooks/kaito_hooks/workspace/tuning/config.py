"""The ConfigMap of a tuning job: which one it is, whether its content will do, where the results go."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from kaito_hooks.api.workspace import TuningSpec, Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.decision.snapshot import TuningConfig
from kaito_hooks.workspace.rules.spelling import nearest
from kaito_hooks.workspace.rules.validate import Problem
from kaito_hooks.workspace.tuning import fields
from kaito_hooks.workspace.tuning.document import MAX_SIZE, ConfigInvalid, read, shown, shown_name

KEY = "training_config.yaml"
ROOT = "training_config"
SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DataCollator", "DatasetConfig")
MOUNT = "/mnt"
DEFAULT_OUTPUT = "/mnt/output"
DATA_PATH = "/mnt/data"
CONFIG_PATH = "/mnt/config"
MOST_PROBLEMS = 5
"""How many problems of one document are told."""
_GO_TYPES = {str: "string", int: "int", float: "float64", list: "[]interface {}", dict: "map[string]interface {}"}


@dataclass(frozen=True, slots=True)
class Checked:
    """``output_dir``: where the results go. ``copy``: a default to put into the Workspace's namespace first.
    ``text``: the configuration itself, as it is written."""

    output_dir: str = DEFAULT_OUTPUT
    problems: tuple[Problem, ...] = ()
    copy: Obj | None = None
    text: str = ""


def name_of(spec: TuningSpec) -> str:
    """The ConfigMap's name: the user's, or the default of the method."""
    return spec.config or f"{spec.method}-params-template"


def check(workspace: Workspace, config: TuningConfig | None, *, release_namespace: str) -> Checked:
    """Whether the Job may be made with that ConfigMap (rules C26, C27); only a default is copied."""
    spec = workspace.tuning
    assert spec is not None
    name = name_of(spec)
    found, template = (config.found, config.template) if config is not None else (None, None)
    source = found or (None if spec.config else template)
    if source is None:
        where = (not spec.config and release_namespace) or workspace.namespace
        return Checked(
            problems=(
                Problem(
                    "C26",
                    "tuning",
                    "Failed to evaluate validateConfigMap: "
                    f"ConfigMap '{name}' specified in 'config' not found in namespace '{where}'",
                ),
            )
        )
    data = source.get("data") or {}
    content = _content(name, data, method=spec.method)
    if content.problems:
        return Checked(problems=tuple(map(_problem, content.problems)))
    copied = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": workspace.namespace},
        "data": dict(data),
    }
    return Checked(content.output_dir, copy=None if found else copied, text=str(data[KEY]))


def problems(name: str, data: Mapping[str, Any], *, method: str) -> list[Problem]:
    """What is wrong with the content of the ConfigMap of that name, the first few."""
    return list(map(_problem, _content(name, data, method=method).problems))


def _problem(message: str) -> Problem:
    return Problem("C27", "tuning.config", message)


@dataclass(frozen=True, slots=True)
class _Content:
    """What is wrong with a ConfigMap's content, and where the results go if nothing is."""

    problems: tuple[str, ...]
    output_dir: str = DEFAULT_OUTPUT


def _content(name: str, data: Mapping[str, Any], *, method: str) -> _Content:
    text = data.get(KEY)
    if text is None:
        return _Content((f"missing field(s): {KEY} in ConfigMap",))
    # Nothing longer than what is read anyway is kept by the cache.
    return _judge(name, text[: MAX_SIZE + 1], method)


@lru_cache(maxsize=256)
def _judge(name: str, text: str, method: str) -> _Content:
    """Judge one text; a Workspace that waits asks for the same one every few seconds."""
    try:
        document = read(text)
    except ConfigInvalid as error:
        return _Content((f"{KEY} in ConfigMap '{name}': {error}",))
    root = document.get(ROOT) if isinstance(document, Mapping) else None
    if not isinstance(root, Mapping):
        return _Content((f"missing field(s): {ROOT} in {KEY} of ConfigMap '{name}'",))
    if broken := tuple(islice(_broken(name, root, method), MOST_PROBLEMS)):
        return _Content(broken)
    return _Content((), output_directory(root.get("TrainingArguments") or {}))


def _broken(name: str, root: Mapping[Any, Any], method: str) -> Iterator[str]:
    for section in root:
        if section not in SECTIONS:
            yield f"Unrecognized section: {shown_name(section)}{nearest(str(section), SECTIONS)}"
    for section in SECTIONS:
        if root.get(section) is not None and not isinstance(root[section], Mapping):
            yield f"{section} in ConfigMap '{name}' must hold keys and values"
            return
    yield from _quantization(name, root.get("QuantizationConfig") or {}, method)
    yield from _output(root.get("TrainingArguments") or {})
    yield from fields.problems({section: root.get(section) or {} for section in SECTIONS})


def _quantization(name: str, section: Mapping[str, Any], method: str) -> Iterator[str]:
    values = [section.get("load_in_4bit"), section.get("load_in_8bit")]
    wrong = [value for value in values if value is not None and not isinstance(value, bool)]
    if wrong:
        yield f"value must be either nil or a boolean, got type {_GO_TYPES.get(type(wrong[0]), 'interface {}')}"
    elif all(values):
        yield f"Cannot set both 'load_in_4bit' and 'load_in_8bit' to true in ConfigMap '{name}'"
    elif method == "lora" and any(values):
        yield f"For method 'lora', 'load_in_4bit' or 'load_in_8bit' in ConfigMap '{name}' must not be true"
    elif method == "qlora" and not any(values):
        yield f"For method 'qlora', either 'load_in_4bit' or 'load_in_8bit' must be true in ConfigMap '{name}'"


def _output(arguments: Mapping[str, Any]) -> Iterator[str]:
    try:
        found = output_directory(arguments)
    except ValueError as error:
        yield str(error)
        return
    for taken in (DATA_PATH, CONFIG_PATH):
        if found == taken or found.startswith(f"{taken}/"):
            yield f"Invalid output_dir specified: {shown(arguments['output_dir'])}, {taken} is in use by the job"


def output_directory(arguments: Mapping[str, Any]) -> str:
    """The directory that ``output_dir`` in TrainingArguments names, strictly below /mnt; ValueError if it does not."""
    value = arguments.get("output_dir")
    if value is None or value == "":
        return DEFAULT_OUTPUT
    cleaned = posixpath.normpath(posixpath.join(MOUNT, value)) if isinstance(value, str) else ""
    if not cleaned.startswith(f"{MOUNT}/"):
        raise ValueError(f"Invalid output_dir specified: {shown(str(value))}, must be a directory")
    return cleaned
