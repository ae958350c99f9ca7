"""A mix of adapters as one adapter: for servers that know no strengths per request.

A mix adds sum_i s_i c_i B_i A_i x to the answer of a linear layer (`layer` has the notation). With the A_i stacked and
the s_i c_i B_i side by side it is one adapter of rank R = sum_i r_i and lora_alpha = R, whose factor c is 1: exact, not
an approximation of the sum.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from kaito_serving.errors import AdapterError
from kaito_serving.lora.read import PREFIX, WEIGHTS, Adapter


def bake(parts: Sequence[tuple[Adapter, float]], folder: Path, *, most: int) -> None:
    """Write the sum of `parts` (adapter, strength) to `folder` as PEFT would.

    AdapterError when its rank would exceed `most`. All layers get the rank of the largest one, filled up with zeros:
    not every server reads a rank per layer. Matrices are in float32.
    """
    modules = sorted({module for adapter, _ in parts for module in adapter.layers})
    stacked = {
        module: [(*adapter.layers[module], strength) for adapter, strength in parts if module in adapter.layers]
        for module in modules
    }
    rank = max(sum(down.shape[0] for down, _, _ in layers) for layers in stacked.values())
    if rank > most:
        names = ", ".join(adapter.name for adapter, _ in parts)
        raise AdapterError(f"The mix of {names} has rank {rank}, and {most} are served (--max_lora_rank_total).")
    tensors = {}
    for module, layers in stacked.items():
        down = torch.cat([each.float() for each, _, _ in layers])
        up = torch.cat([strength * each.float() for _, each, strength in layers], dim=1)
        missing = rank - down.shape[0]
        tensors[f"{PREFIX}{module}.lora_A.weight"] = functional.pad(down, (0, 0, 0, missing)).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = functional.pad(up, (0, missing)).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
