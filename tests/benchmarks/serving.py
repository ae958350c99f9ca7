"""Servers beside one another, asked over HTTP as clients ask: tokens per second, time to first token, token to token.

`python -m tests.benchmarks.serving [--hidden 1024 --layers 12] [--tokens 64] [--rounds 2] [--cases even,ragged,...]`

In one run, in turn, on the same random weights in float32:

    ours       python -m kaito_serving, under Ray Serve
    no-ray     the same application under uvicorn
    serve      transformers serve --continuous-batching
    pipeline   one request after the other behind uvicorn (this file)
    vllm       vLLM's own server, where --vllm names the program
    behind     the same vLLM behind our server (--engine vllm)

Cases, each with a number of users: even (equal prompts of 20 tokens), ragged (8 to 400 tokens), arrivals (ragged, over
ten seconds), penalty (short users while one with a penalty asks), long (short users, one each second, while a prompt of
4,000 tokens arrives), adapters (six mixes; ours alone). The one that others wait beside has a line of its own.
Prints a table and ratios to ours; nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from tests.tiny_model import tiny_model

_LONG = 2300  # words, about 4,000 tokens
_EVERYWHERE = ("even", "ragged", "arrivals", "no-penalty", "penalty", "long")
_CASES_OF = {
    "ours": (*_EVERYWHERE, "base", "adapters"),
    "no-ray": (*_EVERYWHERE, "base", "adapters"),
    "pipeline": ("even", "ragged"),
    "behind": ("even", "ragged"),
}
_NO_TOKEN = 32000  # Phi-3's own end of text, which the tiny tokenizer does not reach
MIXES = [None, {}, {"one": 1.0}, {"two": 0.5}, {"one": 0.3, "two": 0.7}, {"one": 0.9, "two": 0.1}]


@dataclass
class Reading:
    """What one case gave: tokens, seconds, and the times of each request."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


# ---------------------------------------------------------------- the model
def random_model(folder: Path, *, hidden: int, layers: int) -> Path:
    """A model of Phi-3's architecture with random weights and the tiny model's tokenizer.

    It says plain characters alone: of others a server would hold the first ones back, until they are whole.
    """
    shutil.copytree(tiny_model(), folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    config |= {"eos_token_id": _NO_TOKEN}  # answers end at their length alone, whatever a server understands
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**config))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(config["vocab_size"])]
    with torch.no_grad():
        model.lm_head.weight[[not (text.isascii() and text.strip().isalpha()) for text in texts]] = 0.0
    model.save_pretrained(folder)
    generation = {"eos_token_id": _NO_TOKEN, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def random_adapters(model: Path, folder: Path) -> None:
    import peft

    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_pretrained(model)
        targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
        adapted = peft.get_peft_model(network, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted.save_pretrained(folder / name)


# ---------------------------------------------------------------- the servers
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    path: str = "/v1/completions"
    model: str = "m"
    more: dict[str, Any] = field(default_factory=dict)  # what its bodies have besides OpenAI's fields


@contextlib.contextmanager
def running(name: str, command: Sequence[str], server: Server, log: Path, health: str) -> Iterator[Server]:
    """A server process; gone with all of its children afterwards."""
    with (log / f"{name}.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "RAY_TMPDIR": str(log)}, start_new_session=True
        )
    try:
        until = time.monotonic() + 300
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{name} did not start:\n{(log / f'{name}.log').read_text()[-3000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(server.url + health, timeout=5).status_code == 200:
                    break
            time.sleep(0.5)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(name: str, weights: Path, adapters: Path, log: Path, vllm: str) -> Any:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    here, python = ["--host", "127.0.0.1", "--port", str(port)], sys.executable
    ours = ["--pretrained_model_name_or_path", str(weights), "--served_model_name", "m", "--adapters_dir"]
    ours += [str(adapters)]
    on = Server(name, url, more={"ignore_eos": True})
    match name:
        case "ours":
            command = [python, "-m", "kaito_serving", *here, "--drain_s", "1", *ours]
        case "no-ray":
            command = [python, "-m", "tests.benchmarks.serving", "--without-ray", str(port), *ours]
        case "serve":
            program = str(Path(python).parent / "transformers")
            command = [program, "serve", str(weights), "--continuous-batching", *here]
            on = Server(name, url, model=str(weights))
        case "pipeline":
            command = [python, "-m", "tests.benchmarks.serving", "--pipeline", str(port), str(weights)]
            on = Server(name, url, path="/chat")
        case "vllm":
            command = [vllm, "serve", str(weights), "--dtype", "float32", "--served-model-name", "m", *here]
        case "behind":
            command = [python, "-m", "kaito_serving", *here, "--drain_s", "1", *ours[:-2], "--engine", "vllm"]
            command += ["--vllm", vllm, "--torch_dtype", "float32"]
        case _:
            raise SystemExit(f"there is no server {name}")
    return running(name, command, on, log, "/health")


def serve_without_ray(port: int, arguments: list[str]) -> None:
    """Our application under uvicorn."""
    import uvicorn

    from kaito_serving.http.app import build
    from kaito_serving.http.metrics import ServingMetrics
    from kaito_serving.options import parse
    from kaito_serving.run.assembly import assemble
    from kaito_serving.run.service import ModelService

    options = parse(arguments)
    torch.set_num_threads(os.cpu_count() or 1)  # as under Ray
    service = ModelService(
        load=lambda metrics: assemble(options, metrics, lambda name, part: None),
        metrics=ServingMetrics(model="m", version="0"),
        monotonic=time.monotonic,
    )
    uvicorn.run(build(service, hardware=dict), host="127.0.0.1", port=port, log_level="warning")


def serve_pipeline(port: int, weights: str) -> None:
    """What a plain server does: a pipeline, one request after the other."""
    import uvicorn
    from fastapi import FastAPI

    pipe = transformers.pipeline("text-generation", model=weights, device="cpu")
    app = FastAPI()
    lock = asyncio.Lock()

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/chat")
    async def chat(body: dict[str, Any]) -> dict[str, str]:
        async with lock:
            settings = {"max_new_tokens": body["max_tokens"], "do_sample": False, "eos_token_id": [-1]}
            result = await asyncio.to_thread(pipe, body["prompt"], **settings)
        return {"Result": result[0]["generated_text"]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


# ---------------------------------------------------------------- asking
async def ask(client: httpx.AsyncClient, server: Server, prompt: str, tokens: int, into: Reading, **more: Any) -> None:
    """One streamed answer. The pipeline cannot stream: its first token comes with the last."""
    body = {"model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= server.more | more
    began = time.perf_counter()
    try:
        async with client.stream("POST", server.url + server.path, json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                into.failed += 1
                return
            count, last = 0, began
            async for line in answer.aiter_lines():
                now = time.perf_counter()
                if server.path == "/chat":
                    into.first.append(now - began)
                elif line.startswith("data: {"):
                    chosen = json.loads(line[6:]).get("choices") or [{}]
                    if not chosen[0].get("text"):
                        continue
                    if count:
                        into.between.append(now - last)
                    else:
                        into.first.append(now - began)
                    count, last = count + 1, now
    except httpx.HTTPError:
        into.failed += 1
        return
    into.tokens += tokens


def prompt_of(words: int, chance: random.Random) -> str:
    vocabulary = ["pod", "node", "model", "GPU", "the", "is", "what", "reads", "a", "cluster"]
    return " ".join(chance.choice(vocabulary) for _ in range(words))


async def measure(server: Server, case: str, *, tokens: int, users: int) -> tuple[Reading, Reading]:
    """The reading of a case, and that of the users beside it where a case has some."""
    chance = random.Random(7)
    main, beside = Reading(), Reading()
    async with httpx.AsyncClient(timeout=1200, limits=httpx.Limits(max_connections=None)) as client:
        await ask(client, server, "warm up", 4, Reading())
        began = time.perf_counter()
        if case == "even":
            prompt = prompt_of(12, chance)
            await asyncio.gather(*(ask(client, server, prompt, tokens, main) for _ in range(users)))
        elif case == "ragged":
            lengths = [chance.randrange(5, 240) for _ in range(users)]
            await asyncio.gather(*(ask(client, server, prompt_of(n, chance), tokens, main) for n in lengths))
        elif case == "arrivals":

            async def later(seconds: float, words: int) -> None:
                await asyncio.sleep(seconds)
                await ask(client, server, prompt_of(words, chance), tokens, main)

            moments = [chance.uniform(0, 10) for _ in range(users)]
            await asyncio.gather(*(later(at, chance.randrange(5, 240)) for at in moments))
        elif case in ("penalty", "no-penalty"):
            settings = {"frequency_penalty": 0.3} if case == "penalty" else {}
            await asyncio.gather(
                *(ask(client, server, prompt_of(12, chance), tokens, main) for _ in range(users)),
                ask(client, server, prompt_of(12, chance), tokens, beside, **settings),
            )
        elif case == "long":

            async def each(at: int) -> None:
                await asyncio.sleep(0.5 + at)
                await ask(client, server, prompt_of(12, chance), 4, main)

            long = ask(client, server, prompt_of(_LONG, chance), 4, beside)
            await asyncio.gather(long, *(each(at) for at in range(users)))
        elif case in ("adapters", "base"):
            mixes = MIXES if case == "adapters" else [{}]
            await asyncio.gather(
                *(
                    ask(client, server, prompt_of(12, chance), tokens, main, adapters=mixes[at % len(mixes)])
                    for at in range(users)
                )
            )
        main.seconds = time.perf_counter() - began
    return main, beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    cases = "even-1,even-8,even-32,ragged-32,arrivals-32,no-penalty-8,penalty-8,long-8,base-32,adapters-32"
    parser.add_argument("--servers", default="ours,no-ray,serve,pipeline")
    parser.add_argument("--cases", default=cases)
    parser.add_argument("--vllm", default="")
    parser.add_argument("--without-ray", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pipeline", nargs=2, help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.without_ray:
        serve_without_ray(options.without_ray, rest)
        return
    if options.pipeline:
        serve_pipeline(int(options.pipeline[0]), options.pipeline[1])
        return
    names = options.servers.split(",") + (["vllm", "behind"] if options.vllm else [])
    readings: dict[tuple[str, str], list[Reading]] = {}
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as scratch:
        weights = random_model(Path(scratch) / "m", hidden=options.hidden, layers=options.layers)
        adapters = Path(scratch) / "adapters"
        adapters.mkdir()
        random_adapters(weights, adapters)
        for _ in range(options.rounds):
            for name in names:
                log = Path(scratch)
                with start(name, weights, adapters, log, options.vllm) as server:
                    for each in options.cases.split(","):
                        case, users = each.rsplit("-", 1)
                        if case not in _CASES_OF.get(name, _EVERYWHERE):
                            continue
                        if name == "pipeline" and int(users) > 8:
                            users = "8"  # its rate does not depend on how many wait
                        reading, beside = asyncio.run(measure(server, case, tokens=options.tokens, users=int(users)))
                        readings.setdefault((each, name), []).append(reading)
                        if beside.tokens:
                            beside.seconds = reading.seconds
                            readings.setdefault((f"{each} +1", name), []).append(beside)
                        print(f"{name:10} {each:14} {reading.rate:8.1f} tok/s", file=sys.stderr, flush=True)
    report(readings, names, options)


def report(readings: dict[tuple[str, str], list[Reading]], names: Sequence[str], options: argparse.Namespace) -> None:
    print(f"hidden {options.hidden}, {options.layers} layers, {options.tokens} tokens, {os.cpu_count()} processors")
    heads = [f"{head:>8}" for head in ("tok/s", "ours/it", "TTFT p50", "p99", "ITL p50", "p99")]
    print(f"{'case':14} {'server':10}", *heads, "failed")
    for case in dict.fromkeys(case for case, _ in readings):
        ours = statistics.median(r.rate for r in readings.get((case, "ours"), [Reading()]))
        for name in names:
            found = readings.get((case, name))
            if not found:
                continue
            rate = statistics.median(reading.rate for reading in found)
            first = [value for reading in found for value in reading.first]
            between = [value for reading in found for value in reading.between]
            times = [percentile(values, part) for values in (first, between) for part in (0.5, 0.99)]
            cells = " ".join(f"{value:8.3f}" for value in times)
            failed = sum(reading.failed for reading in found)
            print(f"{case:14} {name:10} {rate:8.1f} {ours / rate if rate else 0:8.2f} {cells} {failed:6}")


if __name__ == "__main__":
    main()
