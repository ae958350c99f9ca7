"""`kaito chat` against a server that speaks OpenAI's API, well or badly."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kaito_local.commands import chat
from kaito_local.commands.__main__ import main
from kaito_local.errors import CommandError, UsageError


class Handler(BaseHTTPRequestHandler):
    """Answers with the last question, word by word; the key is "secret" where the server has one."""

    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._answer(401, {"error": {"message": "A valid API key is required."}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": keep-alive\n\n")
        for word in body["messages"][-1]["content"].split():
            self._event({"choices": [{"delta": {"content": word + " "}}]})
        if self.server.breaks:
            self._event({"error": {"message": "The engine is restarting."}})
        self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: object) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None: ...


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["phi", "phi:pirate"]
        self.key = ""
        self.breaks = False
        self.bodies: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def test_one_question_gets_one_answer(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", server.url, "What", "is", "a", "Pod?", "--max-tokens", "9", "--system", "Be brief"]) == 0
    assert capsys.readouterr().out == "What is a Pod? \n"
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"], body["stream"]) == ("phi", 9, True)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "temperature" not in body


def test_a_conversation_remembers_what_was_said(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("first question\n\nsecond\n"))
    assert main(["chat", server.url + "/v1/", "--model", "phi:pirate"]) == 0
    assert "first question \n" in capsys.readouterr().out
    assert [body["model"] for body in server.bodies] == ["phi:pirate"] * 2
    assert [message["content"] for message in server.bodies[1]["messages"]] == [
        "first question",
        "first question ",
        "second",
    ]


def test_a_key_is_taken_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    assert main(["chat", server.url, "x"]) == 1
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert main(["chat", server.url, "x"]) == 0


def test_what_cannot_be_asked_is_told_in_a_sentence(server: Server) -> None:
    server.key = "secret"
    with pytest.raises(CommandError, match=r"answers 401: A valid API key is required.; set OPENAI_API_KEY"):
        list(chat.Server(server.url).stream({"messages": [{"role": "user", "content": "x"}]}))
    server.key, server.breaks = "", True
    with pytest.raises(CommandError, match="The engine is restarting"):
        list(chat.Server(server.url).stream({"messages": [{"role": "user", "content": "x"}]}))
    server.models = []
    with pytest.raises(CommandError, match="serves no model"):
        chat.Server(server.url).models()
    with pytest.raises(UsageError, match="localhost:1 is no address"):
        chat.Server("localhost:1").models()


def test_a_server_that_is_not_there_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "http://127.0.0.1:1", "x"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("kaito: http://127.0.0.1:1/v1 does not answer: ")
    assert said.count("\n") == 1
