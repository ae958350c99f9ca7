"""``training_config.yaml``: KAITO's six sections turned into what transformers, peft and trl take.

Users bring files written for older releases of these libraries. Renamed fields are translated, fields that are gone are
dropped with a warning, unknown fields are refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import posixpath
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from kaito_tuning.errors import ConfigInvalid

SECTIONS = ("ModelConfig", "QuantizationConfig", "LoraConfig", "TrainingArguments", "DataCollator", "DatasetConfig")
DEFAULT_OUTPUT = "/mnt/output"
MOUNT = "/mnt"

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
}
GONE = {"overwrite_output_dir", "logging_dir", "save_safetensors", "group_by_length", "fp16_backend"}
GONE_PREFIX = "per_gpu_"
REFUSED = {"trust_remote_code", "push_to_hub", "deepspeed", "fsdp", "fsdp_config"}
REFUSED_PREFIX = "hub_"
DTYPES = ("float32", "float16", "bfloat16", "auto")

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
MANY = 12
"""More choices than a sentence should list."""


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """How the data set is found, shuffled and split."""

    shuffle_dataset: bool = True
    shuffle_seed: int = 42
    train_test_split: float = 0.8
    dataset_path: str | None = None
    dataset_extension: str | None = None
    context_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """A checked configuration; ``warnings`` are sentences to show the user."""

    model: Mapping[str, Any]
    quantization: Mapping[str, Any]
    lora: Mapping[str, Any]
    training: Mapping[str, Any]
    dataset: DatasetConfig
    output_dir: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def load_in_4bit(self) -> bool:
        """Whether the base model is loaded as nf4 or fp4."""
        return bool(self.quantization.get("load_in_4bit"))

    @property
    def load_in_8bit(self) -> bool:
        """Whether the base model is loaded as int8."""
        return bool(self.quantization.get("load_in_8bit"))


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
                "DatasetConfig": {},
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


def load(path: Path, *, known: KnownFields) -> TuningConfig:
    """Reads and checks the file. Raises ConfigInvalid with one sentence."""
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigInvalid(f"{path} does not exist; the ConfigMap needs the key training_config.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return parse(document, known=known)


def parse(document: object, *, known: KnownFields) -> TuningConfig:
    """Checks a parsed training_config.yaml. Raises ConfigInvalid with one sentence."""
    root = document.get("training_config") if isinstance(document, Mapping) else None
    if not isinstance(root, Mapping):
        raise ConfigInvalid("training_config.yaml needs one top-level key, training_config, that holds its sections")
    for section in root:
        if section not in SECTIONS:
            raise ConfigInvalid(f"Unrecognized section: {section}{_nearest(str(section), SECTIONS)}")
    given = {name: _mapping(name, root.get(name)) for name in SECTIONS}
    fields = known.by_section()
    warnings: list[str] = []
    sections = {name: _named(name, given[name], fields[name], warnings) for name in SECTIONS}

    _check_quantization(sections["QuantizationConfig"])
    training = sections["TrainingArguments"]
    report_to = training.pop("report_to", None)
    if report_to not in (None, "none", [], ["none"]):
        raise ConfigInvalid(
            f"TrainingArguments.report_to: {report_to!r} would send data elsewhere; only none is allowed"
        )
    output_dir = output_directory(training.pop("output_dir", None))
    typed = {name: _typed(name, sections[name], fields[name], known.choices[name]) for name in SECTIONS}
    if typed["DataCollator"].get("mlm"):
        warnings.append(
            "DataCollator.mlm is true, but these models predict the next token: trained as causal language model"
        )
    return TuningConfig(
        model=_model(typed["ModelConfig"]),
        quantization=typed["QuantizationConfig"],
        lora=typed["LoraConfig"],
        training=typed["TrainingArguments"],
        dataset=_dataset(typed["DatasetConfig"]),
        output_dir=output_dir,
        warnings=tuple(warnings),
    )


def output_directory(value: object) -> str:
    """The directory for checkpoints and the result: strictly below /mnt after joining and cleaning."""
    if value is None or value == "":
        return DEFAULT_OUTPUT
    if isinstance(value, str):
        cleaned = posixpath.normpath(posixpath.join(MOUNT, value))
        if cleaned.startswith(f"{MOUNT}/"):
            return cleaned
    raise ConfigInvalid(f"Invalid output_dir specified: '{value}', must be a directory")


def _named(section: str, given: Mapping[Any, Any], known: Fields, warnings: list[str]) -> dict[str, Any]:
    """The section with today's names."""
    taken: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in given.items()):
        if key in REFUSED or key.startswith(REFUSED_PREFIX):
            if value in (None, False, "", []):
                continue
            raise ConfigInvalid(
                f"{section}.{key} is not allowed: nothing is loaded as code, uploaded or sharded by this job"
            )
        name = RENAMED.get(key, key) if key not in known else key
        if name in known:
            taken[name] = value
        elif key in GONE or key.startswith(GONE_PREFIX):
            warnings.append(f"{section}.{key} no longer exists and is ignored")
        else:
            raise ConfigInvalid(f"{section} has no field {key}{_nearest(key, known)}")
    return taken


def _typed(section: str, given: Mapping[str, Any], known: Fields, offered: Choices) -> dict[str, Any]:
    """The section with numbers as numbers: YAML 1.1 reads 2e-4 as text."""
    taken: dict[str, Any] = {}
    for name, value in given.items():
        accepted = known[name]
        if not accepted or kind_of(value) in accepted:
            taken[name] = value
        elif "number" in accepted and (number := _number(value)) is not None:
            taken[name] = number
        elif "integer" in accepted and isinstance(value, float) and value.is_integer():
            taken[name] = int(value)
        else:
            wanted = " or ".join(word for kind, word in KINDS.items() if kind in accepted and word)
            quotes = "; a word like no or on needs quotes" if isinstance(value, bool) and "string" in accepted else ""
            raise ConfigInvalid(f"{section}.{name} must be {wanted}, got {value!r}{quotes}")
        if isinstance(value, str) and value not in offered.get(name, (value,)):
            raise ConfigInvalid(f"{section}.{name}: {value!r} is {_none_of(value, offered[name])}")
    return taken


def _none_of(value: object, offered: Sequence[str]) -> str:
    """The end of a sentence about a value that is not among those, with the nearest of them."""
    near = _nearest(str(value), offered)
    return f"no value that it takes{near}" if near and len(offered) > MANY else f"none of {', '.join(offered)}{near}"


def kind_of(value: object) -> str:
    """The kind of a value that YAML gave; ``other`` for what no field takes, such as a date."""
    if isinstance(value, Mapping):
        return "mapping"
    return "list" if isinstance(value, list) else _KIND_OF.get(type(value), "other")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        return value if isinstance(value, int) else float(value)
    except ValueError:
        return None


def _check_quantization(quantization: Mapping[str, Any]) -> None:
    for key in ("load_in_4bit", "load_in_8bit"):
        value = quantization.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigInvalid(f"QuantizationConfig.{key}: value must be either nil or a boolean, got {value!r}")
    if quantization.get("load_in_4bit") and quantization.get("load_in_8bit"):
        raise ConfigInvalid("Cannot set both 'load_in_4bit' and 'load_in_8bit' to true in QuantizationConfig")
    compute = quantization.get("bnb_4bit_compute_dtype")
    if compute is not None and str(compute).removeprefix("torch.") not in DTYPES:
        raise ConfigInvalid(f"QuantizationConfig.bnb_4bit_compute_dtype: {compute!r} is {_none_of(compute, DTYPES)}")


def _model(given: dict[str, Any]) -> dict[str, Any]:
    dtype = given.get("dtype", "auto")
    if dtype not in DTYPES:
        raise ConfigInvalid(f"ModelConfig.torch_dtype: {dtype!r} is {_none_of(dtype, DTYPES)}")
    return given | {"dtype": dtype}


def _dataset(given: dict[str, Any]) -> DatasetConfig:
    config = DatasetConfig(**given)
    split = config.train_test_split
    if isinstance(split, bool) or not isinstance(split, int | float) or not 0 < split <= 1:
        raise ConfigInvalid(
            f"Train/Test split needs to be between 0 and 1, got DatasetConfig.train_test_split {split!r}"
        )
    return config


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigInvalid(f"{name} must hold keys and values, got {value!r}")
    return value


def _nearest(key: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
