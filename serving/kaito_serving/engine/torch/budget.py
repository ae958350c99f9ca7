"""How many tokens the cache may hold: what memory is left once the biggest pass has had its part."""

from __future__ import annotations

from collections.abc import Mapping

import psutil
import torch

from kaito_serving.engine.torch.arena import LayerShape
from kaito_serving.engine.torch.attention import token_bytes
from kaito_serving.engine.torch.forward import Forward

_GPU_MARGIN = 1.25  # of what the trial pass took; passes differ in what they allocate
_CPU_PART = 0.5  # of what the container has left; the other half is for passes, HTTP and Ray


def cache_tokens(forward: Forward, layers: Mapping[int, LayerShape], *, max_batch_tokens: int, memory: int) -> int:
    """The tokens that fit, which `layers` keep. `memory`: bytes that this process may use (on a CPU)."""
    devices = token_bytes(layers)
    gpus = [device for device in devices if device.type == "cuda"]
    reserved: dict[torch.device, int] = {}
    if gpus:
        for device in gpus:
            torch.cuda.reset_peak_memory_stats(device)
        before = {device: torch.cuda.memory_allocated(device) for device in gpus}
        forward.trial(max_batch_tokens)
        reserved = {device: torch.cuda.max_memory_allocated(device) - before[device] for device in gpus}
        torch.cuda.empty_cache()
    fits = []
    for device, size in devices.items():
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] - _GPU_MARGIN * reserved[device]
        else:
            free = _CPU_PART * (memory - psutil.Process().memory_info().rss)
        fits.append(int(max(0.0, free) // size))
    return min(fits, default=0)
