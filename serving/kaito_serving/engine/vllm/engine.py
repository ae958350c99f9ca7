"""The engine that hands requests to vLLM: `Engine` has the contract, and `Upstream` what surfaces see besides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx

from kaito_serving.deadline import until
from kaito_serving.engine.base import Chunk, EngineStats, Limits, Request, State
from kaito_serving.engine.vllm import wire
from kaito_serving.engine.vllm.child import Child
from kaito_serving.engine.vllm.flags import MAX_NUM_SEQS
from kaito_serving.engine.vllm.mixes import Mixes
from kaito_serving.errors import AdapterError, EngineUnavailable, InvalidRequest, TooManyRequests
from kaito_serving.lines import lines
from kaito_serving.lora.read import Adapter

_CONNECT_WITHIN = 10.0  # seconds
_IDLE_AT_MOST = 2.0  # seconds; vLLM closes idle connections after 5, and a request must not meet that


class VllmEngine:
    """vLLM's server `child`, which listens at `url` and calls the base model `model`.

    `adapters` are what mixes may be made of, `strengths` the mix of requests that name none; a mix may have `lora_rank`
    columns, and lies below `mixes` as files. `max_waiting` requests may wait behind a full
    batch. `monotonic` is the clock of deadlines.
    """

    def __init__(
        self,
        child: Child,
        *,
        url: str,
        model: str,
        limits: Limits,
        adapters: Mapping[str, Adapter],
        strengths: Mapping[str, float],
        lora_rank: int,
        mixes: Path,
        max_waiting: int,
        monotonic: Callable[[], float],
    ) -> None:
        self.url = url
        self._child = child
        self._limits = limits
        self._mixes = Mixes(
            self._post, model=model, adapters=adapters, strengths=strengths, lora_rank=lora_rank, folder=mixes
        )
        self._most = MAX_NUM_SEQS + max_waiting
        self._monotonic = monotonic
        self._open = 0  # answers, running and waiting
        self._state = State.LOADING
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=_CONNECT_WITHIN),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_IDLE_AT_MOST),
            trust_env=False,  # no proxy leads to this Pod's own loopback address
        )

    @property
    def limits(self) -> Limits:
        """Vocabulary and context of vLLM."""
        return self._limits

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        return self._mixes.adapters

    @property
    def client(self) -> httpx.AsyncClient:
        """Speaks with vLLM."""
        return self._client

    async def start(self) -> None:
        """Have vLLM load the mix of the deployment; AdapterError when it cannot serve that."""
        try:
            async with self.mix(None):
                self._state = State.READY
        except InvalidRequest as error:
            raise AdapterError(str(error)) from error

    async def stop(self) -> None:
        """End vLLM and whatever it still computes."""
        self._state = State.DRAINING
        await self._client.aclose()
        await asyncio.to_thread(self._child.stop)
        self._mixes.close()

    async def submit(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Generate; see `Engine.submit`."""
        with self.place():
            async with contextlib.AsyncExitStack() as stack:
                async with until(request.deadline, self._monotonic):
                    model = await stack.enter_async_context(self.mix(request.adapters))
                    body = wire.body(request, model=model)
                    answer = await self.send(self._client.build_request("POST", "/v1/completions", json=body))
                    stack.push_async_callback(answer.aclose)
                try:
                    if answer.status_code != 200:
                        raise wire.refusal(answer.status_code, (await answer.aread()).decode(errors="replace"))
                    events = lines(answer)
                    finished = False
                    while not finished:
                        async with until(request.deadline, self._monotonic):
                            line = await anext(events, None)
                        if line is None:
                            raise EngineUnavailable(self._child.failure() or "vLLM broke the answer off.")
                        if not line.startswith("data: {"):
                            continue
                        chunk = wire.chunk(line.removeprefix("data: "))
                        if chunk is not None:
                            finished = chunk.finish_reason is not None
                            yield chunk
                except httpx.HTTPError as error:
                    raise EngineUnavailable(self._child.failure() or f"vLLM broke the answer off: {error}") from error

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send to vLLM; the answer's body is still to be read. EngineUnavailable when it does not answer."""
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise EngineUnavailable(self._child.failure() or f"vLLM does not answer: {error}") from error

    @contextlib.contextmanager
    def place(self, answers: int = 1) -> Iterator[None]:
        """Places for so many; TooManyRequests when too few are free, EngineUnavailable when vLLM does not run."""
        if self._state is not State.READY or self._child.failure() is not None:
            raise EngineUnavailable("The server is stopping." if self._state is State.DRAINING else "vLLM restarts.")
        if self._open + answers > self._most:
            raise TooManyRequests(f"{self._open} requests are running or waiting already; try again later.")
        self._open += answers
        try:
            yield
        finally:
            self._open -= answers

    def mix(self, adapters: Mapping[str, float] | None) -> AbstractAsyncContextManager[str]:
        """What vLLM calls the model with these adapters; see `Mixes.use`."""
        return self._mixes.use(adapters)

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make an adapter known; AdapterError when it cannot be served."""
        await self._mixes.add(name, path)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once no request uses it; UnknownModel when there is none of that name."""
        await self._mixes.remove(name)

    def state(self) -> State:
        """What the engine does at the moment."""
        return State.FAILED if self._child.failure() is not None else self._state

    def check(self) -> None:
        """Raise when vLLM has ended: only a new process can help."""
        failure = self._child.failure()
        if failure is not None and self._state is not State.DRAINING:
            raise EngineUnavailable(failure)

    def stats(self) -> EngineStats:
        """What this side knows; vLLM's own metrics say the rest."""
        return EngineStats(waiting=max(0, self._open - MAX_NUM_SEQS), running=min(self._open, MAX_NUM_SEQS))

    async def metrics(self) -> str:
        """vLLM's exposition text for Prometheus; "" when it does not answer."""
        try:
            answer = await self._client.get("/metrics", headers={"Accept": "text/plain"}, timeout=_CONNECT_WITHIN)
        except httpx.HTTPError:
            return ""
        return answer.text if answer.status_code == 200 else ""

    async def _post(self, path: str, body: Mapping[str, str]) -> httpx.Response:
        try:
            return await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailable(self._child.failure() or f"vLLM does not answer: {error}") from error
