"""POST /chat without HTTP: from a checked body to the text of the answer, by the rules of KAITO's inference server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from kaito_serving.engine.base import Engine, GenRequest
from kaito_serving.errors import InvalidRequest
from kaito_serving.http.contract import ChatRequest
from kaito_serving.http.generation import GenerationPlan, ModelSettings, effective, plan
from kaito_serving.run.options import Options

_LONG_TEXT = 20_000  # characters; tokenising more than that would hold up the event loop


class Chat:
    """Answers /chat for one model. `tokenizer` is transformers' fast tokenizer of that model."""

    def __init__(
        self, *, engine: Engine, tokenizer: Any, settings: ModelSettings, end_tokens: frozenset[int], options: Options
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._settings = settings
        self._end_tokens = end_tokens
        self._options = options

    async def answer(self, request: ChatRequest) -> str:
        """The field Result. RequestError says why there is none."""
        if self._options.pipeline == "conversational":
            return await self._converse(request)
        return await self._complete(request)

    async def _complete(self, request: ChatRequest) -> str:
        if not request.prompt:
            raise InvalidRequest("Text generation parameter prompt required")
        if request.handle_long_generation not in (None, "hole"):
            raise InvalidRequest(
                f"handle_long_generation must be null or 'hole', not {request.handle_long_generation!r}."
            )
        prefix = request.prefix or ""
        ids = await self._encode(prefix + request.prompt)
        steps = self._plan(
            request,
            prompt_tokens=len(ids),
            prefix_tokens=len(await self._encode(prefix)) if prefix else 0,
            hole=int(self._tokenizer.model_max_length) if request.handle_long_generation else None,
        )
        ids = ids[len(ids) - steps.prompt_tokens :]
        rest = ""
        for tokens in await self._generate(ids, steps, request):
            # The answer is what the whole text has more than the prompt: decoded alone it would lose a leading space.
            whole = self._decode([*ids, *tokens], request)
            rest_of_this = whole[len(self._decode(ids, request)) :]
            rest += (request.prompt if request.return_full_text is not False else "") + rest_of_this
        return rest

    async def _converse(self, request: ChatRequest) -> str:
        if not request.messages:
            raise InvalidRequest("Conversational parameter messages required")
        if not self._tokenizer.chat_template:
            raise InvalidRequest(
                "This model has no chat template; start the server with --chat_template or use prompt."
            )
        try:
            text = self._tokenizer.apply_chat_template(
                [message.model_dump() for message in request.messages], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"The messages do not suit the chat template: {error}") from error
        ids = await self._encode(text)
        answers = await self._generate(ids, self._plan(request, prompt_tokens=len(ids)), request)
        start = len(self._decode(ids, request))
        content = "".join(self._decode([*ids, *tokens], request)[start:] for tokens in answers)
        return repr({"role": "assistant", "content": content})

    def _plan(
        self, request: ChatRequest, *, prompt_tokens: int, prefix_tokens: int = 0, hole: int | None = None
    ) -> GenerationPlan:
        given = request.generate_kwargs
        settings = effective(None if given is None else _fields(given), self._settings)
        if given is not None and self._options.chat_stop == "model" and "eos_token_id" not in given.model_fields_set:
            settings["eos_token_id"] = sorted(self._end_tokens)
        return plan(
            settings, prompt_tokens=prompt_tokens, prefix_tokens=prefix_tokens, limits=self._settings.limits, hole=hole
        )

    async def _generate(self, ids: Sequence[int], steps: GenerationPlan, request: ChatRequest) -> list[list[int]]:
        alone = bool(steps.special)
        wanted = GenRequest(
            prompt_ids=tuple(ids),
            max_new_tokens=steps.max_new_tokens,
            eos_token_ids=steps.eos_token_ids,
            sampling=steps.sampling,
            special=steps.special,
            sequences=steps.sequences if alone else 1,
            adapters=request.adapters,
        )
        if alone or steps.sequences == 1:
            return await self._collect(wanted)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._collect(wanted)) for _ in range(steps.sequences)]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result()[0] for task in tasks]

    async def _collect(self, wanted: GenRequest) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in range(wanted.sequences)]
        chunks = self._engine.submit(wanted)
        try:
            async for chunk in chunks:
                answers[chunk.sequence].extend(chunk.token_ids)
        finally:
            await chunks.aclose()
        return answers

    async def _encode(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest("The text holds half of a surrogate pair, which is no valid Unicode.") from None
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(self._encode_now, text)
        return self._encode_now(text)

    def _encode_now(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        beyond = [token for token in ids if token >= self._settings.limits.vocabulary]
        if beyond:
            raise InvalidRequest(f"The text holds the token {beyond[0]}, which the model does not know.")
        return ids

    def _decode(self, ids: Sequence[int], request: ChatRequest) -> str:
        text: str = self._tokenizer.decode(
            list(ids),
            skip_special_tokens=True,
            clean_up_tokenization_spaces=bool(request.clean_up_tokenization_spaces),
        )
        return text


def _fields(given: Any) -> dict[str, Any]:
    """All fields with their defaults, but the token ids only where the request has them: theirs are the tokenizer's."""
    fields: dict[str, Any] = given.model_dump()
    for key in ("pad_token_id", "eos_token_id"):
        if key not in given.model_fields_set:
            del fields[key]
    return fields
