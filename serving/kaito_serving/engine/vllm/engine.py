"""The engine that hands requests to vLLM: `Engine` has the contract, and `Upstream` what surfaces see besides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path

import httpx

from kaito_serving.deadline import until
from kaito_serving.engine.base import Chunk, EngineStats, Limits, Request, State
from kaito_serving.engine.vllm import wire
from kaito_serving.engine.vllm.child import Child
from kaito_serving.engine.vllm.flags import MAX_NUM_SEQS
from kaito_serving.errors import (
    AdapterError,
    EngineUnavailable,
    InvalidRequest,
    TooManyRequests,
    UnknownModel,
)
from kaito_serving.lora.mix import bake
from kaito_serving.lora.read import Adapter, read

_LOG = logging.getLogger(__name__)

_MOST_MIXES = 64  # that vLLM knows at a time
_CONNECT_WITHIN = 10.0  # seconds
_LOOK_EVERY = 0.02  # seconds


class VllmEngine:
    """vLLM's server `child`, which listens at `url` and calls the base model `model`.

    `adapters` are what mixes may be made of, `strengths` the mix of requests that name none; a mix may have `lora_rank`
    columns. `max_waiting` requests may wait behind a full batch. `monotonic` is the clock of deadlines.
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
        max_waiting: int,
        monotonic: Callable[[], float],
    ) -> None:
        self.url = url
        self._child = child
        self._model = model
        self._limits = limits
        self._known = dict(adapters)
        self._strengths = {name: strengths.get(name, 1.0) for name in adapters}
        self._lora_rank = lora_rank
        self._most = MAX_NUM_SEQS + max_waiting
        self._monotonic = monotonic
        self._open = 0
        self._state = State.LOADING
        self._folder = tempfile.TemporaryDirectory(prefix="kaito-mixes-")
        self._mixes: OrderedDict[frozenset[tuple[str, float]], str] = OrderedDict()  # names at vLLM, last used last
        self._users: dict[str, int] = {}  # running requests by mix
        self._loading = asyncio.Lock()
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(None, connect=_CONNECT_WITHIN),
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def limits(self) -> Limits:
        """Vocabulary and context of vLLM."""
        return self._limits

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the loaded adapters, sorted."""
        return tuple(sorted(self._known))

    @property
    def client(self) -> httpx.AsyncClient:
        """Speaks with vLLM."""
        return self._client

    async def start(self) -> None:
        """Have vLLM load the mix of the deployment, so that one that it cannot serve shows."""
        async with self.mix(None):
            self._state = State.READY

    async def stop(self) -> None:
        """End vLLM and whatever it still computes."""
        self._state = State.DRAINING
        await self._client.aclose()
        await asyncio.to_thread(self._child.stop)
        self._folder.cleanup()

    async def submit(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Generate; see `Engine.submit`."""
        with self.place():
            async with self.mix(request.adapters) as model:
                asked = self._client.build_request("POST", "/v1/completions", json=wire.body(request, model=model))
                async with until(request.deadline, self._monotonic):
                    answer = await self.send(asked)
                try:
                    if answer.status_code != 200:
                        raise wire.refusal(answer.status_code, (await answer.aread()).decode(errors="replace"))
                    lines = answer.aiter_lines()
                    finished = False
                    while not finished:
                        async with until(request.deadline, self._monotonic):
                            line = await anext(lines, None)
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
                finally:
                    await answer.aclose()

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send to vLLM; the answer's body is still to be read. EngineUnavailable when it does not answer."""
        try:
            return await self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise EngineUnavailable(self._child.failure() or f"vLLM does not answer: {error}") from error

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A request's place; TooManyRequests when all are taken, EngineUnavailable when vLLM does not run."""
        if self._state is not State.READY or self._child.failure() is not None:
            raise EngineUnavailable("The server is stopping." if self._state is State.DRAINING else "vLLM restarts.")
        if self._open >= self._most:
            raise TooManyRequests(f"{self._open} requests are running or waiting already; try again later.")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextlib.asynccontextmanager
    async def mix(self, adapters: Mapping[str, float] | None) -> AsyncGenerator[str, None]:
        """What vLLM calls the base model with these adapters, None being the deployment's mix; kept while in use."""
        wanted = self._strengths if adapters is None else adapters
        self._check_names(wanted)
        key = frozenset((name, float(strength)) for name, strength in wanted.items() if strength)
        if not key:
            yield self._model
            return
        async with self._loading:
            self._check_names(wanted)  # one may have been unloaded meanwhile
            name = self._mixes.get(key) or await self._load(key)
            self._mixes.move_to_end(key)
            self._users[name] = self._users.get(name, 0) + 1
        try:
            yield name
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]

    async def load_adapter(self, name: str, path: Path) -> None:
        """Make an adapter known; AdapterError when it cannot be served."""
        if name in self._known:
            raise AdapterError(f"There is an adapter {name} already.")
        adapter = await asyncio.to_thread(read, path, name)
        if adapter.rank > self._lora_rank:
            raise AdapterError(
                f"The adapter {name} has rank {adapter.rank}, and mixes may have {self._lora_rank} together "
                "(--max_lora_rank_total)."
            )
        self._known[name] = adapter
        try:
            async with self.mix({name: 1.0}):
                pass
        except InvalidRequest as error:
            del self._known[name]
            raise AdapterError(str(error)) from error

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter once no request uses it; UnknownModel when there is none of that name."""
        if name not in self._known:
            raise UnknownModel(f"There is no adapter {name}.", param="lora_name")
        del self._known[name]
        self._strengths.pop(name, None)
        while True:
            async with self._loading:
                affected = [key for key in self._mixes if any(each == name for each, _ in key)]
                for key in affected:
                    if self._mixes[key] not in self._users:
                        await self._unload(key)
                if not any(key in self._mixes for key in affected):
                    return
            await asyncio.sleep(_LOOK_EVERY)

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

    # ---------------------------------------------------------------- mixes
    def _check_names(self, wanted: Mapping[str, float]) -> None:
        for name in wanted:
            if name not in self._known:
                loaded = ", ".join(self.adapters) or "none"
                raise UnknownModel(f"Unknown adapter {name}; loaded adapters: {loaded}.", param="adapters")

    async def _load(self, key: frozenset[tuple[str, float]]) -> str:
        """Bake a mix and have vLLM load it; InvalidRequest when it cannot be served."""
        name = f"mix-{secrets.token_hex(8)}"  # never used twice: vLLM's prefix cache goes by it
        folder = self._folder_of(name)
        parts = [(self._known[adapter], strength) for adapter, strength in sorted(key)]
        try:
            await asyncio.to_thread(bake, parts, folder, most=self._lora_rank)
        except AdapterError as error:
            raise InvalidRequest(str(error), param="adapters") from error
        answer = await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if answer.status_code != 200:
            raise InvalidRequest(str(wire.refusal(answer.status_code, answer.text)), param="adapters")
        self._mixes[key] = name
        if len(self._mixes) > _MOST_MIXES:
            idle = next((each for each, used in self._mixes.items() if each != key and used not in self._users), None)
            if idle is not None:
                await self._unload(idle)
        return name

    async def _unload(self, key: frozenset[tuple[str, float]]) -> None:
        name = self._mixes.pop(key)
        answer = await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        if answer.status_code != 200:
            _LOG.warning("vLLM keeps an adapter: %s", wire.refusal(answer.status_code, answer.text))
        await asyncio.to_thread(shutil.rmtree, self._folder_of(name), ignore_errors=True)

    def _folder_of(self, name: str) -> Path:
        """Kept while vLLM knows the mix: it may read it again."""
        return Path(self._folder.name) / name

    async def _post(self, path: str, body: Mapping[str, str]) -> httpx.Response:
        try:
            return await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailable(self._child.failure() or f"vLLM does not answer: {error}") from error
