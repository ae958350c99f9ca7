"""POST /chat without HTTP: from a checked body to the text of the answer, by the rules of KAITO's inference server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kaito_serving.engine.base import Engine, Request
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.contract import ChatRequest
from kaito_serving.http.generate_kwargs import GenerationPlan, ModelSettings, effective, plan
from kaito_serving.http.running import Asker, Running
from kaito_serving.http.text import Text


class Chat:
    """Answers /chat for one model.

    `conversational` chooses the pipeline. `all_ends`: an answer also ends at the model's own end-of-text tokens, not
    at the tokenizer's alone, unless the request says where.
    """

    def __init__(
        self, *, engine: Engine, text: Text, settings: ModelSettings, conversational: bool, all_ends: bool
    ) -> None:
        self._engine = engine
        self._text = text
        self._settings = settings
        self._conversational = conversational
        self._all_ends = all_ends

    async def answer(self, request: ChatRequest, asker: Asker) -> str:
        """The field Result. RequestError says why there is none."""
        if self._conversational:
            return await self._converse(request, asker)
        return await self._complete(request, asker)

    async def _complete(self, request: ChatRequest, asker: Asker) -> str:
        if not request.prompt:
            raise InvalidRequest("Text generation parameter prompt required")
        if request.handle_long_generation not in (None, "hole"):
            raise InvalidRequest(
                f"handle_long_generation must be null or 'hole', not {request.handle_long_generation!r}."
            )
        prefix = request.prefix or ""
        ids = await self._text.encode(prefix + request.prompt)
        steps = self._plan(
            request,
            prompt_tokens=len(ids),
            prefix_tokens=len(await self._text.encode(prefix)) if prefix else 0,
            hole=self._text.longest if request.handle_long_generation else None,
        )
        ids = ids[len(ids) - steps.prompt_tokens :]
        full = request.return_full_text is not False
        answers = await self._generate(ids, steps, request, asker)
        return "".join((request.prompt if full else "") + self._rest(ids, tokens, request) for tokens in answers)

    async def _converse(self, request: ChatRequest, asker: Asker) -> str:
        if not request.messages:
            raise InvalidRequest("Conversational parameter messages required")
        text = self._text.render([message.model_dump() for message in request.messages])
        ids = await self._text.encode(text, special=False)  # the template writes them
        answers = await self._generate(ids, self._plan(request, prompt_tokens=len(ids)), request, asker)
        return repr({"role": "assistant", "content": "".join(self._rest(ids, each, request) for each in answers)})

    def _plan(
        self, request: ChatRequest, *, prompt_tokens: int, prefix_tokens: int = 0, hole: int | None = None
    ) -> GenerationPlan:
        given = request.generate_kwargs
        settings = effective(None if given is None else _fields(given), self._settings)
        if given is not None and self._all_ends and "eos_token_id" not in given.model_fields_set:
            settings["eos_token_id"] = sorted(self._settings.end_tokens)
        return plan(
            settings, prompt_tokens=prompt_tokens, prefix_tokens=prefix_tokens, limits=self._engine.limits, hole=hole
        )

    async def _generate(
        self, ids: Sequence[int], steps: GenerationPlan, request: ChatRequest, asker: Asker
    ) -> list[list[int]]:
        seed = steps.params.seed
        wanted = [
            Request(
                prompt_ids=tuple(ids),
                params=steps.params if seed is None else replace(steps.params, seed=seed + each),
                adapters=request.adapters,
                deadline=asker.deadline,
                client=asker.client,
            )
            for each in range(steps.sequences)
        ]
        answers: list[list[int]] = [[] for _ in wanted]
        async with Running(self._engine, wanted) as running:
            try:
                async with asyncio.timeout(steps.max_time):
                    while not running.finished:
                        taken = await running.next()
                        assert taken is not None
                        answers[taken[0]] += taken[1].token_ids
            except TimeoutError:
                return answers  # max_time is no failure: what has come until then is the answer
        return answers

    def _rest(self, ids: Sequence[int], tokens: Sequence[int], request: ChatRequest) -> str:
        """What the whole text has more than the prompt: decoded alone, an answer would lose a leading space."""
        clean_up = bool(request.clean_up_tokenization_spaces)
        whole = self._text.decode([*ids, *tokens], clean_up=clean_up)
        return whole[len(self._text.decode(ids, clean_up=clean_up)) :]


def _fields(given: Any) -> dict[str, Any]:
    """All fields with their defaults, but the token ids only where the request has them: theirs are the tokenizer's."""
    fields: dict[str, Any] = given.model_dump()
    for key in ("pad_token_id", "eos_token_id"):
        if key not in given.model_fields_set:
            del fields[key]
    return fields
