"""Loading the base model:

Native class, safetensors, the dtype that the device can compute, and a first forward pass.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from kaito_serving.errors import OptionError, WeightsError
from kaito_serving.lora import adapters as lora
from kaito_serving.lora.adapters import AdapterSet
from kaito_serving.model.folder import ModelFolder, inspect
from kaito_serving.run.options import Options, strength

_LOG = logging.getLogger(__name__)
_UNLIMITED = 1 << 24  # tokenizers without a limit give an astronomical number


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that has answered once. `context` in tokens; `end_tokens` is the model's own list of end-of-text ids."""

    name: str
    network: Any  # a transformers PreTrainedModel
    tokenizer: Any  # a transformers PreTrainedTokenizerBase
    adapters: AdapterSet
    context: int
    vocabulary: int
    end_tokens: frozenset[int]

    @property
    def device(self) -> torch.device:
        """Where the first layer lies."""
        device: torch.device = self.network.device
        return device


def load(options: Options, environment: Mapping[str, str] = os.environ) -> LoadedModel:
    """Load what the options name.

    Takes seconds to minutes. StartupError with one sentence when it can never be served.
    """
    folder = inspect(Path(options.weights) if not options.allow_remote_files else _fetch(options))
    cuda = torch.cuda.is_available() and options.device_map != "cpu"
    capability = torch.cuda.get_device_capability() if cuda else None
    dtype = choose_dtype(options.dtype, folder.config, capability=capability)
    settings: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if cuda:
        settings["device_map"] = "auto" if torch.cuda.device_count() > 1 else {"": 0}
    if options.load_in_4bit or options.load_in_8bit:
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=options.load_in_4bit,
            load_in_8bit=options.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
    transformers.utils.logging.disable_progress_bar()
    network = _network(folder, settings)
    tokenizer = _tokenizer(folder, options.chat_template)
    found = [lora.read(path) for path in lora.find(options.adapters_dir)]
    strengths = {a.name: strength(environment[a.name], a.name) for a in found if a.name in environment}
    adapters = lora.attach(network, found, {**strengths, **options.adapter_strengths}, dtype=dtype)
    if adapters.names:
        _LOG.info("Adapter added: %s", ", ".join(adapters.names))
    elif options.adapters_dir.is_dir():
        _LOG.warning("No adapter found in %s; the base model answers alone.", options.adapters_dir)
    network.requires_grad_(False)
    network.eval()
    vocabulary = int(network.get_input_embeddings().weight.shape[0])
    _answer_once(network, adapters, vocabulary)
    _LOG.info("Model loaded successfully")
    return LoadedModel(
        name=options.served_model_name,
        network=network,
        tokenizer=tokenizer,
        adapters=adapters,
        context=context_limit(folder.config, tokenizer.model_max_length, asked=options.max_context),
        vocabulary=vocabulary,
        end_tokens=_token_ids(network.generation_config.eos_token_id) or _token_ids(tokenizer.eos_token_id),
    )


def choose_dtype(asked: str, config: Mapping[str, Any], *, capability: tuple[int, int] | None) -> torch.dtype:
    """The dtype to compute in; `capability` is that of the GPU, None on a CPU.

    bfloat16 needs compute capability 8.0; V100 and T4 get float16 instead. CPUs compute float16 slowly: they get
    bfloat16.
    """
    name = asked if asked != "auto" else str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise WeightsError(f"The weights are said to be {name}; only float32, float16 and bfloat16 are served.")
    if dtype is torch.bfloat16 and capability is not None and capability < (8, 0):
        _LOG.warning("This GPU does not compute bfloat16; float16 is used instead.")
        return torch.float16
    if dtype is torch.float16 and capability is None and asked == "auto":
        _LOG.info("On a CPU the weights are kept in bfloat16 instead of float16.")
        return torch.bfloat16
    assert isinstance(dtype, torch.dtype)
    return dtype


def context_limit(config: Mapping[str, Any], tokenizer_limit: int, *, asked: int) -> int:
    """Most tokens of prompt and answer together.

    Models with a long and a short set of rotary factors choose by the longest row of the batch, so a long neighbour
    would change a short request's answer: they are held to the length of the short set.
    """
    limits = [int(config.get("max_position_embeddings") or _UNLIMITED)]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) in ("longrope", "su"):
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        if original:
            limits.append(int(original))
    if tokenizer_limit < _UNLIMITED:
        limits.append(int(tokenizer_limit))
    if asked > min(limits):
        _LOG.warning(
            "--max_context %d is more than the model's %d tokens; the model's limit holds.", asked, min(limits)
        )
    elif asked:
        limits.append(asked)
    return min(limits)


def _network(folder: ModelFolder, settings: Mapping[str, Any]) -> Any:
    try:
        network, report = getattr(transformers, folder.architecture).from_pretrained(
            folder.path, local_files_only=True, use_safetensors=True, output_loading_info=True, **settings
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"The weights in {folder.path} do not load as {folder.architecture}: {first}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or ())
        if names:
            raise WeightsError(
                f"The weights in {folder.path} do not fit {folder.architecture}: {len(names)} tensors are "
                f"{kind.removesuffix('_keys')}, for example {names[0]}."
            )
    return network


def _tokenizer(folder: ModelFolder, chat_template: str | None) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"The tokenizer in {folder.path} does not load: {str(error).splitlines()[0]}") from error
    if chat_template:
        is_text = "{" in chat_template or "\n" in chat_template
        try:
            tokenizer.chat_template = chat_template if is_text else Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise OptionError(f"--chat_template {chat_template} cannot be read: {error.strerror}.") from error
    return tokenizer


def _answer_once(network: Any, adapters: AdapterSet, vocabulary: int) -> None:
    adapters.scales.active = adapters.vector(None)
    with torch.inference_mode():
        logits = network(input_ids=torch.arange(min(8, vocabulary), device=network.device)[None]).logits
    adapters.scales.active = None
    if not math.isfinite(float(logits.float().abs().sum())):
        raise WeightsError(
            "The model computes numbers that are not finite; its weights are damaged or the dtype does not suit it."
        )


def _fetch(options: Options) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
        return Path(
            snapshot_download(
                options.weights, revision=options.revision, cache_dir=options.cache_dir, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise WeightsError(f"The model {options.weights} cannot be fetched: {str(error).splitlines()[0]}") from error


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)
