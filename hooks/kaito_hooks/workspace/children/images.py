"""Which image a container runs: the serving image's variant, and the image that holds a preset's weights."""

from __future__ import annotations

from kaito_hooks.api.catalog import Catalog, Engine, ImageWeights, Preset
from kaito_hooks.api.workspace import PresetSpec
from kaito_hooks.workspace.configuration.settings import Settings


def variant(instance_type: str, catalog: Catalog | None, settings: Settings) -> str:
    """``cpu``, ``cu126`` or ``vllm``: forced by the settings, else what the instance type's GPU can run.

    CUDA 12.6 has kernels for the oldest GPUs of the Catalog and for the newest ones, so it is what NVIDIA GPUs get.
    """
    if settings.images.variant:
        return settings.images.variant
    listed = catalog.find_instance_type(instance_type) if catalog else None
    if listed is None:
        return "cu126" if instance_type.lower().startswith("standard_n") else "cpu"
    if listed.gpu_vendor != "nvidia" or listed.gpu_count == 0:
        return "cpu"
    return "cu126"


def serving_image(engine: Engine, instance_type: str, catalog: Catalog | None, settings: Settings) -> str:
    """The server's image: vLLM has one of its own, which holds the other engine too."""
    return settings.images.serving["vllm" if engine == "vllm" else variant(instance_type, catalog, settings)]


def tuning_image(instance_type: str, catalog: Catalog | None, settings: Settings) -> str:
    """The trainer's image; it has no variant for vLLM, whose GPUs run CUDA 12.6 as well."""
    wanted = variant(instance_type, catalog, settings)
    return settings.images.tuning["cu126" if wanted == "vllm" else wanted]


def model_image(wanted: PresetSpec, preset: Preset, settings: Settings) -> str:
    """The image that holds the weights: the user's own, else the preset's; "" if the weights are elsewhere."""
    if wanted.image:
        return wanted.image
    if isinstance(preset.weights, ImageWeights) and preset.weights.tag:
        return f"{settings.preset_registry}/kaito-{preset.name}:{preset.weights.tag}"
    return ""
