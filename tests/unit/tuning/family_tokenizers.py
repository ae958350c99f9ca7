"""Small tokenizers that treat text as those of the tunable families do: by bytes, or as sentencepiece does."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    # family: begin of text, end of text, other special tokens
    "phi3": ("<s>", "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "phi": ("<|endoftext|>", "<|endoftext|>", ()),
    "falcon": (None, "<|endoftext|>", ()),
    "mistral": ("<s>", "</s>", ()),
    "llama": ("<s>", "</s>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen2": (None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "qwen3": (None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "gemma3_text": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
}
_SENTENCEPIECE = {"phi3", "mistral", "llama"}


def family_tokenizer(family: str, *, chat_template: str | None = None) -> Any:
    """A fast tokenizer with the family's special tokens; every other character is a token, or a few bytes."""
    begin, end, others = SPECIAL[family]
    if family in _SENTENCEPIECE:
        letters = ["\u2581", *map(chr, range(33, 127))]
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        tokens = ["<unk>", *byte_tokens, *letters, "\u2581S", "\u2581So", "\u2581W"]
        merges = [("\u2581", "S"), ("\u2581S", "o"), ("\u2581", "W")]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        core.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        core = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in (begin, end, *others) if token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=begin, eos_token=end)
    tokenizer.chat_template = chat_template
    return tokenizer
