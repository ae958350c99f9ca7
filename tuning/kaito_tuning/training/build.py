"""From a job and a loaded base model to a trainer that has its rows tokenised: what is decided before a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kaito_tuning.chat import templates, weights
from kaito_tuning.chat.day import on_one_day
from kaito_tuning.chat.templates import ChatTemplate
from kaito_tuning.config.bounds import dropped
from kaito_tuning.config.targets import adapted
from kaito_tuning.data import forms, lengths
from kaito_tuning.errors import ConfigInvalid, DatasetInvalid
from kaito_tuning.training import packing
from kaito_tuning.training.job import TrainJob
from kaito_tuning.training.model import BaseModel
from kaito_tuning.training.precision import Device
from kaito_tuning.training.settings import halved, settings

if TYPE_CHECKING:
    from datasets import Dataset

    from kaito_tuning.training.trainer import Trainer
    from kaito_tuning.training.watcher import Watcher

IGNORED = -100
"""The label of a token that is not learned."""


def build(
    job: TrainJob, base: BaseModel, watcher: Watcher, warnings: list[str], *, halve: bool
) -> tuple[Trainer, Mapping[str, Any], ChatTemplate | None]:
    """The trainer with its rows tokenised, the arguments that its SFTConfig got, and the template of conversations.

    Adds sentences to ``warnings``.
    """
    from peft import LoraConfig
    from trl import SFTConfig

    from kaito_tuning.training.trainer import Trainer
    from kaito_tuning.training.waiting import PREPARING, for_the_first

    tokenizer = base.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = _chat_template(job, base)
    lora, said = adapted(
        {key: value for key, value in job.config.lora.items() if key != "task_type"},
        model_type=base.model_type,
        module_names=[name for name, _ in base.model.named_modules()],
        vocabulary=base.model.config.get_text_config().vocab_size,
    )
    warnings.extend(said)
    arguments = _arguments(job, base, template, warnings, halve=halve)
    if template is not None:
        tokenizer.chat_template = on_one_day(template.marked or template.text)
    # The processes find each other here.
    config = SFTConfig(output_dir=str(job.output_dir), **arguments | {"ddp_timeout": int(PREPARING.total_seconds())})
    config.ddp_timeout = arguments.get("ddp_timeout") or SFTConfig.ddp_timeout
    with for_the_first(afterwards=config.ddp_timeout_delta):
        trainer = Trainer(
            watcher=watcher,
            model=base.model,
            args=config,
            train_dataset=job.data.training,
            eval_dataset=job.data.evaluation,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        )
    limit, rows, left = trainer.args.max_length, len(job.data.training), len(trainer.train_dataset)
    if left == 0:
        raise DatasetInvalid(f"no row of {job.data.names} has anything to learn in {limit} tokens")
    if trainer.args.dataloader_drop_last and left < trainer.args.per_device_train_batch_size * job.processes:
        raise ConfigInvalid(dropped(left, trainer.args.per_device_train_batch_size, job.processes))
    if not trainer.args.packing and left < rows:
        warnings.append(f"{rows - left} rows have nothing to learn in their first {limit} tokens and are left out")
    held, kept = len(job.data.evaluation or ()), trainer.eval_dataset
    if kept is not None and not _anything_learned(kept):
        warnings.append(f"no held-back row has anything to learn in its first {limit} tokens: no evaluation")
        trainer.eval_dataset = None
        trainer.args.eval_strategy = arguments["eval_strategy"] = "no"
        trainer.args.eval_on_start = arguments["eval_on_start"] = False
    elif kept is not None and not trainer.args.eval_packing and not trainer.args.packing and len(kept) < held:
        warnings.append(f"{held - len(kept)} held-back rows have nothing to learn in their first {limit} tokens")
    return trainer, arguments, template


def _anything_learned(rows: Dataset) -> bool:
    """Whether a token of tokenised rows has a label. Rows without labels learn every token."""
    if len(rows) == 0 or "labels" not in rows.column_names:
        return len(rows) > 0
    return any(label != IGNORED for labels in rows["labels"] for label in labels)


def _chat_template(job: TrainJob, base: BaseModel) -> ChatTemplate | None:
    """What the rows are rendered by, if they are conversations."""
    if forms.conversation(job.data.training[0]) is None:
        return None
    template = templates.chosen(
        base.tokenizer, model_type=base.model_type, configured=job.config.model.get("chat_template")
    )
    if not job.data.weighted:
        return template
    weights.respected(job.config.training)
    return weights.weighted(base.tokenizer, template)


def _arguments(
    job: TrainJob, base: BaseModel, template: ChatTemplate | None, warnings: list[str], *, halve: bool
) -> dict[str, Any]:
    evaluates = job.data.evaluation is not None
    chosen = settings(job.config.training, device=Device.here(), dtype=base.dtype, evaluates=evaluates)
    warnings.extend(chosen.warnings)
    arguments = dict(chosen.arguments)
    measured = lengths.measure(job.data.training, base.tokenizer, template)
    context = job.context_length or base.model.config.get_text_config().max_position_embeddings
    warnings.extend(lengths.beyond_context(arguments.get("max_length"), context))
    limit = lengths.max_length(measured, context_length=context, asked=arguments.get("max_length"))
    arguments["max_length"] = limit
    if cut := measured.share_cut(limit):
        warnings.append(f"{cut:.1%} of the rows are longer than {limit:,} tokens and lose their end")
    if job.data.form == "messages" and template is not None:
        if template.marked is None:
            warnings.append("the chat template does not mark the assistant's turns: trained on whole conversations")
        arguments.setdefault("assistant_only_loss", template.marked is not None)
    tokens = measured.tokens_per_epoch(limit)
    arguments.setdefault("packing", lengths.packing_pays(tokens, arguments, max_length=limit, processes=job.processes))
    packs = arguments["packing"] or arguments.get("eval_packing")
    if packs and not packing.documents_are_separate(base.model, pad_token_id=base.tokenizer.pad_token_id):
        arguments |= {"packing": False, "eval_packing": False}
        warnings.append("packed documents would see each other on this model: packing is off")
    if arguments.get("padding_free") and not arguments["packing"]:
        arguments["padding_free"] = False
        warnings.append(
            "TrainingArguments.padding_free is off: rows that are not packed are cut to max_length and padded"
        )
    return (halved(arguments) or arguments) if halve else arguments
