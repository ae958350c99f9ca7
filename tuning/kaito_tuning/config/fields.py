"""The fields of ``training_config.yaml`` and the kinds of value that each takes, as the libraries declare them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kaito_tuning.config.sections import DatasetConfig

SHIPPED_FIELDS = Path(__file__).with_name("fields.json")

Fields = Mapping[str, frozenset[str]]
"""Of one section: each field's name with the kinds of value that it takes (the keys of KINDS); empty: any value."""
Choices = Mapping[str, tuple[str, ...]]
"""Of one section: the strings that a field takes, for fields that do not take any string."""

KINDS: Mapping[str, str] = {
    "boolean": "a boolean",
    "integer": "an integer",
    "number": "a number",
    "string": "a string",
    "list": "a list",
    "mapping": "a mapping",
    "null": "",
}
_KIND_OF = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_TEXT = frozenset({"string", "null"})
MODEL_FIELDS: Fields = {
    "dtype": frozenset(),
    "local_files_only": frozenset({"boolean", "null"}),
    "device_map": frozenset({"string", "mapping", "null"}),
    "attn_implementation": _TEXT,
    "revision": _TEXT,
    "chat_template": _TEXT,
}
COLLATOR_FIELDS: Fields = {
    "mlm": frozenset({"boolean", "null"}),
    "mlm_probability": frozenset({"number", "null"}),
    "pad_to_multiple_of": frozenset({"integer", "null"}),
    "return_tensors": _TEXT,
}
QUANTIZATION_CHOICES: Choices = {
    # bitsandbytes and transformers check them in their code, without a type that says so.
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_quant_storage": ("float16", "float32", "int8", "uint8", "float64", "bfloat16"),
}


@dataclass(frozen=True, slots=True)
class KnownFields:
    """Fields that the installed libraries take, by section."""

    lora: Fields
    training: Fields
    quantization: Fields
    choices: Mapping[str, Choices]

    @classmethod
    def installed(cls) -> KnownFields:
        """Read from the installed peft, trl and transformers."""
        from peft import LoraConfig
        from transformers import BitsAndBytesConfig
        from trl import SFTConfig

        parameters = inspect.signature(BitsAndBytesConfig.__init__).parameters
        return cls(
            lora=_fields(LoraConfig),
            training=_fields(SFTConfig),
            # Its parameters have no types but their defaults; null is the same as not given.
            quantization={
                name: frozenset() if parameter.default is None else kinds(type(parameter.default)) | {"null"}
                for name, parameter in parameters.items()
                if name not in ("self", "kwargs")
            },
            choices={
                "ModelConfig": {},
                "QuantizationConfig": QUANTIZATION_CHOICES,
                "LoraConfig": _choices(LoraConfig),
                "TrainingArguments": _choices(SFTConfig),
                "DataCollator": {},
                "DatasetConfig": _choices(DatasetConfig),
            },
        )

    @classmethod
    def shipped(cls) -> KnownFields:
        """The same, from the list that is made of the pinned libraries, for where they are not installed."""
        found = json.loads(SHIPPED_FIELDS.read_text())
        fields = {
            section: {name: frozenset(kinds.split()) for name, kinds in names.items()}
            for section, names in found["fields"].items()
        }
        return cls(
            lora=fields["LoraConfig"],
            training=fields["TrainingArguments"],
            quantization=fields["QuantizationConfig"],
            choices={
                section: {name: tuple(values) for name, values in offered.items()}
                for section, offered in found["choices"].items()
            },
        )

    def by_section(self) -> Mapping[str, Fields]:
        """Every section of the file with its fields."""
        return {
            "ModelConfig": MODEL_FIELDS,
            "QuantizationConfig": self.quantization,
            "LoraConfig": self.lora,
            "TrainingArguments": self.training,
            "DataCollator": COLLATOR_FIELDS,
            "DatasetConfig": _fields(DatasetConfig),
        }


def _fields(configuration: type) -> Fields:
    hints = typing.get_type_hints(configuration)
    return {found.name: kinds(hints[found.name]) for found in dataclasses.fields(configuration) if found.init}


def kinds(annotation: Any) -> frozenset[str]:
    """The kinds of YAML value that an annotated field takes; empty: any. A class of its own is given as a mapping."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        found = [kinds(choice) for choice in typing.get_args(annotation)]
        return frozenset().union(*found) if all(found) else frozenset()
    if origin is typing.Literal:
        return frozenset(_KIND_OF[type(value)] for value in typing.get_args(annotation))
    concrete = origin or annotation
    if concrete in _KIND_OF:
        return frozenset({_KIND_OF[concrete]})
    if not isinstance(concrete, type):
        return frozenset()
    if issubclass(concrete, Enum):
        return frozenset({"string"})
    return frozenset({"list" if issubclass(concrete, list | tuple) else "mapping"})


def _choices(configuration: type) -> Choices:
    hints = typing.get_type_hints(configuration)
    found = {f.name: choices(hints[f.name]) or _offered(f) for f in dataclasses.fields(configuration) if f.init}
    return {name: values for name, values in found.items() if values}


def choices(annotation: Any) -> tuple[str, ...]:
    """The strings that an annotated field takes; empty: any, or none. An enumeration is meant even beside ``str``."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(choices, typing.get_args(annotation))), ())
    if typing.get_origin(annotation) is typing.Literal:
        values = tuple(value for value in typing.get_args(annotation) if isinstance(value, str))
        # A pattern, such as pissa_niter_[number of iters]: nothing that could be compared.
        return () if any("[" in value for value in values) else values
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(str(member.value) for member in annotation)
    return ()


def _offered(declared: dataclasses.Field[Any]) -> tuple[str, ...]:
    """What the libraries' own command lines offer for a field that is typed as any string."""
    return tuple(str(value) for value in declared.metadata.get("choices") or ())


def kind_of(value: object) -> str:
    """The kind of a value that YAML gave; ``other`` for what no field takes, such as a date."""
    if isinstance(value, Mapping):
        return "mapping"
    return "list" if isinstance(value, list) else _KIND_OF.get(type(value), "other")
