"""Which image a container runs: the serving image's variant, and the image that holds a preset's weights."""

from __future__ import annotations

from kaito_hooks.api.catalog import Engine, ImageWeights, Preset
from kaito_hooks.api.workspace import PresetSpec
from kaito_hooks.workspace.configuration.settings import Settings


def variant(gpus: int, settings: Settings) -> str:
    """``cpu``, ``cu126`` or ``vllm``: forced by the settings, else by whether a Pod has GPUs.

    CUDA 12.6 has kernels for the oldest GPUs of the Catalog and for the newest ones, so it is what NVIDIA GPUs get.
    """
    return settings.images.variant or ("cu126" if gpus else "cpu")


def serving_image(engine: Engine, gpus: int, settings: Settings) -> str:
    """The server's image: vLLM has one of its own, which holds the other engine too."""
    return settings.images.serving["vllm" if engine == "vllm" else variant(gpus, settings)]


def tuning_image(gpus: int, settings: Settings) -> str:
    """The trainer's image; it has no variant for vLLM, whose GPUs run CUDA 12.6 as well."""
    wanted = variant(gpus, settings)
    return settings.images.tuning["cu126" if wanted == "vllm" else wanted]


def model_image(wanted: PresetSpec, preset: Preset, settings: Settings) -> str:
    """The image that holds the weights: the user's own, else the preset's; "" if the weights are elsewhere."""
    if wanted.image:
        return wanted.image
    if isinstance(preset.weights, ImageWeights) and preset.weights.tag:
        return f"{settings.preset_registry}/kaito-{preset.name}:{preset.weights.tag}"
    return ""
