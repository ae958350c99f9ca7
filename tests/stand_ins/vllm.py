"""`vllm serve`, played by our own torch engine under uvicorn: the flags and the wire are vLLM's, the numbers are ours.

Where nodes compute one model together (--nnodes) the real thing splits its layers over them. This one only forms the
same torch.distributed group between the nodes, over gloo, keeps it in use, and ends when a peer is gone, as vLLM does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed
import uvicorn

from kaito_serving.http.app import build
from kaito_serving.http.metrics import MeteredEngine, ServingMetrics
from kaito_serving.options import Options
from kaito_serving.run.service import ModelService

_FORM_WITHIN = datetime.timedelta(minutes=5)
_BEAT = 0.5  # seconds


def main(arguments: list[str]) -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--max-model-len", type=int, default=0)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--structured-outputs-config", type=json.loads)
    parser.add_argument("--max-lora-rank", type=int, default=0)
    parser.add_argument("--max-loras", type=int, default=0)
    parser.add_argument("--max-cpu-loras", type=int, default=0)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", type=int, default=1)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--master-addr")
    parser.add_argument("--master-port", type=int)
    told = parser.parse_args(arguments)
    if told.nnodes > 1:
        assert told.tensor_parallel_size * told.pipeline_parallel_size % told.nnodes == 0
        join(told)
    if told.headless:
        threading.Event().wait()
    print("Loading safetensors checkpoint shards: 100% Completed", flush=True)
    serve(told)


def join(told: argparse.Namespace) -> None:
    """Form the group, and leave with everybody else as soon as one is gone."""
    address = f"tcp://{told.master_addr}:{told.master_port}"
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=told.node_rank, world_size=told.nnodes, timeout=_FORM_WITHIN
    )
    print(f"node {told.node_rank} of {told.nnodes} has joined the group at {address}", flush=True)

    def beat() -> None:
        while True:
            ones = torch.ones(1)
            try:
                torch.distributed.all_reduce(ones)
                assert int(ones) == told.nnodes
            except RuntimeError as error:
                print(f"RuntimeError: a node of the group is gone: {error}", flush=True)
                os._exit(1)
            time.sleep(_BEAT)

    threading.Thread(target=beat, daemon=True).start()


def serve(told: argparse.Namespace) -> None:
    """vLLM's HTTP server."""
    from kaito_serving.engine.torch.engine import TorchEngine
    from kaito_serving.http.generate_kwargs import ModelSettings
    from kaito_serving.lora.layer import AdapterSet
    from kaito_serving.model.load import load
    from kaito_serving.run.assembly import surfaces

    torch.set_num_threads(1)
    options = Options(
        weights=str(told.model), served_model_name=tuple(told.served_model_name), max_context=told.max_model_len
    )

    def assemble(metrics):
        model = load(options)
        ranks = told.max_lora_rank * told.max_cpu_loras
        adapters = AdapterSet(model.network, ranks=ranks, dtype=model.network.dtype, device=model.device)
        engine = TorchEngine(
            model,
            adapters,
            kv_cache_tokens=8192,
            max_batch_tokens=256,
            max_waiting=1000,
            memory=2**40,
            monotonic=time.monotonic,
            die=lambda reason: os._exit(1),
        )
        settings = ModelSettings(
            generation_config=model.network.generation_config.to_dict(),
            eos_token_id=model.tokenizer.eos_token_id,
            end_tokens=model.end_tokens,
        )
        return surfaces(model.tokenizer, MeteredEngine(engine, metrics, monotonic=time.monotonic), settings, options)

    metrics = ServingMetrics(model=options.served_model_name[0], version="0")
    service = ModelService(load=assemble, metrics=metrics, monotonic=time.monotonic)
    app = build(service, hardware=dict, runtime_adapters=Path("/") if told.enable_lora else None)
    uvicorn.run(app, host=told.host, port=told.port, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1:])
