"""What clients may name as their model: the base model's names, and its adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kaito_serving.engine.base import Engine
from kaito_serving.errors import UnknownModel


class Models:
    """`names` are those of the base model of `engine`, the first being its id; `created` is in seconds of the epoch."""

    def __init__(self, engine: Engine, names: Sequence[str], *, created: int) -> None:
        self.names = tuple(names)
        self._engine = engine
        self._created = created

    def list(self) -> dict[str, Any]:
        """GET /v1/models."""
        ids = [*self.names, *(f"{self.names[0]}:{name}" for name in self._engine.adapters)]
        return {"object": "list", "data": [self._card(each) for each in ids]}

    def find(self, name: str) -> dict[str, Any]:
        """GET /v1/models/{id}; UnknownModel when there is none."""
        self.mix(name)
        return self._card(name)

    def mix(self, model: str | None, adapters: Mapping[str, float] | None = None) -> Mapping[str, float] | None:
        """The adapters that a request asks for: None is the deployment's mix. UnknownModel: no model of that name.

        `name:adapter`, or the adapter's name alone as in vLLM, is that adapter at strength 1; `adapters` wins.
        """
        loaded = self._engine.adapters
        base, _, adapter = (model or "").partition(":")
        if model is None or model in self.names:
            mix = None
        elif base in self.names and adapter in loaded:
            mix = {adapter: 1.0}
        elif model in loaded:
            mix = {model: 1.0}
        else:
            raise UnknownModel(f"The model {model!r} does not exist; GET /v1/models lists those that do.")
        return mix if adapters is None else adapters

    def named(self, model: str | None, adapters: Mapping[str, float] | None = None) -> tuple[str, ...]:
        """The loaded adapters that a request names, sorted; those that are not loaded are not among them."""
        try:
            mix = self.mix(model, adapters)
        except UnknownModel:
            return ()
        return tuple(sorted(set(mix or ()) & set(self._engine.adapters)))

    def _card(self, name: str) -> dict[str, Any]:
        base = self.names[0]
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "kaito",
            "root": base,
            "parent": None if name in self.names else base,
            "max_model_len": self._engine.limits.context,
        }
