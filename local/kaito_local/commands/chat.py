"""`kaito chat`: a conversation in the terminal with any server of OpenAI's API, streamed.

The wire format is that of https://platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.errors import CommandError, UsageError

_CONNECT = 10.0  # seconds
_SILENCE = 120.0  # seconds; a server sends a comment every 15 s while an answer is computed
_KEY = "OPENAI_API_KEY"  # the variable that OpenAI's own client reads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("url", help="the server, for example http://localhost:8080 (with or without /v1)")
    parser.add_argument("question", nargs="*", help="ask this alone; without it, a conversation until Ctrl-D")
    parser.add_argument("--model", help="which model (default: the first that the server lists)")
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument("--max-tokens", type=int, help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token")


def run(options: argparse.Namespace, _: LocalCluster, __: list[str]) -> int:
    """Ask; exit code 0. CommandError or UsageError with one sentence when the server cannot be asked."""
    server = Server(options.url, key=os.environ.get(_KEY))
    model = options.model or server.models()[0]
    settings = {"max_tokens": options.max_tokens, "temperature": options.temperature}
    conversation = Conversation(server, model, {key: value for key, value in settings.items() if value is not None})
    if options.system:
        conversation.messages.append({"role": "system", "content": options.system})
    if options.question:
        conversation.ask(" ".join(options.question), _write)
        return 0
    print(f"{model} at {server.url}; Ctrl-C stops an answer, Ctrl-D ends")
    while True:
        try:
            question = input("> ")
        except EOFError:
            print()
            return 0
        if question.strip():
            try:
                conversation.ask(question, _write)
            except KeyboardInterrupt:
                print(" (stopped)")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Server:
    """A server of OpenAI's API; `key` is sent as bearer token."""

    given: str
    key: str | None = None

    @property
    def url(self) -> str:
        """Where its API lies: the given address with /v1 behind."""
        url = self.given.rstrip("/")
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{self.given} is no address of a server; write http://HOST:PORT")
        return url if url.endswith("/v1") else f"{url}/v1"

    def models(self) -> list[str]:
        """The ids of its models, at least one."""
        answer = self._request("GET", "/models")
        try:
            ids = [str(model["id"]) for model in json.loads(answer.read())["data"]]
        except (ValueError, KeyError, TypeError):
            raise CommandError(f"{self.url}/models does not answer as OpenAI's API does") from None
        if not ids:
            raise CommandError(f"{self.url} serves no model")
        return ids

    def stream(self, body: dict[str, Any]) -> Iterator[str]:
        """The pieces of an answer to a body of /chat/completions."""
        answer = self._request("POST", "/chat/completions", body={**body, "stream": True})
        try:
            for line in _lines(answer):
                data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if not data or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise CommandError(f"{self.url}: {_sentence(event)}")
                for choice in event.get("choices", []):
                    yield choice.get("delta", {}).get("content") or ""
        except HTTPError as error:
            raise CommandError(f"{self.url} broke the answer off: {_reason(error)}") from error
        finally:
            answer.close()

    def _request(self, method: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        try:
            answer = urllib3.PoolManager(retries=False).request(
                method,
                self.url + path,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT, read=_SILENCE),
                preload_content=False,
            )
        except HTTPError as error:
            raise CommandError(f"{self.url} does not answer: {_reason(error)}") from error
        if answer.status != 200:
            advice = f"; set {_KEY}" if answer.status == 401 else ""
            raise CommandError(f"{self.url} answers {answer.status}: {_sentence(answer.read())}{advice}")
        return answer


class Conversation:
    """What was said so far; `settings` go into every request."""

    def __init__(self, server: Server, model: str, settings: dict[str, Any]) -> None:
        self._server = server
        self._body = {"model": model, **settings}
        self.messages: list[dict[str, str]] = []

    def ask(self, question: str, write: Callable[[str], None]) -> None:
        """Ask, and write the answer as it comes. What came before an interruption is remembered, too."""
        self.messages.append({"role": "user", "content": question})
        answer: list[str] = []
        try:
            for piece in self._server.stream({**self._body, "messages": self.messages}):
                answer.append(piece)
                write(piece)
            write("\n")
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.messages.pop()


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The lines of a stream as they come."""
    rest = b""
    while part := answer.read1():
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _sentence(answer: bytes | dict[str, Any]) -> str:
    """What a server says of an error, in OpenAI's shape or any other."""
    try:
        body = json.loads(answer) if isinstance(answer, bytes) else answer
        error = body.get("error", body.get("detail", body))
        return str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        return answer[:200].decode(errors="replace") if isinstance(answer, bytes) else str(answer)


def _reason(error: Exception) -> str:
    text = str(getattr(error, "reason", None) or error)
    return text.rpartition("Failed to establish a new connection: ")[2] or text
