"""The fields of a tuning ConfigMap's sections: what peft, trl and transformers take, without having them here.

``fields.json`` is generated from the trainer's pinned libraries (``make fields``): the fields, the kinds of value and,
where a library enumerates them, the values that they take, with the trainer's own lists of fields that were renamed,
are gone or are refused. The trainer checks the same again, in the same words. Which numbers nothing can be trained
with, no rows or an infinite rate, its code alone knows: the check that it makes refuses them before a node is bought.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from kaito_hooks.workspace.rules.spelling import nearest
from kaito_hooks.workspace.tuning.document import shown, shown_name

_LIST: Mapping[str, Any] = json.loads(resources.files(__package__).joinpath("fields.json").read_text())
_OWN_RULES = {"load_in_4bit", "load_in_8bit", "output_dir", "report_to"}
"""Fields whose values other rules judge, with other sentences."""
_KIND_OF = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list", dict: "mapping"}


def problems(sections: Mapping[str, Mapping[Any, Any]]) -> Iterator[str]:
    """A sentence for every field that is unknown, refused, or has a value of no use. ``sections``: all of them."""
    named: dict[str, dict[str, Any]] = {}
    for section, given in sections.items():
        named[section] = yield from _named(section, given)
    yield from _report_to(named["TrainingArguments"].get("report_to"))
    for section, values in named.items():
        for name, value in values.items():
            if name not in _OWN_RULES:
                yield from _ill_typed(section, name, value)
                yield from _not_offered(section, name, value)
    yield from _dtypes(named["ModelConfig"], named["QuantizationConfig"])
    yield from _split(named["DatasetConfig"].get("train_test_split"))
    yield from _bad_rows(named["DatasetConfig"].get("max_bad_rows"))


def _named(section: str, given: Mapping[Any, Any]) -> Generator[str, None, dict[str, Any]]:
    """Returns the section with today's names; yields what is wrong with the names that it has."""
    known = _LIST["fields"][section]
    taken: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in given.items()):
        if key in _LIST["refused"] or key.startswith(_LIST["refusedPrefix"]):
            if value not in (None, False, "", []):
                yield (
                    f"{section}.{shown_name(key)} is not allowed: "
                    "nothing is loaded as code, uploaded or sharded by this job"
                )
            continue
        name = _LIST["renamed"].get(key, key) if key not in known else key
        if name in known:
            taken[name] = value
        elif key not in _LIST["gone"] and not key.startswith(_LIST["gonePrefix"]):
            yield f"{section} has no field {shown_name(key)}{nearest(key, known)}"
    return taken


def _ill_typed(section: str, name: str, value: object) -> Iterator[str]:
    accepted = _LIST["fields"][section][name].split()
    if not accepted or _fits(value, accepted):
        return
    wanted = " or ".join(word for kind, word in _LIST["kinds"].items() if kind in accepted and word)
    quotes = "; a word like no or on needs quotes" if isinstance(value, bool) and "string" in accepted else ""
    yield f"{section}.{name} must be {wanted}, got {shown(value)}{quotes}"


def _not_offered(section: str, name: str, value: object) -> Iterator[str]:
    offered = _LIST["choices"][section].get(name)
    if offered is not None and isinstance(value, str) and value not in offered:
        yield f"{section}.{name}: {shown(value)} is {_none_of(value, offered)}"


def _none_of(value: object, offered: Sequence[str]) -> str:
    """The end of a sentence about a value that is not among those, with the nearest of them."""
    near = nearest(str(value), offered)
    many = len(offered) > _LIST["many"]
    return f"no value that it takes{near}" if near and many else f"none of {', '.join(offered)}{near}"


def _fits(value: object, accepted: Iterable[str]) -> bool:
    if ("null" if value is None else _KIND_OF.get(type(value), "other")) in accepted:
        return True
    if "number" in accepted and _number(value) is not None:
        return True
    return "integer" in accepted and isinstance(value, float) and value.is_integer()


def _number(value: object) -> float | None:
    """YAML 1.1 reads 2e-4 as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _report_to(value: object) -> Iterator[str]:
    if value not in (None, "none", [], ["none"]):
        yield f"TrainingArguments.report_to: {shown(value)} would send data elsewhere; only none is allowed"


def _dtypes(model: Mapping[str, Any], quantization: Mapping[str, Any]) -> Iterator[str]:
    known = _LIST["dtypes"]
    dtype, compute = model.get("dtype", "auto"), quantization.get("bnb_4bit_compute_dtype")
    if dtype not in known:
        yield f"ModelConfig.torch_dtype: {shown(dtype)} is {_none_of(dtype, known)}"
    if compute is not None and str(compute).removeprefix("torch.") not in known:
        yield f"QuantizationConfig.bnb_4bit_compute_dtype: {shown(compute)} is {_none_of(compute, known)}"


def _split(value: object) -> Iterator[str]:
    number = _number(value)
    if number is not None and not 0 < number <= 1:
        yield f"Train/Test split needs to be between 0 and 1, got DatasetConfig.train_test_split {shown(value)}"


def _bad_rows(value: object) -> Iterator[str]:
    number = _number(value)
    if number is not None and not 0 <= number < 1:
        yield f"DatasetConfig.max_bad_rows must be from 0 to below 1, got {shown(value)}"
