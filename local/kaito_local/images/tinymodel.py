"""A very small model of Phi-3's architecture, trained here in under a minute, for machines without real weights.

`python -m kaito_local.images.tinymodel OUT_DIR` learns the questions and answers of corpus.txt by heart, so that
`/chat` answers in words, and writes what a model folder of Phi-3 holds: config, generation config, tokenizer with
Phi-3's chat template, and the weights as safetensors. The same machine and the same library versions give the same
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kaito_local.errors import BuildError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

# Phi-3's published chat template, character for character: trainers recognise it by its text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and length of the training; the defaults need about 25 seconds on two cores."""

    vocabulary: int = 1024
    hidden: int = 128
    feed_forward: int = 256
    layers: int = 3
    heads: int = 4
    context: int = 4096
    steps: int = 400
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, or (no question) a plain paragraph."""

    question: str | None
    answer: str


def read_corpus(text: str) -> list[Example]:
    """The examples of a corpus: blocks separated by empty lines; `Q:` lines, then one `A:` line; else a paragraph."""
    examples: list[Example] = []
    for block in "\n".join(line for line in text.splitlines() if not line.startswith("#")).split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        questions = [line[2:].strip() for line in lines if line.startswith("Q:")]
        answers = [line[2:].strip() for line in lines if line.startswith("A:")]
        if questions and len(answers) == 1:
            examples.extend(Example(question, answers[0]) for question in questions)
        elif lines and not questions and not answers:
            examples.append(Example(None, " ".join(lines)))
        elif lines:
            raise BuildError(f"The corpus block that begins with {lines[0]!r} needs Q: lines, then one A: line.")
    return examples


def build(directory: Path, *, recipe: Recipe | None = None, report: Callable[[str], None] | None = None) -> float:
    """Trains and writes the model into the folder `directory`; returns the last loss in nats per token."""
    recipe = recipe or Recipe()
    _quiet_libraries()
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    examples = read_corpus(resources.files("kaito_local.images").joinpath("corpus.txt").read_text(encoding="utf-8"))
    tokenizer = _train_tokenizer(examples, recipe)
    torch.manual_seed(recipe.seed)
    end_of_turn = tokenizer.convert_tokens_to_ids("<|end|>")
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        original_max_position_embeddings=recipe.context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Phi3ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end_of_turn]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    loss = _fit(model, list(_documents(examples, tokenizer)), recipe, report)
    _write(directory, model, tokenizer)
    return loss


def _train_tokenizer(examples: Sequence[Example], recipe: Recipe) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator((f"{example.question or ''} {example.answer}" for example in examples), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=recipe.context,
        chat_template=CHAT_TEMPLATE,
    )


def _documents(examples: Sequence[Example], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids per example, as `/chat` sees them: raw text, and the chat template; both end where an answer ends."""
    eos = tokenizer.eos_token_id
    for example in examples:
        if example.question is None:
            yield [*tokenizer.encode(example.answer, add_special_tokens=False), eos]
            continue
        yield [*tokenizer.encode(f"{example.question} {example.answer}", add_special_tokens=False), eos]
        turns = [{"role": "user", "content": example.question}, {"role": "assistant", "content": example.answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        yield tokenizer.encode(text, add_special_tokens=False)


def _fit(model: Any, documents: list[list[int]], recipe: Recipe, report: Callable[[str], None] | None) -> float:
    """Learn the documents by heart; one document per row, so that each begins at position 0 as a prompt does."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    order = random.Random(recipe.seed)
    # Rows of like length share a batch: half of the padding would otherwise be computed for nothing.
    by_length = sorted(documents, key=len)
    batches = [by_length[start : start + recipe.batch] for start in range(0, len(by_length), recipe.batch)]
    ignored = -100
    average = 0.0
    queue: list[list[list[int]]] = []
    for step in range(recipe.steps):
        if not queue:
            queue = order.sample(batches, len(batches))
        rows = queue.pop()
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [ignored] * (width - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        average = float(loss.detach()) if step == 0 else 0.9 * average + 0.1 * float(loss.detach())
        if report is not None and (step + 1) % 100 == 0:
            report(f"step {step + 1} of {recipe.steps}, loss {average:.3f}")
    model.eval()
    return average


def _write(directory: Path, model: Any, tokenizer: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)  # save_pretrained lets only the owner read, and a server runs as another user


def _quiet_libraries() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 0, or 1 with a sentence."""
    parser = argparse.ArgumentParser(prog="python -m kaito_local.images.tinymodel", description=__doc__)
    parser.add_argument("directory", type=Path, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="training steps")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        loss = build(
            options.directory, recipe=Recipe(steps=options.steps), report=lambda text: print(text, file=sys.stderr)
        )
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"directory": str(options.directory), "loss": round(loss, 4), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
