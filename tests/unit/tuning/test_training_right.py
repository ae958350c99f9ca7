"""What is learned is what plain PEFT would learn: the same losses, only answers, their end, and packed as unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.unit.tuning.families import make
from tests.unit.tuning.job import boxes
from tests.unit.tuning.trained import FOUR_BITS, configuration, job, losses, table, train
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from kaito_tuning.config.targets import TARGETS
from kaito_tuning.errors import ConfigInvalid
from kaito_tuning.process.stop import StopRequest
from kaito_tuning.progress.history import History
from kaito_tuning.training import build, packing
from kaito_tuning.training.watcher import Watcher

IGNORED = -100


@pytest.fixture(scope="module")
def llama(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("llama", tmp_path_factory.mktemp("families") / "llama", tokenizer=model)


def built(
    folder: Path, output: Path, rows: Sequence[Mapping[str, Any]], *, template: str = "", **arguments: Any
) -> Any:
    """The trainer of a job, before its first step."""
    chat = {"ModelConfig": {"chat_template": template}} if template else {}
    work = job(folder, output, configuration(TrainingArguments=arguments, **chat), table(rows))
    watcher = Watcher(lambda _: None, StopRequest(), History(), key=work.key, processes=1)
    trainer, *_ = build.build(work, work.load_base(), watcher, [], halve=False)
    return trainer


def test_rows_without_padding_are_padded_where_they_are_not_packed(model: Path, tmp_path: Path) -> None:
    assert not built(model, tmp_path, boxes(4), padding_free=True).padding_free
    assert built(model, tmp_path, boxes(4), padding_free=True, packing=True).padding_free


def test_rows_that_fill_no_batch_are_refused_where_such_a_batch_is_dropped(model: Path, tmp_path: Path) -> None:
    full = {"dataloader_drop_last": True, "per_device_train_batch_size": 4}
    assert built(model, tmp_path, boxes(4), **full)
    with pytest.raises(ConfigInvalid, match=r"^TrainingArguments\.dataloader_drop_last leaves out all of 3 rows, "):
        built(model, tmp_path, boxes(3), **full)


def test_the_losses_are_those_of_plain_peft_with_the_same_seed(model: Path, tmp_path: Path) -> None:
    rows = [{"text": " ".join(message["content"] for message in row["messages"])} for row in boxes(12)]
    arguments = {"max_steps": 12, "num_train_epochs": 2, "learning_rate": 5e-3, "seed": 11, "shuffle_dataset": False}
    result = train(job(model, tmp_path, configuration(TrainingArguments=arguments), table(rows)))

    # The reference: a loop over the same rows in the sampler's order, written from PEFT's and torch's documentation.
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [tokenizer(row["text"] + tokenizer.eos_token)["input_ids"] for row in rows]
    set_seed(11)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tuned = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=8, lora_dropout=0.0, target_modules=[*TARGETS["phi3"]])
    )
    tuned.train()
    parameters = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 12)
    expected = []
    for epoch in range(2):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(11 + epoch)).tolist()
        for first in range(0, 12, 2):
            batch = [texts[index] for index in order[first : first + 2]]
            width = max(map(len, batch))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
            loss = tuned(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, IGNORED)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            expected.append(float(loss))
    assert losses(result) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("form", ["messages", "pairs"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one row each"])
def test_only_answers_and_their_end_carry_loss(
    llama: Path, model: Path, tmp_path: Path, form: str, packed: bool
) -> None:
    for family, folder in (("phi3", model), ("llama", llama)):
        rows = boxes()
        if form == "pairs":
            texts = [[message["content"] for message in row["messages"]] for row in rows]
            rows = [{"prompt": f"{asked}\n", "completion": answer} for asked, answer in texts]
        trainer = built(folder, tmp_path / family, rows, packing=packed, max_length=128, shuffle_dataset=False)
        tokenizer = trainer.processing_class
        answers: list[str] = []
        for row in trainer.train_dataset:
            learned = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
            assert [row["labels"][i] for i in learned] == [row["input_ids"][i] for i in learned]
            runs = [i for i in learned if i - 1 not in learned]
            for first in runs:
                last = next(i for i in range(first, len(row["labels"]) + 1) if i not in learned)
                answers.append(tokenizer.decode(row["input_ids"][first:last]))
        wanted = {row["messages"][1]["content"] for row in boxes()}
        said = {answer.removesuffix("\n").strip() for answer in answers}
        ends = {"phi3": "<|end|>" if form == "messages" else "<|endoftext|>"}.get(family, tokenizer.eos_token)
        assert {answer.split(ends)[0].strip() for answer in said} == wanted
        assert all(ends in answer for answer in said)


def test_a_template_that_asks_for_the_day_is_always_told_the_same_one(model: Path, tmp_path: Path) -> None:
    template = (
        "{{ strftime_now('%Y') if strftime_now is defined else 'no day' }} {% for m in messages %}"
        "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}"
    )
    trainer = built(model, tmp_path, boxes(2), template=template, max_length=128)
    texts = [trainer.processing_class.decode(row["input_ids"]) for row in trainer.train_dataset]
    assert all(text.startswith("2024 What colour") for text in texts), texts


def test_a_message_of_weight_0_carries_no_loss(model: Path, tmp_path: Path) -> None:
    (asked, answered), (again, last) = boxes(2)[0]["messages"], boxes(2)[1]["messages"]
    rows = [{"messages": [asked, answered | {"weight": 0}, again, last | {"weight": None}]}]
    trainer = built(model, tmp_path, rows, max_length=128)
    (row,) = trainer.train_dataset
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert trainer.processing_class.decode(learned) == f"{last['content']}<|end|>"
    assert answered["content"] in trainer.processing_class.decode(row["input_ids"])


def test_more_tokens_than_the_models_context_are_said(model: Path, tmp_path: Path) -> None:
    """By the training in the words of the check (test_tuning_check.py), which a user may have gone past."""
    config = configuration(TrainingArguments={"max_length": 256})
    work = job(model, tmp_path, config, table(boxes()), context_length=128)
    watcher = Watcher(lambda _: None, StopRequest(), History(), key=work.key, processes=1)
    warnings: list[str] = []
    build.build(work, work.load_base(), watcher, warnings, halve=False)
    assert "TrainingArguments.max_length 256 is more than the model's context of 128 tokens" in warnings


def test_packed_rows_give_every_token_the_loss_that_it_has_alone(llama: Path, model: Path, tmp_path: Path) -> None:
    for family, folder in (("phi3", model), ("llama", llama)):
        alone = _token_losses(built(folder, tmp_path / family / "alone", boxes(), packing=False, max_length=128))
        together = _token_losses(built(folder, tmp_path / family / "packed", boxes(), packing=True, max_length=128))
        assert len(alone) == len(together) == 16
        for tokens, expected in alone.items():
            assert together[tokens] == pytest.approx(expected, abs=1e-4)


def _token_losses(trainer: Any) -> dict[tuple[int, ...], list[float]]:
    """By the tokens of a row, the loss of each of its tokens that carries one, from the batches that training sees."""
    found: dict[tuple[int, ...], list[float]] = {}
    model = trainer.model.eval()
    for batch in trainer.get_train_dataloader():
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
        scores = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=IGNORED
        ).view(labels.shape[0], -1)
        for row in range(labels.shape[0]):
            packed = "position_ids" in batch
            starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist() if packed else [0]
            ends = [*starts[1:], labels.shape[1]]
            for first, last in zip(starts, ends, strict=True):
                length = int(batch["attention_mask"][row].sum()) if "attention_mask" in batch else last - first
                tokens = tuple(batch["input_ids"][row, first : first + length].tolist())
                chosen = labels[row, first + 1 : first + length] != IGNORED
                found[tokens] = scores[row, first : first + length - 1][chosen].tolist()
    return found


def test_the_probe_finds_every_leak_between_packed_documents(model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    assert packing.documents_are_separate(base, pad_token_id=0)
    with _leaking(base, share=1e-2):
        assert not packing.documents_are_separate(base, pad_token_id=0)
    assert packing.documents_are_separate(base, pad_token_id=0)


@contextmanager
def _leaking(base: Any, *, share: float) -> Iterator[None]:
    """A little of the row's first token in the last layer's output at every other token."""

    def leak(module: Any, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        leaked = hidden + share * hidden[:, :1]
        return (leaked, *output[1:]) if isinstance(output, tuple) else leaked

    hook = base.model.layers[-1].register_forward_hook(leak)
    try:
        yield
    finally:
        hook.remove()


def test_evaluation_and_gate_are_measured_on_what_was_held_back(model: Path, tmp_path: Path) -> None:
    rows = boxes(24)
    config = configuration(TrainingArguments={"max_steps": 30, "learning_rate": 5e-3, "packing": False})
    result = train(job(model, tmp_path, config, table(rows[:16], rows[:4])))
    assert result.metrics["evalLoss"] < 0.5 * result.metrics["baseEvalLoss"]
    assert result.metrics["perplexity"] == pytest.approx(2.718281828 ** result.metrics["evalLoss"], rel=1e-6)

    # The base's loss, computed without the trainer: mean over the answers' tokens of the four rows in one batch.
    trainer = built(model, tmp_path / "reference", rows[:4], packing=False)
    with trainer.model.disable_adapter():
        scores = [score for row in _token_losses(trainer).values() for score in row]
    assert result.metrics["baseEvalLoss"] == pytest.approx(sum(scores) / len(scores), abs=2e-2)

    without = train(job(model, tmp_path / "without", configuration(), table(rows)))
    assert not {"evalLoss", "baseEvalLoss", "perplexity"} & without.metrics.keys()


def test_four_bit_weights_keep_their_whole_gradient_after_an_evaluation(model: Path, tmp_path: Path) -> None:
    if "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AVX512-BF16, for which bitsandbytes would repack 4-bit weights")
    config = configuration(
        QuantizationConfig=FOUR_BITS | {"bnb_4bit_compute_dtype": "bfloat16"},
        TrainingArguments={"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1},
    )
    evaluated = train(job(model, tmp_path / "evaluated", config, table(boxes(), boxes(4))))
    config = configuration(QuantizationConfig=FOUR_BITS | {"bnb_4bit_compute_dtype": "bfloat16"})
    assert losses(evaluated) == losses(train(job(model, tmp_path / "never", config, table(boxes()))))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one row each"])
def test_held_back_rows_without_anything_to_learn_are_said_and_not_measured(
    model: Path, tmp_path: Path, packed: bool
) -> None:
    answer = {"role": "assistant", "content": "red"}
    long = {"messages": [{"role": "user", "content": "word " * 300}, answer]}
    config = configuration(TrainingArguments={"max_length": 64, "packing": packed})
    result = train(job(model, tmp_path, config, table(boxes(8), [long])))
    said = "no held-back row has anything to learn in its first 64 tokens: no evaluation"
    assert [warning for warning in result.warnings if said in warning]
    assert not {"evalLoss", "baseEvalLoss", "perplexity"} & result.metrics.keys()

    if not packed:
        some = train(job(model, tmp_path / "some", config, table(boxes(8), [long, *boxes(2)])))
        said = "1 held-back rows have nothing to learn in their first 64 tokens"
        assert [warning for warning in some.warnings if said in warning]
        assert some.metrics["evalLoss"] > 0
