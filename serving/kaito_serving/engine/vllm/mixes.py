"""Mixes of adapters at vLLM, which knows no strengths: each is one adapter there, baked when it is first asked for."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path

import httpx

from kaito_serving.engine.vllm import wire
from kaito_serving.errors import AdapterError, InvalidRequest, TooManyRequests, UnknownModel
from kaito_serving.lora.mix import bake
from kaito_serving.lora.read import Adapter, read

_LOG = logging.getLogger(__name__)

_MOST_MIXES = 16  # that vLLM knows at a time; one of rank 64 for a model of 4 billion parameters is a file of 0.4 GB

_Mix = frozenset[tuple[str, float]]


class Mixes:
    """Mixes of `adapters` over the base model `model`; one may have `lora_rank` columns.

    `strengths` is the mix of requests that name none, and `post` asks vLLM: a path, and a body. Files lie below
    `folder`, which is nobody else's and may not exist yet.
    """

    def __init__(
        self,
        post: Callable[[str, Mapping[str, str]], Awaitable[httpx.Response]],
        *,
        model: str,
        adapters: Mapping[str, Adapter],
        strengths: Mapping[str, float],
        lora_rank: int,
        folder: Path,
    ) -> None:
        self._post = post
        self._model = model
        self._adapters = dict(adapters)
        self._strengths = {name: strengths.get(name, 1.0) for name in adapters}
        self._lora_rank = lora_rank
        self._folder = folder
        self._names: OrderedDict[_Mix, str] = OrderedDict()  # at vLLM, last used last
        self._users: Counter[str] = Counter()  # running requests by name
        self._unused: dict[str, asyncio.Event] = {}  # by name, where its last request is waited for
        self._loads: dict[_Mix, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters, sorted."""
        return tuple(sorted(self._adapters))

    def close(self) -> None:
        """Load nothing more, and remove the files."""
        for load in self._loads.values():
            load.cancel()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def use(self, adapters: Mapping[str, float] | None) -> AsyncGenerator[str, None]:
        """vLLM's name of the base model with these adapters, None being the deployment's mix; kept while in use.

        UnknownModel or InvalidRequest when there is no such mix, TooManyRequests when too many others are in use.
        """
        while (mix := self._mix(adapters)) and mix not in self._names:
            # It goes on when whoever waits for it leaves: vLLM must know no mix that is not known here.
            await asyncio.shield(self._loading(mix))
        if not mix:
            yield self._model
            return
        name = self._names[mix]
        self._names.move_to_end(mix)
        self._users[name] += 1
        try:
            yield name
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                if name in self._unused:
                    self._unused.pop(name).set()

    async def add(self, name: str, path: Path) -> None:
        """Make an adapter known; AdapterError when it cannot be served."""
        self._check_free(name)
        adapter = await asyncio.to_thread(read, path, name)
        self._check_free(name)  # another one may have come meanwhile
        if adapter.rank > self._lora_rank:
            raise AdapterError(
                f"The adapter {name} has rank {adapter.rank}, and mixes may have {self._lora_rank} together "
                "(--max_lora_rank_total)."
            )
        self._adapters[name] = adapter
        try:
            async with self.use({name: 1.0}):
                return
        except BaseException as error:
            if self._adapters.get(name) is adapter:
                del self._adapters[name]
            if isinstance(error, InvalidRequest):
                raise AdapterError(str(error)) from error
            raise

    async def remove(self, name: str) -> None:
        """Forget an adapter once no request uses it; UnknownModel when there is none of that name."""
        if name not in self._adapters:
            raise UnknownModel(f"There is no adapter {name}.", param="lora_name")
        del self._adapters[name]
        self._strengths.pop(name, None)
        # At once, so that an adapter that gets the same name gets mixes of its own.
        left = [self._names.pop(mix) for mix in list(self._names) if name in dict(mix)]
        # They go when whoever asks for it leaves: vLLM must know no mix that is not known here.
        await asyncio.shield(asyncio.gather(*map(self._forget_unused, left)))

    def _mix(self, adapters: Mapping[str, float] | None) -> _Mix:
        """What a request asks for; UnknownModel when it names an adapter that is not there."""
        wanted = self._strengths if adapters is None else adapters
        for name in wanted:
            if name not in self._adapters:
                loaded = ", ".join(self.adapters) or "none"
                raise UnknownModel(f"Unknown adapter {name}; loaded adapters: {loaded}.", param="adapters")
        return frozenset((name, float(strength)) for name, strength in wanted.items() if strength)

    def _check_free(self, name: str) -> None:
        if name in self._adapters:
            raise AdapterError(f"There is an adapter {name} already.")

    def _loading(self, mix: _Mix) -> asyncio.Task[None]:
        load = self._loads.get(mix)
        if load is None:
            load = self._loads[mix] = asyncio.create_task(self._load(mix))
            load.add_done_callback(lambda _: self._loads.pop(mix))
        return load

    async def _load(self, mix: _Mix) -> None:
        """Have vLLM know a mix, unless one of its adapters is unloaded meanwhile."""
        async with self._one_at_a_time:
            if any(adapter not in self._adapters for adapter, _ in mix):
                return
            parts = [(self._adapters[adapter], strength) for adapter, strength in sorted(mix)]
            await self._make_room()
            name = f"mix-{secrets.token_hex(8)}"  # never used twice: vLLM's prefix cache goes by it
            try:
                await asyncio.to_thread(bake, parts, self._folder_of(name), most=self._lora_rank)
                body = {"lora_name": name, "lora_path": str(self._folder_of(name))}
                answer = await self._post("/v1/load_lora_adapter", body)
                if answer.status_code != 200:
                    raise InvalidRequest(str(wire.refusal(answer.status_code, answer.text)), param="adapters")
            except Exception as error:
                await self._remove_files(name)
                if isinstance(error, AdapterError):
                    raise InvalidRequest(str(error), param="adapters") from error
                raise
            if all(self._adapters.get(adapter.name) is adapter for adapter, _ in parts):
                self._names[mix] = name
            else:
                await self._forget(name)

    async def _make_room(self) -> None:
        while len(self._names) >= _MOST_MIXES:
            idle = next((mix for mix, name in self._names.items() if name not in self._users), None)
            if idle is None:
                raise TooManyRequests(f"{_MOST_MIXES} mixes of adapters are in use; try again later.")
            await self._forget(self._names.pop(idle))

    async def _forget_unused(self, name: str) -> None:
        if name in self._users:  # and no other request can come to it
            unused = self._unused[name] = asyncio.Event()
            await unused.wait()
        await self._forget(name)

    async def _forget(self, name: str) -> None:
        answer = await self._post("/v1/unload_lora_adapter", {"lora_name": name})
        if answer.status_code != 200:
            _LOG.warning("vLLM keeps an adapter: %s", wire.refusal(answer.status_code, answer.text))
        await self._remove_files(name)

    async def _remove_files(self, name: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder_of(name), ignore_errors=True)

    def _folder_of(self, name: str) -> Path:
        """Kept while vLLM knows the mix: it may read it again."""
        return self._folder / name
