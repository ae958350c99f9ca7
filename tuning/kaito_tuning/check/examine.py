"""The check itself: every part is looked at, whatever is wrong with the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kaito_tuning import config
from kaito_tuning.chat import templates, weights
from kaito_tuning.chat.templates import ChatTemplate
from kaito_tuning.check.report import Report, Tokens
from kaito_tuning.config import DatasetConfig, TuningConfig, bounds, doubts, expressible
from kaito_tuning.config.modules import FAMILIES, MOST_LAYERS
from kaito_tuning.config.targets import NEVER_PACKED, TARGETS, adapted
from kaito_tuning.data import Data, files, lengths, table
from kaito_tuning.errors import ConfigInvalid, DatasetInvalid, ModelInvalid, TuningError

DEFAULT_MAX_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Settings:
    """What is looked at. Without ``model_folder`` no token is counted; ``paths`` name the data on a laptop.

    ``model_type``, ``context_length`` (tokens): where the model's folder does not say.
    """

    config_path: Path
    data_folder: Path
    model_folder: Path | None
    model_type: str = ""
    method: str = ""
    context_length: int | None = None
    serve_result: bool = True
    max_bytes: int = DEFAULT_MAX_BYTES
    paths: tuple[Path, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str], paths: Sequence[str] = ()) -> Settings:
        """From the environment, with the defaults of the Job."""
        model = environment.get("MODEL_PATH", "/workspace/tfs/weights")
        return cls(
            config_path=Path(environment.get("YAML_FILE_PATH", "/mnt/config/training_config.yaml")),
            data_folder=Path(environment.get("DATASET_FOLDER_PATH", "/mnt/data")),
            model_folder=Path(model) if model else None,
            model_type=environment.get("MODEL_TYPE", ""),
            method=environment.get("METHOD", ""),
            context_length=int(environment.get("CONTEXT_LENGTH") or 0) or None,
            serve_result=environment.get("SERVE_RESULT", "true").lower() != "false",
            max_bytes=int(environment.get("CHECK_MAX_BYTES") or DEFAULT_MAX_BYTES),
            paths=tuple(map(Path, paths)),
        )


@dataclass(slots=True)
class _Findings:
    """What is wrong, and what users should know."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reason: str = ""

    @contextmanager
    def collected(self) -> Iterator[None]:
        """What ends one part of the check ends no other."""
        try:
            yield
        except TuningError as error:
            self.add(error)

    def add(self, error: TuningError) -> None:
        self.reason = self.reason or error.reason
        sentence = str(error)
        listed = error.rows if isinstance(error, DatasetInvalid) else ()
        self.problems += [sentence, *(row for row in listed if row not in sentence)]


def examine(settings: Settings, *, cache: Path | None = None) -> Report:
    """Looks at everything. Raises OSError for what a second try may mend."""
    found = _Findings()
    parsed: TuningConfig | None = None
    with found.collected():
        parsed = config.load(settings.config_path, known=config.KnownFields.shipped())
        found.warnings += parsed.warnings
        _method(parsed, settings.method)
    tokenizer, model_type, context = None, settings.model_type, settings.context_length
    model: Mapping[str, Any] = {}
    if settings.model_folder is not None:
        with found.collected():
            model = _model_config(settings.model_folder)
            model_type = str(model.get("model_type") or model_type)
            context = context or _context(model)
            if model_type not in TARGETS:
                raise ModelInvalid(
                    f"models of type {model_type} cannot be tuned; known are {', '.join(sorted(TARGETS))}"
                )
            tokenizer = templates.load_tokenizer(settings.model_folder)
    template: ChatTemplate | None = None
    if parsed is not None and tokenizer is not None:
        with found.collected():
            _tokens(parsed.training, tokenizer)
    if parsed is not None:
        with found.collected():
            _adapter(parsed, model, model_type, found, serve_result=settings.serve_result)
    if tokenizer is not None:
        with found.collected():
            configured = parsed.model.get("chat_template") if parsed else None
            template = templates.chosen(tokenizer, model_type=model_type, configured=configured)
    report = Report()
    with found.collected():
        data = _data(settings, parsed.dataset if parsed else DatasetConfig(), tokenizer, template, cache)
        found.warnings += data.warnings
        conversational = data.form == "messages" or "role" in str(data.training.features.get("prompt"))
        if data.weighted and template is not None:
            with found.collected():
                weights.respected(parsed.training if parsed else {})
                weights.weighted(tokenizer, template)
        if conversational and template is not None:
            found.warnings += _of_template(tokenizer, template, marks=data.form == "messages")
        report = replace(
            report,
            form=data.form,
            files=data.file_names,
            training_rows=len(data.training),
            evaluation_rows=len(data.evaluation or ()),
            skipped_rows=data.skipped,
        )
        if parsed is not None:
            with found.collected():
                _rows(parsed.training, len(data.training), evaluates=data.evaluation is not None)
        if tokenizer is not None and (template is not None or not conversational):
            training = parsed.training if parsed else {}
            packing = False if model_type in NEVER_PACKED else None
            report = _measured(report, data, tokenizer, template, training, context, found, packing=packing)
    return replace(
        report,
        problems=tuple(dict.fromkeys(found.problems)),
        warnings=tuple(dict.fromkeys(found.warnings)),
        reason=found.reason,
    )


def _method(parsed: TuningConfig, method: str) -> None:
    quantized = parsed.load_in_4bit or parsed.load_in_8bit
    if method == "lora" and quantized:
        raise ConfigInvalid("For method 'lora', 'load_in_4bit' or 'load_in_8bit' must not be true")
    if method == "qlora" and not quantized:
        raise ConfigInvalid("For method 'qlora', either 'load_in_4bit' or 'load_in_8bit' must be true")


def _adapter(
    parsed: TuningConfig, model: Mapping[str, Any], model_type: str, found: _Findings, *, serve_result: bool
) -> None:
    if serve_result:
        for problem in expressible.problems(parsed.lora):
            found.add(ConfigInvalid(problem))
    if model_type in TARGETS:
        names = FAMILIES[model_type].names(_whole(model.get("num_hidden_layers")) or MOST_LAYERS)
        vocabulary = _whole(model.get("vocab_size"))
        _, said = adapted(parsed.lora, model_type=model_type, module_names=names, vocabulary=vocabulary)
        found.warnings += said


def _data(
    settings: Settings, wanted: DatasetConfig, tokenizer: Any, template: ChatTemplate | None, cache: Path | None
) -> Data:
    selection = files.among(settings.paths, wanted) if settings.paths else files.select(settings.data_folder, wanted)
    refusal = templates.refused_by_roles(tokenizer, template.text) if template is not None else lambda _: ""
    return table.read(selection, wanted, refusal=refusal, cache=cache, max_bytes=settings.max_bytes)


def _tokens(training: Mapping[str, Any], tokenizer: Any) -> None:
    for name in ("eos_token", "pad_token"):
        token = training.get(name)
        if token and token not in tokenizer.get_vocab():
            raise ConfigInvalid(
                f"TrainingArguments.{name} must be a token of the model's tokenizer, got {token!r}; leave it out for "
                "the model's own"
            )


def _rows(training: Mapping[str, Any], rows: int, *, evaluates: bool) -> None:
    """What the TrainingArguments need of the data. Packed or not, no more rows than these are trained on."""
    batch = training.get("per_device_train_batch_size") or 8
    if training.get("dataloader_drop_last") and isinstance(batch, int) and rows < batch:
        raise ConfigInvalid(bounds.dropped(rows, batch))
    scheduler = training.get("lr_scheduler_type")
    if scheduler in bounds.MEASURING_SCHEDULERS and not evaluates:
        raise ConfigInvalid(
            f"TrainingArguments.lr_scheduler_type must not be {scheduler} where no row is held back; set "
            "DatasetConfig.train_test_split below 1, or choose another"
        )


def _of_template(tokenizer: Any, template: ChatTemplate, *, marks: bool) -> Iterator[str]:
    if marks and template.marked is None:
        yield "the model's chat template does not mark the assistant's turns: trained on whole conversations"
    if templates.leaves_out_system(tokenizer, template.text):
        yield "the model's chat template leaves out what the system says"


def _measured(
    report: Report,
    data: Data,
    tokenizer: Any,
    template: ChatTemplate | None,
    training: Mapping[str, Any],
    context: int | None,
    found: _Findings,
    *,
    packing: bool | None,
) -> Report:
    measured = lengths.measure(data.training, tokenizer, template)
    asked = training.get("max_length")
    limit = context or lengths.FEWEST_TOKENS
    chosen = asked if asked is not None else measured.default_max_length(limit)
    cut = measured.share_cut(chosen)
    report = replace(
        report,
        tokens=Tokens(p50=measured.p50, p95=measured.p95, max=measured.max, cut_share=cut),
        max_length=chosen,
        tokens_per_epoch=measured.tokens_per_epoch(chosen),
        estimated_steps=lengths.steps(measured, training, max_length=chosen, packing=packing),
    )
    found.warnings += doubts.of_steps(training, rows=measured.rows, steps=report.estimated_steps or 0)
    if measured.measured < measured.rows:
        found.warnings.append(f"token lengths are those of {measured.measured:,} of {measured.rows:,} rows")
    found.warnings += lengths.beyond_context(asked, context)
    with found.collected():
        lengths.max_length(measured, context_length=limit, asked=asked)
    if cut:
        found.warnings.append(f"{cut:.1%} of the rows are longer than {chosen:,} tokens and lose their end")
        without = lengths.share_without_answer(data.training, tokenizer, template, limit=chosen)
        if without == 1:
            found.add(
                DatasetInvalid(
                    f"no row has anything to learn in {chosen:,} tokens: the questions fill them; "
                    "raise TrainingArguments.max_length or shorten the rows"
                )
            )
        elif without:
            found.warnings.append(f"{without:.1%} of the rows have nothing to learn in {chosen:,} tokens")
    return report


def _model_config(folder: Path) -> Mapping[str, Any]:
    try:
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelInvalid(f"{folder} holds no readable config.json: {error}") from None
    return read if isinstance(read, dict) else {}


def _context(model: Mapping[str, Any]) -> int | None:
    return _whole(model.get("max_position_embeddings"))


def _whole(value: object) -> int | None:
    """A number above 0 of a model's config.json."""
    return value if type(value) is int and value > 0 else None
