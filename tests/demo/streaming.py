"""Clients of a Service that stream one answer after the other, and what became of each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

_PAUSE = 0.1  # seconds between two requests of a client
_SILENCE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """One request: when it began and ended (seconds of the monotonic clock), and what it lacks (empty: nothing)."""

    began: float
    ended: float
    error: str


def ask(client: httpx.Client, *, tokens: int) -> Answer:
    """Stream an answer of so many tokens; httpx.ConnectError and Refused when nobody has taken the request."""
    began = time.monotonic()
    try:
        with client.stream("POST", "/v1/completions", json=request(tokens)) as answer:
            if answer.status_code == 503 and "retry-after" in answer.headers:
                raise Refused
            error = f"status {answer.status_code}" if answer.status_code != 200 else _lack(answer.iter_lines(), tokens)
    except httpx.ConnectError:
        raise
    except httpx.HTTPError as broken:
        error = repr(broken)
    return Answer(began, time.monotonic(), error)


class Refused(Exception):
    """The server takes no requests at the moment, and says when to come again."""


def request(tokens: int) -> dict[str, Any]:
    """The body that asks for a stream of exactly so many tokens."""
    body = {"model": "phi-3-mini-4k-instruct", "prompt": "What is Kubernetes?", "temperature": 0, "stream": True}
    return body | {"max_tokens": tokens, "ignore_eos": True, "stream_options": {"include_usage": True}}


def _lack(lines: Iterable[str], tokens: int) -> str:
    """What is wrong with the events of a stream."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    if data[-1:] != ["[DONE]"]:
        return f"the stream ends after {len(data)} events"
    events = [json.loads(each) for each in data[:-1]]
    reasons = [choice["finish_reason"] for event in events for choice in event.get("choices", [])]
    if [reason for reason in reasons if reason] != ["length"]:
        return f"the last event is {data[-2]}"
    usage = events[-1]["usage"]["completion_tokens"]
    return "" if usage == tokens else f"{usage} of {tokens} tokens came"


class Load:
    """A crowd, as a context: it asks until the context ends, and every request comes to its end.

    Every other client keeps its connection, the others take one for each request. ``patient`` clients ask again what
    nobody has taken (a refused connection, 503 with Retry-After), as OpenAI's own client does.
    """

    def __init__(self, url: str, *, clients: int = 8, tokens: int = 48, patient: bool = False) -> None:
        self._url = url
        self._tokens = tokens
        self._patient = patient
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(at % 2 == 0,)) for at in range(clients)]
        self.answers: list[Answer] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Answer]:
        """Those that did not come whole."""
        return [answer for answer in self.answers if answer.error]

    def running_at(self, moment: float) -> int:
        """How many requests were on their way."""
        return sum(answer.began <= moment <= answer.ended for answer in self.answers)

    def _work(self, keeps: bool) -> None:
        client = httpx.Client(base_url=self._url, timeout=_SILENCE)
        while not self._over.wait(_PAUSE):
            began = time.monotonic()
            try:
                self.answers.append(ask(client, tokens=self._tokens))
            except (httpx.ConnectError, Refused) as error:
                if not self._patient:
                    self.answers.append(Answer(began, time.monotonic(), repr(error)))
            if not keeps:
                client.close()
                client = httpx.Client(base_url=self._url, timeout=_SILENCE)
        client.close()
