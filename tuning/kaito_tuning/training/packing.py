"""Packing: several short rows in one long one, so that no computation goes into padding.

It trains the same thing only if no document sees another, which the model has to infer from position ids that begin
anew. Whether it does is tried on the loaded model, with the very batch that the trainer's collator makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FLOAT_NOISE = 1e-6
"""Of the largest logit: what the order of additions may change in float32."""
_OTHER, _SECOND_OTHER, _DOCUMENT = range(2, 9), range(20, 27), range(9, 20)


def documents_are_separate(model: Any, *, pad_token_id: int) -> bool:
    """Whether a document's logits stay what they are when the document before it in the row is another one.

    Three forwards of one row with two documents: the same row twice, then with the first document exchanged. Everything
    has the same shape, so a difference beyond that of the first two comes from the other document.
    """
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad():
        first, again, other = (
            _logits(model, [before, _DOCUMENT], pad_token_id) for before in (_OTHER, _OTHER, _SECOND_OTHER)
        )
    model.train(was_training)
    noise = float((again - first).abs().max())
    leak = float((other - first).abs().max())
    return leak <= noise + FLOAT_NOISE * float(first.abs().max())


def _logits(model: Any, documents: Sequence[Sequence[int]], pad_token_id: int) -> Any:
    """[tokens of the last document, vocabulary] of a packed row, as float32."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    embeddings = model.get_input_embeddings().weight
    tokens = [token % embeddings.shape[0] for document in documents for token in document]
    collate = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=True)
    batch = collate([{"input_ids": tokens, "labels": tokens, "seq_lengths": [len(d) for d in documents]}])
    batch.pop("labels")
    moved = {key: value.to(embeddings.device) if hasattr(value, "to") else value for key, value in batch.items()}
    return model(**moved, use_cache=False).logits[0, -len(documents[-1]) :].float()
