"""KAITO's endpoints: the body of `/chat` with the fields and defaults of its inference server, and the answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kaito_serving.engine.base import State

Finite = Annotated[float, Field(allow_inf_nan=False)]


class GenerateKwargs(BaseModel):
    """Settings of the generation. Other settings of transformers' `generate` may be added under their own names."""

    model_config = ConfigDict(extra="allow")

    max_length: int = 200  # tokens of prompt and answer together
    min_length: int = 0
    do_sample: bool = True
    early_stopping: bool = False
    num_beams: int = 1
    temperature: Finite = 1.0
    top_k: int = 10
    top_p: Finite = 1.0
    typical_p: Finite = 1.0
    repetition_penalty: Finite = 1.0
    pad_token_id: int | None = None  # absent: the tokenizer's
    eos_token_id: int | None = None  # absent: the tokenizer's; null: the answer only ends at its length


class Message(BaseModel):
    """One turn of a conversation."""

    role: str
    content: str


class ChatRequest(BaseModel):
    """The body of POST /chat.

    `prompt` belongs to the text-generation pipeline, `messages` to the conversational one.
    """

    prompt: str | None = None
    messages: list[Message] | None = None
    return_full_text: bool | None = True
    clean_up_tokenization_spaces: bool | None = False
    prefix: str | None = None
    handle_long_generation: str | None = None
    generate_kwargs: GenerateKwargs | None = Field(default_factory=GenerateKwargs)
    adapters: dict[str, Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]] | None = None


class ChatAnswer(BaseModel):
    """The answer of POST /chat."""

    Result: str


class Progress(BaseModel):
    """The answer of GET /progress: how the server is, and while it loads, which part is done (0 to 1, null: unknown).

    `message` says what it does, or why it does not answer.
    """

    state: State
    progress: float | None = None
    message: str = ""
