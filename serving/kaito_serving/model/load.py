"""Loading the base model:

Native class, safetensors, the dtype that the device can compute, and a first forward pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from kaito_serving.errors import OptionError, WeightsError
from kaito_serving.model import chat_template
from kaito_serving.model.folder import ModelFolder, inspect
from kaito_serving.options import Options

_LOG = logging.getLogger(__name__)
_GIB = 1024**3
_UNLIMITED = 1 << 24  # tokenizers without a limit give an astronomical number


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. `context` in tokens; `end_tokens` is the model's own list of end-of-text ids."""

    network: Any  # a transformers PreTrainedModel
    tokenizer: Any  # a transformers PreTrainedTokenizerBase
    context: int
    vocabulary: int
    end_tokens: frozenset[int]

    @property
    def device(self) -> torch.device:
        """Where the first layer lies."""
        device: torch.device = self.network.device
        return device

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def load(options: Options, progress: Callable[[float | None], object] = lambda _: None) -> LoadedModel:
    """Load what the options name.

    Takes seconds to minutes; `progress` hears which part of the tensors is loaded, 0 to 1, None before the first.
    StartupError with one sentence when it can never be served.
    """
    began = time.monotonic()
    progress(None)
    folder = inspect(Path(options.weights) if not options.allow_remote_files else _fetch(options))
    _LOG.info("Loading weights: %s, %s", folder.architecture, _size(folder.tensor_bytes))
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
    tokenizer = load_tokenizer(folder, chat_template.choose(options.chat_template, options.adapters_dir))
    context = context_limit(folder.config, tokenizer.model_max_length, asked=options.max_context)
    with _heard(progress):
        network = _network(folder, settings, context=context)
    network.requires_grad_(False)
    network.eval()
    _LOG.info(
        "Model loaded: %s, %s parameters, %s, %s in %.0f s",
        folder.architecture,
        _count(network.num_parameters()),
        str(network.dtype).removeprefix("torch."),
        _size(network.get_memory_footprint()),
        time.monotonic() - began,
    )
    vocabulary = int(network.get_input_embeddings().weight.shape[0])
    return LoadedModel(
        network=network,
        tokenizer=tokenizer,
        context=context,
        vocabulary=vocabulary,
        end_tokens=_token_ids(network.generation_config.eos_token_id) or _token_ids(tokenizer.eos_token_id),
    )


@contextmanager
def _heard(progress: Callable[[float], object]) -> Iterator[None]:
    """Tell `progress` how far transformers' loader is, by the progress bar that it would show."""

    def bar(factory: Callable[..., Any], arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        if arguments and isinstance(arguments[0], Collection):
            return _counted(arguments[0], progress)
        return factory(*arguments, **settings)

    before = transformers.utils.logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        transformers.utils.logging.set_tqdm_hook(before)


def _counted(items: Collection[Any], progress: Callable[[float], object]) -> Iterator[Any]:
    told = -1
    for done, item in enumerate(items):
        if 100 * done // len(items) > told:
            told = 100 * done // len(items)
            progress(done / len(items))
        yield item
    progress(1.0)


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / 1024**2:.1f} MiB"


def _count(count: int) -> str:
    """A number of parameters as people say it: 3.82 B, 134 M, 755 k."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


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
    if dtype is torch.float16 and capability is None:
        _LOG.info("On a CPU the weights are kept in bfloat16 instead of float16.")
        return torch.bfloat16
    assert isinstance(dtype, torch.dtype)
    return dtype


def context_limit(config: Mapping[str, Any], tokenizer_limit: int, *, asked: int) -> int:
    """Most tokens of prompt and answer together: the least of the model's, the tokenizer's and the asked limit."""
    limits = [int(config.get("max_position_embeddings") or _UNLIMITED)]
    if tokenizer_limit < _UNLIMITED:
        limits.append(int(tokenizer_limit))
    if asked > min(limits):
        _LOG.warning(
            "--max_context %d is more than the model's %d tokens; the model's limit holds.", asked, min(limits)
        )
    elif asked:
        limits.append(asked)
    return min(limits)


def choose_rope_factors(config: Any, *, context: int) -> None:
    """Fix the rotary factors of a longrope model for the whole process, in place.

    Such a model (Phi-3 128k, arXiv 2402.13753) has factors for texts up to `original_max_position_embeddings` tokens
    and others for longer ones. transformers chooses by the longest row of each pass, so that neighbours would change
    one another's answers. Here the configured context decides, as in vLLM and llama.cpp: the long ones act for every
    row if it exceeds the original length, else the short ones. `config` is transformers' PretrainedConfig.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if original is None:
        return
    chosen = "long_factor" if context > int(original) else "short_factor"
    _LOG.info("The context of %d tokens takes the model's %s.", context, chosen.replace("_", " "))
    rope["short_factor"] = rope["long_factor"] = rope[chosen]


def _network(folder: ModelFolder, settings: Mapping[str, Any], *, context: int) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
        choose_rope_factors(config, context=context)
        network, report = getattr(transformers, folder.architecture).from_pretrained(
            folder.path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
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


def load_tokenizer(folder: ModelFolder, template: str | None) -> Any:
    """The tokenizer of a folder, with another chat template (a file or the text itself) if one is given."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"The tokenizer in {folder.path} does not load: {str(error).splitlines()[0]}") from error
    if template:
        is_text = "{" in template or "\n" in template
        try:
            tokenizer.chat_template = template if is_text else Path(template).read_text(encoding="utf-8")
        except OSError as error:
            raise OptionError(f"--chat_template {template} cannot be read: {error.strerror}.") from error
    return tokenizer


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
