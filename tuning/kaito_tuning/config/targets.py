"""Which modules of a model a LoRA adapts: each family's own, by the names that its weights have.

Phi-3 fuses q, k, v into qkv_proj and gate, up into gate_up_proj, so that the split names that many files carry would
match nothing there; they are translated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kaito_tuning.errors import ConfigInvalid

_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGETS: Mapping[str, tuple[str, ...]] = {
    "phi3": ("down_proj", "gate_up_proj", "o_proj", "qkv_proj"),
    "phi": ("dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"),
    "falcon": ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"),
    "mistral": tuple(sorted(_SPLIT)),
    "llama": tuple(sorted(_SPLIT)),
    "qwen2": tuple(sorted(_SPLIT)),
    "qwen3": tuple(sorted(_SPLIT)),
    "gemma3_text": tuple(sorted(_SPLIT)),
}
"""By the model's type: everything that multiplies by weights, but the head."""
NEVER_PACKED = frozenset({"falcon"})
"""Families whose packed documents see each other; the training tries it on the loaded model, which a check has not."""
_FUSED: Mapping[str, Mapping[str, str]] = {
    "phi3": {
        "q_proj": "qkv_proj",
        "k_proj": "qkv_proj",
        "v_proj": "qkv_proj",
        "gate_proj": "gate_up_proj",
        "up_proj": "gate_up_proj",
    }
}
_PATTERNS = ("rank_pattern", "alpha_pattern")


def adapted(
    lora: Mapping[str, Any], *, model_type: str, module_names: Iterable[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The LoraConfig with names that this model has, and sentences about those that were translated.

    Raises ConfigInvalid for a name or a pattern that matches no module.
    """
    names = list(module_names)
    wanted, said = target_modules(lora.get("target_modules"), model_type=model_type, module_names=names)
    suffixes = tuple(f".{suffix}" for suffix in wanted)
    targets = [name for name in names if f".{name}".endswith(suffixes)]
    patterns = {
        key: _pattern(key, lora[key], model_type=model_type, targets=targets) for key in _PATTERNS if lora.get(key)
    }
    return {**lora, "target_modules": wanted, **patterns}, (said,) if said else ()


def check_patterns(lora: Mapping[str, Any], *, model_type: str, wanted: Iterable[str]) -> None:
    """What of the patterns can be known without the model: names that are adapted, regular expressions that are one.

    ``wanted``: the names of the adapted modules. Raises ConfigInvalid.
    """
    for key in _PATTERNS:
        given = lora.get(key)
        if given is None:
            continue
        paths = {name for name in given if not re.fullmatch(r"\w+", str(name))}
        for name in paths:
            _compiled(key, str(name))
        named = {name: value for name, value in given.items() if name not in paths}
        _pattern(key, named, model_type=model_type, targets=wanted)


def _compiled(key: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(.*\.)?({name})")
    except re.error as error:
        raise ConfigInvalid(f"LoraConfig.{key}: {name!r} is no regular expression: {error}") from None


def target_modules(given: object, *, model_type: str, module_names: Iterable[str]) -> tuple[list[str], str | None]:
    """Sorted name suffixes to adapt, and a sentence if names were translated.

    Phi-3 fuses q, k, v into qkv_proj and gate, up into gate_up_proj: the split names that many files carry are
    mapped, because they would match nothing. "all-linear" becomes the model's own list, so that the same run saves
    the same file. Raises ConfigInvalid for a name that matches no module.
    """
    if given is None or given == "all-linear":
        return list(TARGETS[model_type]), None
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise ConfigInvalid(f"LoraConfig.target_modules must be a list of module names, got {given!r}")
    fused = _FUSED.get(model_type, {})
    wanted = sorted({fused.get(name, name) for name in names})
    present = {name.rsplit(".", 1)[-1] for name in module_names}
    for name in wanted:
        if name not in present:
            raise ConfigInvalid(
                f"LoraConfig.target_modules: the model has no module {name}; it has {', '.join(TARGETS[model_type])}"
            )
    translated = sorted(name for name in names if name in fused)
    said = (
        f"target modules {', '.join(translated)} are fused in this model: adapting {', '.join(wanted)}"
        if translated
        else None
    )
    return wanted, said


def _pattern(key: str, given: object, *, model_type: str, targets: Iterable[str]) -> dict[str, Any]:
    """``given``: a module's name, or a regular expression for the end of its path, with a number."""
    if not isinstance(given, Mapping):
        raise ConfigInvalid(f"LoraConfig.{key} must hold module names and numbers, got {given!r}")
    fused = _FUSED.get(model_type, {})
    known = list(targets)
    found: dict[str, Any] = {}
    for name, value in ((fused.get(str(name), str(name)), value) for name, value in given.items()):
        if found.setdefault(name, value) != value:
            raise ConfigInvalid(f"LoraConfig.{key}: this model fuses modules into {name}, which takes one number")
        expression = _compiled(key, name)
        if not any(map(expression.fullmatch, known)):
            raise ConfigInvalid(f"LoraConfig.{key}: {name!r} matches no module that is adapted")
    return found
