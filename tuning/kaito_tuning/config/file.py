"""``training_config.yaml``: KAITO's six sections turned into what transformers, peft and trl take.

Users bring files written for older releases of these libraries. Renamed fields are translated, fields that are gone are
dropped with a warning, unknown fields are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from kaito_tuning.config import bounds, doubts
from kaito_tuning.config.fields import KINDS, Choices, Fields, KnownFields, kind_of
from kaito_tuning.config.sections import DEFAULT_OUTPUT, DTYPES, MOUNT, SECTIONS, DatasetConfig, TuningConfig
from kaito_tuning.errors import ConfigInvalid
from kaito_tuning.json_names import Decoder

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
MANY = 12
"""More choices than a sentence should list."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML's loader would take the last; ``<<`` merges both times."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is there twice, in line {key.start_mark.line + 1} again", None
                )
            seen.add(key.value)
        return node


def load(path: Path, *, known: KnownFields) -> TuningConfig:
    """Reads and checks the file. Raises ConfigInvalid with one sentence."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ConfigInvalid(f"{path} does not exist; the ConfigMap needs the key training_config.yaml") from None
    except yaml.YAMLError as error:
        raise ConfigInvalid(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path} cannot be read: it is not UTF-8") from None
    except RecursionError:
        raise ConfigInvalid(f"{path} cannot be read: its lists or mappings are nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # of a tagged value, or one like a date
        raise ConfigInvalid(f"{path} cannot be read: a value is not of its kind: {error}") from None
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
    if (path := training.pop("chat_template_path", None)) not in (None, ""):
        raise ConfigInvalid(
            f"TrainingArguments.chat_template_path: {path!r} is not taken; set ModelConfig.chat_template, which is "
            "checked and saved with the adapter"
        )
    output_dir = output_directory(training.pop("output_dir", None))
    typed = {name: _typed(name, sections[name], fields[name], known.choices[name]) for name in SECTIONS}
    kwargs = typed["TrainingArguments"].get("lr_scheduler_kwargs")
    if kwargs is not None:
        typed["TrainingArguments"]["lr_scheduler_kwargs"] = _numbers(kwargs)
    bounds.check(typed)
    warnings += doubts.of_rate(typed["TrainingArguments"])
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
    names: dict[str, str] = {}
    for key, value in ((str(key), value) for key, value in given.items()):
        if key in REFUSED or key.startswith(REFUSED_PREFIX):
            if value in (None, False, "", []):
                continue
            raise ConfigInvalid(
                f"{section}.{key} is not allowed: nothing is loaded as code, uploaded or sharded by this job"
            )
        name = RENAMED.get(key, key) if key not in known else key
        if name in known:
            if name in names:
                value = _agreed(section, name, {names[name]: taken[name], key: value})
            taken[name], names[name] = value, key
        elif key in GONE or key.startswith(GONE_PREFIX):
            warnings.append(f"{section}.{key} no longer exists and is ignored")
        else:
            raise ConfigInvalid(f"{section} has no field {key}{_nearest(key, known)}")
    return taken


def _agreed(section: str, name: str, given: Mapping[str, Any]) -> Any:
    """The value that two names of one field stand for. Raises ConfigInvalid if they differ."""
    first, second = given.values()
    if name == "warmup_steps" and 0 in (first, second):  # a ratio beside no steps is how the libraries wrote it
        return first or second
    if first != second:
        (earlier,) = given.keys() - {name}
        raise ConfigInvalid(f"{section}.{earlier} and {section}.{name} are one field, and differ; leave {earlier} out")
    return first


def _typed(section: str, given: Mapping[str, Any], known: Fields, offered: Choices) -> dict[str, Any]:
    """The section with numbers as numbers: YAML 1.1 reads 2e-4 as text."""
    taken: dict[str, Any] = {}
    for name, value in given.items():
        accepted = known[name]
        if not accepted or kind_of(value) in accepted:
            taken[name] = value
        elif "number" in accepted and (number := _number(value)) is not None:
            # transformers checks the type of its quantization's numbers by itself.
            taken[name] = float(number) if section == "QuantizationConfig" else number
        elif "integer" in accepted and isinstance(value, float) and value.is_integer():
            taken[name] = int(value)
        else:
            wanted = " or ".join(word for kind, word in KINDS.items() if kind in accepted and word)
            quotes = "; a word like no or on needs quotes" if isinstance(value, bool) and "string" in accepted else ""
            raise ConfigInvalid(f"{section}.{name} must be {wanted}, got {value!r}{quotes}")
        if "mapping" in accepted and isinstance(value, str):
            _check_names(f"{section}.{name}", value)
        if isinstance(value, str) and value not in offered.get(name, (value,)):
            raise ConfigInvalid(f"{section}.{name}: {value!r} is {_none_of(value, offered[name])}")
    return taken


def _check_names(field: str, text: str) -> None:
    """Of a mapping as JSON. Raises ConfigInvalid for a name that is there twice."""
    decoder = Decoder()
    with suppress(ValueError, RecursionError):  # no JSON, which is no value of most fields
        decoder.decode(text)
    if decoder.twice:
        raise ConfigInvalid(f"{field} must have each name once, got {text!r}; leave one {decoder.twice} out")


def _none_of(value: object, offered: Sequence[str]) -> str:
    """The end of a sentence about a value that is not among those, with the nearest of them."""
    near = _nearest(str(value), offered)
    return f"no value that it takes{near}" if near and len(offered) > MANY else f"none of {', '.join(offered)}{near}"


def _numbers(kwargs: object) -> object:
    """A mapping, or one as JSON, which the libraries take as well, with numbers as numbers."""
    given = bounds.mapping(kwargs)
    if given is None:
        return kwargs
    return {name: value if (number := _number(value)) is None else number for name, value in given.items()}


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
    if not 0 <= config.max_bad_rows < 1:
        raise ConfigInvalid(f"DatasetConfig.max_bad_rows must be from 0 to below 1, got {config.max_bad_rows!r}")
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
