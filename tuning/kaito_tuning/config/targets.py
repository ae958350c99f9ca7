"""Which modules of a model a LoRA adapts: each family's own, by the names that its weights have.

Phi-3 fuses q, k, v into qkv_proj and gate, up into gate_up_proj, so that the split names that many files carry would
match nothing there; they are translated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

from kaito_tuning.config.modules import EMBEDDINGS, FAMILIES, HEAD
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
_LAYER = re.compile(r"\.(\d+)\.")


def adapted(
    lora: Mapping[str, Any], *, model_type: str, module_names: Iterable[str], vocabulary: int | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The LoraConfig with names that this model has, and sentences about those that were translated.

    ``module_names``: of the model, or `modules.Modules.names`. ``vocabulary``: how many tokens there are, if known.
    Raises ConfigInvalid for a name, a number of a layer or of a token, or a pattern that fits nothing.
    """
    names = list(module_names)
    wanted, said = target_modules(lora.get("target_modules"), model_type=model_type, module_names=names)
    _check_saved(lora.get("modules_to_save") or (), model_type=model_type, module_names=names)
    _check_tokens(lora.get("trainable_token_indices"), vocabulary, module_names=names)
    _check_alone(lora, wanted)
    layers = _replicated(lora.get("layer_replication") or (), _layers(names))
    suffixes = tuple(f".{suffix}" for suffix in wanted)
    targets = [name for name in names if f".{name}".endswith(suffixes)]
    targets = _not_excluded(lora.get("exclude_modules"), targets)
    targets = _of_layers(lora, targets, layers=layers, model_type=model_type)
    patterns = {
        key: _pattern(key, lora[key], model_type=model_type, targets=targets) for key in _PATTERNS if lora.get(key)
    }
    return {**lora, "target_modules": wanted, **patterns}, (said,) if said else ()


def _layers(names: Iterable[str]) -> int:
    """How many layers a model with these modules has."""
    return 1 + max((int(found[1]) for name in names if (found := _LAYER.search(name))), default=-1)


def _replicated(given: Sequence[Any], layers: int) -> int:
    """How many layers there are with LoraConfig.layer_replication."""
    if not given:
        return layers
    for part in given:
        pair = isinstance(part, list) and len(part) == 2 and all(type(number) is int for number in part)
        if not pair or not 0 <= part[0] < part[1] <= layers:
            raise ConfigInvalid(
                f"LoraConfig.layer_replication must hold pairs of a first layer and the one behind the last, of "
                f"{layers}, got {part!r}"
            )
    return sum(end - start for start, end in given)


def _check_saved(given: Sequence[Any], *, model_type: str, module_names: Iterable[str]) -> None:
    """Modules that are trained whole have to be some that no adapter is for."""
    ends = {name.rsplit(".", 1)[-1] for name in module_names}
    others = sorted((FAMILIES[model_type].ends & ends) - {*TARGETS[model_type]})
    for name in given:
        if name not in others:
            raise ConfigInvalid(
                f"LoraConfig.modules_to_save: {name!r} is no module that can be trained whole; those are "
                f"{', '.join(others)}"
            )


def _check_tokens(given: object, vocabulary: int | None, *, module_names: Iterable[str]) -> None:
    if given is None:
        return
    by_module = given if isinstance(given, Mapping) else {None: given}
    ends = {name.rsplit(".", 1)[-1] for name in module_names}
    for name, tokens in by_module.items():
        if name is not None and name not in {*EMBEDDINGS, HEAD} & ends:
            raise ConfigInvalid(f"LoraConfig.trainable_token_indices: the model has no embedding {name!r}")
        listed = tokens if isinstance(tokens, list) else []
        if not listed or any(type(t) is not int or t < 0 or t >= (vocabulary or math.inf) for t in listed):
            below = "" if vocabulary is None else f" from 0 to {vocabulary - 1:,}"
            raise ConfigInvalid(f"LoraConfig.trainable_token_indices must hold ids of tokens{below}, got {tokens!r}")


def _check_alone(lora: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """An embedding is changed in one way, and not in those that are made for what multiplies by weights alone."""
    tokens = lora.get("trainable_token_indices")
    ways = {
        "target_modules": {*wanted},
        "modules_to_save": {*(lora.get("modules_to_save") or ())},
        "trainable_token_indices": {*tokens} if isinstance(tokens, Mapping) else {*EMBEDDINGS} if tokens else set(),
    }
    for (first, some), (second, others) in combinations(ways.items(), 2):
        for name in sorted(some & others):
            raise ConfigInvalid(f"LoraConfig.{first} and {second} must not both change {name}; leave one of them out")
    for name in sorted({*EMBEDDINGS} & {*wanted}):
        for way in ("lora_bias", "alora_invocation_tokens", "velora_config"):
            if lora.get(way) not in (None, False):
                raise ConfigInvalid(f"LoraConfig.{way} must not be set where {name} is adapted; leave one of them out")


def _not_excluded(given: object, targets: list[str]) -> list[str]:
    """Modules that LoraConfig.exclude_modules, ends of names or a regular expression of whole names, leaves."""
    if not given:
        return targets
    if isinstance(given, str):
        try:
            expression = re.compile(given)
        except re.error as error:
            raise ConfigInvalid(f"LoraConfig.exclude_modules: {given!r} is no regular expression: {error}") from None
        left = [name for name in targets if not expression.fullmatch(name)]
    else:
        ends = [f".{name}" for name in cast(list[Any], given)]
        for end in ends:
            if not any(f".{name}".endswith(end) for name in targets):
                raise ConfigInvalid(f"LoraConfig.exclude_modules: {end[1:]!r} matches no module that is adapted")
        left = [name for name in targets if not f".{name}".endswith(tuple(ends))]
    if len(left) in (0, len(targets)):
        what = "no module" if left else "every module"
        raise ConfigInvalid(f"LoraConfig.exclude_modules: {given!r} matches {what} that is adapted")
    return left


def _of_layers(lora: Mapping[str, Any], targets: list[str], *, layers: int, model_type: str) -> list[str]:
    """Modules in LoraConfig.layers_to_transform; all if there is none."""
    given, pattern = lora.get("layers_to_transform"), lora.get("layers_pattern")
    if given is None or given == []:
        return targets
    wanted = [given] if isinstance(given, int) else given
    for number in wanted:
        if type(number) is not int or not 0 <= number < layers:
            raise ConfigInvalid(
                f"LoraConfig.layers_to_transform must hold numbers of layers from 0 to {layers - 1}, got {number!r}"
            )
    own = FAMILIES[model_type].layers.rsplit(".", 1)[-1]
    if pattern and pattern not in (own, [own]):
        raise ConfigInvalid(f"LoraConfig.layers_pattern: the model's layers are called {own}, got {pattern!r}")
    left = [name for name in targets if (found := _LAYER.search(name)) and int(found[1]) in wanted]
    if not left and not lora.get("layer_replication"):
        raise ConfigInvalid(f"LoraConfig.layers_to_transform: no module that is adapted is in the layers {wanted}")
    return left or targets


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
    known = {*TARGETS[model_type], *EMBEDDINGS, HEAD}
    present = known & {name.rsplit(".", 1)[-1] for name in module_names}
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
